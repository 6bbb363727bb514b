"""Preference accuracy and margin on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats

from palate.data.items import Item
from palate.data.layouts import Layout
from palate.errors import RunError
from palate.evaluate.statistics import difference_interval, share_interval
from palate.intervals import Interval
from palate.losses import Member, combined_needs, compute
from palate.models.aggregate import sequence_stats
from palate.models.model import Ask, Model, evaluating
from palate.models.reference import Reference
from palate.recipes.losses import Loss, TokenWeights, members

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """How a policy judges one pair.

    Attributes:
        margin: implicit reward of the loss, chosen minus rejected.
        log_ratio_margin: m_w - m_l, nats, m = log policy - log reference of a response; None
            without a reference.
        longer: length of chosen minus rejected before truncation.
        cut_even: truncation has made responses equally long that were not.
    """

    id: str
    source: str
    margin: float
    log_ratio_margin: float | None
    longer: int
    cut_even: bool = False


def reward_members(loss: Loss | None) -> list[Member]:
    """The members that define the implicit reward; without a loss, DPO's log-ratio with beta 1.

    Unpaired losses (kto) and likelihoods rank by the log-ratio too.
    """
    singles = [] if loss is None else list(members(loss))
    ranking = [m for m in map(Member.of, singles) if m.spec.ranks and m.spec.inputs == "pair"]
    if ranking:
        return ranking
    beta = next((float(m.beta) for m in singles if m.type == "kto"), 1.0)
    return [Member(type="dpo", options={"beta": beta, "label_smoothing": 0.0})]


@torch.no_grad()
def score_pairs(
    policy: Model,
    pairs: Sequence[Item],
    *,
    loss: Loss | None,
    reference: Reference | None,
    token_weights: TokenWeights | None = None,
    batch_size: int = 8,
    layout: Layout = "plain",
    pad_id: int = 0,
    progress: Progress | None = None,
) -> list[PairScore]:
    """Scores every pair with the implicit reward of `loss`, in the order given.

    Args:
        token_weights: those that `loss` was trained with; its reward is of the weighted log-ratios.
            `log_ratio_margin` stays unweighted.

    Raises:
        RunError: the loss has a reference and none is given.
    """
    chosen_members = reward_members(loss)
    needs = combined_needs(chosen_members)
    if needs.reference and reference is None:
        raise RunError(f"the reward of {chosen_members[0].type} needs a reference: set `reference`")
    # Alike lengths together: less padding.
    order = sorted(range(len(pairs)), key=lambda i: -pairs[i].n_tokens)
    scores: dict[int, PairScore] = {}
    collate = policy.collator(layout, pad_id=pad_id)
    with evaluating(policy):
        for start in range(0, len(order), batch_size):
            chunk = [pairs[i] for i in order[start : start + batch_size]]
            batch = collate(chunk).to(policy.device)
            ref = None if reference is None else reference.inputs(batch, kl=needs.kl)
            tokens = policy(batch, Ask(kl=needs.kl), reference=ref).token_stats
            sums = sequence_stats(tokens, batch)
            sides = batch.of_pairs()
            judged = (
                sums
                if token_weights is None
                else sequence_stats(tokens, batch, token_weights=token_weights)
            )
            output = compute(chosen_members, judged[sides.chosen], judged[sides.rejected])
            margin = (output.chosen_rewards - output.rejected_rewards).tolist()
            ratio: list[float | None] = [None] * len(sides)
            if sums.ref_logp is not None:
                m = sums.logp - sums.ref_logp
                ratio = (m[sides.chosen] - m[sides.rejected]).tolist()
            for j, i in enumerate(order[start : start + batch_size]):
                scores[i] = PairScore(
                    id=pairs[i].id,
                    source=pairs[i].source,
                    margin=margin[j],
                    log_ratio_margin=ratio[j],
                    longer=pairs[i].longer,
                    cut_even=pairs[i].cut_even,
                )
            if progress is not None:
                progress(len(scores), len(pairs))
    return [scores[i] for i in range(len(pairs))]


def evaluate_pairs(
    policy: Model,
    pairs: Sequence[Item],
    *,
    loss: Loss | None,
    reference: Reference | None,
    token_weights: TokenWeights | None = None,
    confidence: float = 0.95,
    batch_size: int = 8,
    layout: Layout = "plain",
    pad_id: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`summarise_pairs` of `score_pairs`: the `preference` entry of evaluation.json."""
    scores = score_pairs(
        policy,
        pairs,
        loss=loss,
        reference=reference,
        token_weights=token_weights,
        batch_size=batch_size,
        layout=layout,
        pad_id=pad_id,
        progress=progress,
    )
    prompts = [pair.prompts[0] for pair in pairs]
    return summarise_pairs(scores, prompts=prompts, confidence=confidence)


def summarise_pairs(
    scores: Sequence[PairScore],
    *,
    prompts: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Accuracy and margin of each source and of all pairs together.

    Ties (equal rewards, equal lengths) count one half. Accuracies have Wilson intervals, margins t
    intervals. `p_value` is of the two-sided binomial test against one half, ties left out.

    Pairs of one prompt, as of ratings or of a ranked list, are not independent. Where `prompts` has
    such, intervals of shares are of the effective number (`share_interval`, beside them as
    `effective_n`), those of means are of sums by prompt, and there is no `p_value`.

    Args:
        prompts: of each pair what tells its prompt; default: a prompt of its own.

    Returns:
        source (and "all") -> n, accuracy, accuracy_ci, margin, margin_ci, ties, p_value,
        length_baseline (accuracy of "the longer one wins"), length_baseline_ci, over_length and
        over_length_ci (accuracy less that baseline, pair by pair), cut_even (pairs whose responses
        truncation made equally long), and with a reference log_ratio_accuracy,
        log_ratio_accuracy_ci, log_ratio_margin, log_ratio_margin_ci; with `prompts` how many
        prompts there are, and where they have several pairs effective_n.
    """
    owners: Sequence[Hashable] = range(len(scores)) if prompts is None else prompts
    rows = list(zip(scores, owners, strict=True))
    sources = dict.fromkeys(score.source for score in scores)
    by_name = {name: [row for row in rows if row[0].source == name] for name in sources}
    # One source is its own total; the name `all` is kept for several and for readers that want one.
    summaries = {name: _summary(r, confidence) for name, r in (by_name | {"all": rows}).items()}
    if prompts is None:
        for summary in summaries.values():
            del summary["prompts"]
    return summaries


def _summary(rows: Sequence[tuple[PairScore, Hashable]], confidence: float) -> dict[str, Any]:
    n = len(rows)
    numbers: dict[Hashable, int] = {}
    groups = np.asarray([numbers.setdefault(prompt, len(numbers)) for _, prompt in rows], dtype=int)
    margins = np.asarray([score.margin for score, _ in rows], dtype=float)
    right = _wins(margins)
    by_length = _wins(np.asarray([score.longer for score, _ in rows]))
    accuracy, accuracy_ci, effective = _share(right, groups, confidence)
    baseline, baseline_ci, _ = _share(by_length, groups, confidence)
    margin, margin_ci = difference_interval(margins, groups, confidence)
    over, over_ci = difference_interval(right - by_length, groups, confidence)
    summary: dict[str, Any] = {
        "n": n,
        "prompts": len(numbers),
        "accuracy": accuracy,
        "accuracy_ci": accuracy_ci,
        "margin": margin,
        "margin_ci": margin_ci,
        "ties": int((margins == 0).sum()),
        "length_baseline": baseline,
        "length_baseline_ci": baseline_ci,
        "over_length": over,
        "over_length_ci": over_ci,
        "cut_even": sum(score.cut_even for score, _ in rows),
    }
    if len(numbers) < n:
        summary["effective_n"] = effective
    else:
        won, decided = int((margins > 0).sum()), int((margins != 0).sum())
        p_value = scipy_stats.binomtest(won, decided).pvalue if decided else 1.0
        summary["p_value"] = float(p_value)
    known = np.asarray([score.log_ratio_margin is not None for score, _ in rows], dtype=bool)
    if known.any():
        ratios = np.asarray([r for score, _ in rows if (r := score.log_ratio_margin) is not None])
        share, share_ci, _ = _share(_wins(ratios), groups[known], confidence)
        mean, interval = difference_interval(ratios, groups[known], confidence)
        summary |= {
            "log_ratio_accuracy": share,
            "log_ratio_accuracy_ci": share_ci,
            "log_ratio_margin": mean,
            "log_ratio_margin_ci": interval,
        }
    return summary


def _wins(margins: np.ndarray) -> np.ndarray:
    return np.asarray((margins > 0) + 0.5 * (margins == 0))


def _share(
    right: np.ndarray, groups: np.ndarray, confidence: float
) -> tuple[float, Interval, float]:
    """The mean, its interval, and the effective number."""
    interval, effective = share_interval(right, groups, confidence)
    return float(right.mean()) if len(right) else 0.0, interval, effective
