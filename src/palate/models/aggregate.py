"""From the token statistics of a batch to those of its sequences."""

from __future__ import annotations

from palate.data.layouts import SequenceBatch
from palate.kernels import TokenStats
from palate.losses import TOKEN_WEIGHTS, SequenceStats, TokenContext
from palate.recipes.losses import TokenWeights


def sequence_stats(
    tokens: TokenStats, batch: SequenceBatch, *, token_weights: TokenWeights | None = None
) -> SequenceStats:
    """Sums over each sequence's response tokens.

    Args:
        token_weights: of the log-probs of pairs; see `palate.losses.token_weights`.

    Raises:
        ValueError: weights for a batch that holds no pairs.
    """
    weight = ref_weight = None
    if token_weights is not None:
        context = TokenContext.of_pairs(
            position=batch.position,
            segment=batch.segment,
            lengths=batch.lengths,
            chosen=batch.of_pairs().chosen,
            rejected=batch.of_pairs().rejected,
            logp=tokens.logp,
            ref_logp=tokens.ref_logp,
            kl=tokens.kl,
        )
        options = token_weights.model_dump(exclude={"type"})
        weights = TOKEN_WEIGHTS[token_weights.type].function(context, **options)
        weight, ref_weight = weights.policy, weights.reference
    return SequenceStats.from_tokens(
        logp=tokens.logp,
        segment=batch.segment,
        n_sequences=batch.n_sequences,
        ref_logp=tokens.ref_logp,
        kl=tokens.kl,
        weight=weight,
        ref_weight=ref_weight,
    )
