"""Per-token weights: the two registered methods, and the hook by its documented examples."""

from __future__ import annotations

import doctest

import pytest
import torch

from palate.losses import SequenceStats, TokenContext, Weights, d2po, dpo, ld, token_weights

# Two pairs: chosen of 3 and 1 tokens, rejected of 2 and 4.
LENGTHS = torch.tensor([3, 1, 2, 4])
SEGMENT = torch.repeat_interleave(torch.arange(4), LENGTHS)
POSITION = torch.cat([torch.arange(n) for n in LENGTHS.tolist()])


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, len(SEGMENT), generator=g, dtype=torch.float64)
    return (-3 * draw[0]).requires_grad_(), -3 * draw[1]


def context() -> TokenContext:
    logp, ref_logp = tokens()
    return TokenContext.of_pairs(
        position=POSITION,
        segment=SEGMENT,
        lengths=LENGTHS,
        chosen=torch.arange(2),
        rejected=torch.arange(2, 4),
        logp=logp,
        ref_logp=ref_logp,
        kl=logp.exp(),
    )


def loss(weights: Weights | None) -> torch.Tensor:
    logp, ref_logp = tokens()
    stats = SequenceStats.from_tokens(
        logp=logp,
        ref_logp=ref_logp,
        segment=SEGMENT,
        n_sequences=4,
        weight=None if weights is None else weights.policy,
        ref_weight=None if weights is None else weights.reference,
    )
    return dpo(stats[:2], stats[2:]).terms[0].losses


def test_context_knows_the_partner_and_has_no_gradient():
    ctx = context()
    assert ctx.partner_lengths.tolist() == [2, 4, 3, 1]
    assert ctx.chosen.tolist() == [True, True, False, False]
    assert not ctx.logp.requires_grad and not ctx.kl.requires_grad
    trained = torch.zeros(10, requires_grad=True)
    bare = {
        "position": POSITION,
        "segment": SEGMENT,
        "lengths": LENGTHS,
        "chosen": torch.arange(2),
        "rejected": torch.arange(2, 4),
    }
    given = TokenContext.of_pairs(**bare, logp=trained, ref_logp=trained)
    assert given.ref_logp is not None and not given.ref_logp.requires_grad
    alone = TokenContext.of_pairs(**bare, logp=trained)
    assert alone.ref_logp is None and alone.kl is None
    assert ctx.sequence_sum(torch.ones(10)).tolist() == [3, 1, 2, 4]
    with pytest.raises(ValueError, match="3 pairs have 6 sequences, not 4"):
        TokenContext.of_pairs(
            position=POSITION,
            segment=SEGMENT,
            lengths=LENGTHS,
            chosen=torch.arange(3),
            rejected=torch.arange(3),
            logp=ctx.logp,
        )


def test_ld_weights_the_tail_beyond_the_shorter_response():
    expected = [1, 1, 0.25, 1, 1, 1, 1, 0.25, 0.25, 0.25]
    both = ld(context(), alpha=0.25)
    assert both.policy.tolist() == expected
    assert both.reference.tolist() == expected
    policy = ld(context(), alpha=0.25, reference="policy")
    assert policy.policy.tolist() == expected
    assert policy.reference.tolist() == [1.0] * 10
    with pytest.raises(ValueError, match="no reference 'none'; there are both, policy"):
        ld(context(), reference="none")


def test_weights_unless_told_otherwise():
    torch.testing.assert_close(ld(context()).policy, ld(context(), alpha=0.5).policy)
    torch.testing.assert_close(ld(context()).reference, ld(context(), reference="both").reference)
    weights = d2po(context()).policy
    torch.testing.assert_close(weights, 0.98 ** (POSITION + 1).double(), rtol=1e-14, atol=0)
    assert weights.dtype == torch.float64


def test_d2po_decays_from_the_first_token():
    weights = d2po(context(), gamma=0.5)
    expected = [0.5, 0.25, 0.125, 0.5, 0.5, 0.25, 0.5, 0.25, 0.125, 0.0625]
    assert weights.policy.tolist() == expected
    assert weights.reference.tolist() == expected


@pytest.mark.parametrize(
    "weights", [ld(context(), alpha=1.0), d2po(context(), gamma=1.0)], ids=["ld", "d2po"]
)
def test_neutral_weights_are_the_plain_loss(weights):
    torch.testing.assert_close(loss(weights), loss(None), rtol=0, atol=0)


def test_weighted_loss_by_hand():
    logp, ref_logp = (x.detach() for x in tokens())
    w = torch.tensor([1, 1, 0.25, 1, 1, 1, 1, 0.25, 0.25, 0.25], dtype=torch.float64)
    for reference, v in (("both", w), ("policy", torch.ones(10, dtype=torch.float64))):
        ratio = w * logp - v * ref_logp
        a = 0.1 * torch.stack(
            [ratio[0:3].sum() - ratio[4:6].sum(), ratio[3:4].sum() - ratio[6:].sum()]
        )
        got = loss(ld(context(), alpha=0.25, reference=reference))
        torch.testing.assert_close(got, torch.log1p(torch.exp(-a)))


def test_one_weight_multiplies_policy_and_reference_alike():
    logp, ref_logp = (x.detach() for x in tokens())
    weight = torch.linspace(0.0, 2.0, 10, dtype=torch.float64)
    ref_weight = torch.linspace(3.0, 1.0, 10, dtype=torch.float64)
    options = {"logp": logp, "ref_logp": ref_logp, "segment": SEGMENT, "n_sequences": 4}
    alike = SequenceStats.from_tokens(**options, weight=weight)
    apart = SequenceStats.from_tokens(**options, weight=weight, ref_weight=ref_weight)
    reference_alone = SequenceStats.from_tokens(**options, ref_weight=ref_weight)
    for stats, v, w in (
        (alike, weight, weight),
        (apart, weight, ref_weight),
        (reference_alone, torch.ones(10), ref_weight),
    ):
        for got, values, by in ((stats.logp, logp, v), (stats.ref_logp, ref_logp, w)):
            want = [part.sum() for part in (values * by).split(LENGTHS.tolist())]
            torch.testing.assert_close(got, torch.stack(want))


def test_a_response_without_tokens_has_sums_of_zero():
    stats = SequenceStats.from_tokens(
        logp=torch.tensor([-1.0, -2.0]), segment=torch.tensor([0, 0]), n_sequences=3
    )
    assert stats.logp.tolist() == [-3.0, 0.0, 0.0]
    assert stats.length.tolist() == [2.0, 0.0, 0.0]
    assert stats.length.dtype == torch.float32


def test_weights_leave_kl_and_length_whole():
    ctx = context()
    stats = SequenceStats.from_tokens(
        logp=ctx.logp, kl=ctx.kl, segment=SEGMENT, n_sequences=4, weight=d2po(ctx, gamma=0.5).policy
    )
    torch.testing.assert_close(stats.kl, ctx.sequence_sum(ctx.kl))
    assert stats.length.tolist() == LENGTHS.tolist()
    assert stats.ref_logp is None


def test_documented_methods_run():
    found = doctest.testmod(token_weights)
    assert found.attempted > 5
    assert found.failed == 0
