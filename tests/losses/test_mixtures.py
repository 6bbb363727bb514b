"""Pair weights, mixtures, and what is refused."""

from __future__ import annotations

import pytest
import torch

from loss_cases import (
    ALL_PAIR_LOSSES,
    MEMBERS,
    call,
    gradients,
    leaves,
    random_pairs,
    random_stats,
    total,
)
from palate.losses import (
    Member,
    SequenceStats,
    anchor,
    apply_weight,
    combined_needs,
    compute,
    compute_unpaired,
    dpo,
    fdpo,
    kto,
    mixture,
    tdpo1,
    tdpo2,
)

CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@ALL_PAIR_LOSSES
def test_pair_weights_multiply_every_term(member):
    chosen, rejected = random_pairs(3)
    weight = torch.tensor([0.0, 1.0, 2.0])
    weighted = compute([member], chosen, rejected, weight=weight)
    index = torch.tensor([1, 2, 2])
    repeated = call(member, chosen[index], rejected[index])
    torch.testing.assert_close(total(weighted), total(repeated), **CLOSE)
    assert gradients(weighted, chosen, rejected)[0][0] == 0.0
    torch.testing.assert_close(
        weighted.chosen_rewards, call(member, chosen, rejected).chosen_rewards
    )


def test_weights_change_no_dtype_and_may_be_left_out():
    chosen, rejected = random_pairs(3, dtype=torch.float32)
    plain = compute([Member(type="dpo")], chosen, rejected)
    ones = torch.ones(3, dtype=torch.float64)
    weighted = compute([Member(type="dpo")], chosen, rejected, weight=ones)
    for output in (plain, weighted):
        assert output.terms[0].losses.dtype == torch.float32
        torch.testing.assert_close(output.terms[0].losses, dpo(chosen, rejected).terms[0].losses)


def test_unpaired_weights():
    stats = random_stats(3, seed=1)
    options = {"desirable": torch.tensor([True, False, True]), "kl_baseline": torch.zeros(())}
    weight = torch.tensor([0.5, 1.0, 2.0])
    got = compute_unpaired(Member(type="kto", weight=3.0), stats, **options, weight=weight)
    plain = kto(stats, **options)
    torch.testing.assert_close(got.terms[0].losses, 3.0 * weight * plain.terms[0].losses)
    torch.testing.assert_close(apply_weight(plain, 3 * weight).terms[0].losses, got.terms[0].losses)
    alone = compute_unpaired(Member(type="kto"), stats, **options)
    torch.testing.assert_close(alone.terms[0].losses, plain.terms[0].losses)


def test_mixture_is_the_weighted_sum():
    pair = random_pairs(4)
    members = [
        Member(type="sft", weight=0.5),
        Member(type="tdpo2", options={"alpha": 0.3}, weight=2.0),
        Member(type="dpo", options={"beta": 0.5}),
        Member(type="dpo", options={"beta": 0.2}, weight=0.1),
    ]
    output = mixture(members, *pair)
    parts = [call(m, *pair) for m in members]
    expected = sum(m.weight * total(part) for m, part in zip(members, parts, strict=True))
    torch.testing.assert_close(total(output), expected, **CLOSE)
    summed = [
        sum(m.weight * g for m, g in zip(members, gs, strict=True))
        for gs in zip(*(gradients(part, *pair) for part in parts), strict=True)
    ]
    for got, want in zip(gradients(output, *pair), summed, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    assert [t.name for t in output.terms] == ["sft/sft", "tdpo2/tdpo2", "dpo.2/dpo", "dpo.3/dpo"]
    # The first member that ranks speaks for the mixture.
    torch.testing.assert_close(output.chosen_rewards, parts[1].chosen_rewards)
    torch.testing.assert_close(output.statistics["logits"], parts[1].statistics["logits"])
    torch.testing.assert_close(output.statistics["dpo.3/logits"], parts[3].statistics["logits"])


def test_dpo_with_half_an_anchor_on_contrasted_pairs_is_half_of_mdpo():
    """arXiv:2406.11839: L_DPO + L_CoPO + L_AncPO, each a mean over the same prompts."""
    beta, delta = 0.3, 0.4
    g = torch.Generator().manual_seed(5)
    w, x, y = (torch.randn(4, generator=g, dtype=torch.float64) for _ in range(3))
    published = -(
        torch.log(torch.sigmoid(beta * (w - x)))
        + torch.log(torch.sigmoid(beta * (w - y)))
        + torch.log(torch.sigmoid(beta * w - delta))
    ).mean()

    def side(*ratios):
        m = torch.cat(ratios)
        return SequenceStats(logp=m - 50.0, ref_logp=-50.0 + 0 * m, length=1 + 0 * m)

    # Each pair once with its rejected response, once with the chosen one under another image.
    members = [
        Member(type="dpo", options={"beta": beta}),
        Member(type="anchor", options={"beta": beta, "delta": delta}, weight=0.5),
    ]
    output = mixture(members, side(w, w), side(x, y))
    assert [t.name for t in output.terms] == ["dpo/dpo", "anchor/anchor"]
    both = total(output, {"pair": 8.0})
    # The anchor is on every pair, so that it counts half beside the mean of the two others.
    torch.testing.assert_close(both, published / 2, **CLOSE)


def test_an_anchor_beside_tdpo_leaves_its_rewards_and_kl():
    pair = random_pairs(4)
    held = Member(type="anchor", options={"delta": 0.5})
    output = mixture([held, Member(type="tdpo2")], *pair)
    torch.testing.assert_close(output.chosen_rewards, tdpo2(*pair).chosen_rewards)
    one, two, both = (gradients(o, *pair) for o in (anchor(*pair, delta=0.5), tdpo2(*pair), output))
    for a, b, c in zip(one, two, both, strict=True):
        torch.testing.assert_close(c, a + b, **CLOSE)
    # It knows nothing of the rejected response: the gradient there is TDPO's alone.
    assert not one[2].any() and not one[3].any()


def test_one_member_keeps_its_names_and_two_have_their_own():
    pair = random_pairs(4)
    (alone,) = mixture([Member(type="dpo", weight=0.5)], *pair).terms
    assert alone.name == "dpo"
    two = mixture([Member(type="dpo"), Member(type="sft")], *pair)
    assert [term.name for term in two.terms] == ["dpo/dpo", "sft/sft"]
    expected = total(dpo(*pair)) + total(call(Member(type="sft"), *pair))
    torch.testing.assert_close(total(two), expected, **CLOSE)


def test_needs_of_a_mixture_are_the_union():
    needs = combined_needs([Member(type="simpo"), Member(type="tdpo2")])
    assert needs.reference and needs.kl and needs.length
    assert needs.kl_gradient == {"rejected"}
    assert not combined_needs([Member(type="sft"), Member(type="cpo")]).reference


def test_refusals():
    pair = random_pairs()
    desirable = torch.tensor([True, True, False])
    with pytest.raises(ValueError, match="no loss 'dop'"):
        compute([Member(type="dop")], *pair)
    with pytest.raises(ValueError, match="single responses"):
        compute([Member(type="kto"), Member(type="dpo")], *pair)
    with pytest.raises(ValueError, match="takes pairs"):
        compute_unpaired(
            Member(type="dpo"), pair[0], desirable=desirable, kl_baseline=torch.zeros(())
        )
    with pytest.raises(ValueError, match="at least one"):
        compute([], *pair)
    with pytest.raises(ValueError, match="no divergence 'kl'; there are reverse_kl, forward"):
        fdpo(*pair, divergence="kl")
    with pytest.raises(ValueError, match="has no alpha"):
        fdpo(*pair, divergence="js", alpha=0.5)
    with pytest.raises(ValueError, match="no reward 'paper'; there are trained, released"):
        tdpo2(*pair, reward="paper")
    with pytest.raises(TypeError):
        tdpo1(*pair, alpha=0.5)


def test_losses_reach_their_leaves_in_float32():
    chosen, rejected = random_pairs(dtype=torch.float32)
    for member in MEMBERS:
        output = call(member, chosen, rejected)
        assert all(t.losses.dtype == torch.float32 for t in output.terms)
        assert all(v.dtype == torch.float32 for v in output.statistics.values())
        assert not any(v.requires_grad for v in output.statistics.values())
    assert len(leaves(chosen, rejected)) == 4
