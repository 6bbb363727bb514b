"""Properties that every registered loss has, checked over the whole table."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loss_cases import (
    ALL_PAIR_LOSSES,
    ALL_RANKING_LOSSES,
    MEMBERS,
    call,
    gradients,
    random_pairs,
    random_stats,
    total,
)
from palate.losses import (
    LOSSES,
    TOKEN_WEIGHTS,
    LossOutput,
    Member,
    SequenceStats,
    dpo,
    fdpo,
    kto,
    rdpo,
    tdpo1,
    tdpo2,
)
from palate.losses.divergences import EXPONENT_LIMIT
from palate.recipes import losses as recipes

PAIR_TYPES = {name for name, spec in LOSSES.items() if spec.inputs == "pair"}
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def swapped(member: Member) -> bool:
    """Whether a(l, w) = -a(w, l): not with a target margin."""
    return member.type != "simpo" or member.options.get("gamma") == 0.0


# --- the table ---------------------------------------------------------------------------------


def test_every_pair_loss_has_a_case():
    assert {m.type for m in MEMBERS} == PAIR_TYPES


def recipe_classes(union) -> dict[str, type]:
    found = {}
    for cls in union.__args__[0].__args__:
        for kind in cls.model_fields["type"].annotation.__args__:
            found[kind] = cls
    return found


def keyword_only(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_recipe_fields_are_the_keyword_arguments(kind):
    cls = recipe_classes(recipes.SingleLoss)[kind]
    fields = {
        name: (inspect.Parameter.empty if field.is_required() else field.default)
        for name, field in cls.model_fields.items()
        if name not in {"type", "weight"}
    }
    arguments = keyword_only(LOSSES[kind].function)
    for runtime in ("desirable", "kl_baseline"):
        arguments.pop(runtime, None)
    assert arguments == fields


def test_table_and_recipes_agree():
    assert set(recipe_classes(recipes.SingleLoss)) == set(LOSSES)
    assert {k for k, v in LOSSES.items() if not v.needs.reference} == recipes.REFERENCE_FREE
    assert {k for k, v in LOSSES.items() if v.token_weights} == recipes.TOKEN_WEIGHTED


@pytest.mark.parametrize("kind", sorted(TOKEN_WEIGHTS))
def test_token_weight_fields_are_the_keyword_arguments(kind):
    cls = recipe_classes(recipes.TokenWeights)[kind]
    fields = {name: f.default for name, f in cls.model_fields.items() if name != "type"}
    assert keyword_only(TOKEN_WEIGHTS[kind].function) == fields


@ALL_PAIR_LOSSES
def test_needs_are_true(member):
    needs = member.spec.needs
    chosen, rejected = random_pairs()
    found = dict(
        zip(
            ["logp_w", "kl_w", "logp_l", "kl_l"],
            gradients(call(member, chosen, rejected), chosen, rejected),
            strict=True,
        )
    )
    assert found["logp_w"].abs().min() > 0
    assert (found["logp_l"].abs().min() > 0) == member.spec.ranks
    zero_alpha = member.options.get("alpha") == 0.0
    for side, key in (("chosen", "kl_w"), ("rejected", "kl_l")):
        carries = side in needs.kl_gradient and not zero_alpha
        assert bool(found[key].abs().max() > 0) == carries, side

    def without(field: str) -> tuple[SequenceStats, SequenceStats]:
        return tuple(dataclasses.replace(s, **{field: None}) for s in (chosen, rejected))

    for field, needed in (("ref_logp", needs.reference), ("kl", needs.kl)):
        if needed:
            with pytest.raises(ValueError, match=field):
                call(member, *without(field))
        else:
            plain = total(call(member, chosen, rejected))
            torch.testing.assert_close(total(call(member, *without(field))), plain)

    longer = dataclasses.replace(rejected, length=rejected.length + 1)
    same = torch.equal(total(call(member, chosen, longer)), total(call(member, chosen, rejected)))
    assert same != needs.length


@ALL_PAIR_LOSSES
def test_the_first_term_is_named_and_nothing_reported_has_a_gradient(member):
    output = call(member, *random_pairs())
    assert output.terms[0].name == {"orpo": "odds_ratio"}.get(member.type, member.type)
    assert output.terms[0].losses.requires_grad
    reported = [output.chosen_rewards, output.rejected_rewards, *output.statistics.values()]
    assert not any(values.requires_grad for values in reported)


# --- derivatives -------------------------------------------------------------------------------


@ALL_PAIR_LOSSES
@pytest.mark.parametrize("seed", range(3))
def test_gradcheck(member, seed):
    chosen, rejected = random_pairs(seed=seed)
    # A stopped gradient differs from the finite difference on purpose; test_needs_are_true has it.
    sides = member.spec.needs.kl_gradient
    chosen = dataclasses.replace(chosen, kl=chosen.kl.detach().requires_grad_("chosen" in sides))
    rejected = dataclasses.replace(
        rejected, kl=rejected.kl.detach().requires_grad_("rejected" in sides)
    )
    names = [(0, "logp"), (1, "logp")] if member.spec.ranks else [(0, "logp")]
    names += [(i, "kl") for i, side in enumerate(("chosen", "rejected")) if side in sides]
    pair = (chosen, rejected)

    def function(*values):
        moved = list(pair)
        for (i, field), value in zip(names, values, strict=True):
            moved[i] = dataclasses.replace(moved[i], **{field: value})
        return tuple(term.losses for term in call(member, *moved).terms)

    inputs = [getattr(pair[i], field) for i, field in names]
    assert torch.autograd.gradcheck(function, inputs)


def test_gradcheck_kto():
    stats = random_stats(5, seed=3)
    desirable = torch.tensor([True, False, True, True, False])
    options = {"desirable": desirable, "kl_baseline": torch.tensor(0.7), "undesirable_weight": 1.5}

    def function(logp):
        return kto(dataclasses.replace(stats, logp=logp), **options).terms[0].losses

    assert torch.autograd.gradcheck(function, stats.logp)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_gradcheck_across_the_exponent_limit(divergence):
    """The tangent continues value and slope."""
    edge = EXPONENT_LIMIT / (1.0 if divergence == "forward_kl" else 0.5)
    zero = torch.zeros(2, dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    chosen = SequenceStats(logp=zero - edge, ref_logp=zero, length=one)
    rewards = []
    for step in (-1e-6, 0.0, 1e-6):
        moved = dataclasses.replace(chosen, logp=chosen.logp + step)
        rewards.append(fdpo(moved, chosen, divergence=divergence).chosen_rewards)
    left, right = rewards[1] - rewards[0], rewards[2] - rewards[1]
    assert (left > 0).all()
    torch.testing.assert_close(left, right, rtol=1e-5, atol=0)


# --- symmetries --------------------------------------------------------------------------------


@ALL_RANKING_LOSSES
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_swapping_the_sides_negates_the_trained_argument(member, seed):
    chosen, rejected = random_pairs(seed=seed)
    there = call(member, chosen, rejected).statistics["logits"]
    back = call(member, rejected, chosen).statistics["logits"]
    if swapped(member):
        torch.testing.assert_close(there, -back, **CLOSE)
    else:
        torch.testing.assert_close(there + back, torch.full_like(there, -2.0), **CLOSE)


@ALL_RANKING_LOSSES
def test_reward_margin_is_the_trained_argument(member):
    output = call(member, *random_pairs())
    if member.options.get("reward") == "released":
        member = dataclasses.replace(member, options={**member.options, "reward": "trained"})
        output = call(member, *random_pairs())
    target = 1.0 if not swapped(member) else 0.0
    margin = output.chosen_rewards - output.rejected_rewards - target
    torch.testing.assert_close(margin, output.statistics["logits"], **CLOSE)
    accuracy = output.statistics["accuracies/logits"]
    assert torch.equal(accuracy, (output.statistics["logits"] > 0).double())


@ALL_PAIR_LOSSES
@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_permuting_the_pairs_permutes_the_losses(member, seed, order):
    chosen, rejected = random_pairs(5, seed=seed)
    plain = call(member, chosen, rejected)
    index = torch.tensor(order)
    moved = call(member, chosen[index], rejected[index])
    for term, other in zip(plain.terms, moved.terms, strict=True):
        torch.testing.assert_close(other.losses, term.losses[index], **CLOSE)
    torch.testing.assert_close(moved.chosen_rewards, plain.chosen_rewards[index], **CLOSE)


@ALL_PAIR_LOSSES
def test_micro_batches_add_up_to_the_step(member):
    chosen, rejected = random_pairs(5)
    counts = {"pair": 5.0, "chosen_token": float(chosen.length.sum())}
    whole = call(member, chosen, rejected).value(counts)
    parts = [call(member, chosen[s], rejected[s]).value(counts) for s in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(sum(parts), whole, **CLOSE)


@pytest.mark.parametrize("kind", sorted(k for k in PAIR_TYPES if LOSSES[k].needs.reference))
@given(shift=st.floats(-50, 50))
@settings(max_examples=10, deadline=None)
def test_only_ratios_to_the_reference_count(kind, shift):
    chosen, rejected = random_pairs()
    member = next(m for m in MEMBERS if m.type == kind)
    moved = dataclasses.replace(chosen, logp=chosen.logp + shift, ref_logp=chosen.ref_logp + shift)
    torch.testing.assert_close(
        total(call(member, moved, rejected)), total(call(member, chosen, rejected)), **CLOSE
    )


# --- relations between losses ------------------------------------------------------------------


AT_REFERENCE = ["dpo", "dpo_norm", "tdpo1", "tdpo2", "fdpo"]


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.type in AT_REFERENCE])
def test_ln_2_where_policy_is_reference(member):
    sides = [
        dataclasses.replace(s, logp=s.ref_logp, kl=torch.zeros_like(s.logp)) for s in random_pairs()
    ]
    output = call(member, *sides)
    losses = output.terms[0].losses
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2.0)), **CLOSE)
    assert not output.chosen_rewards.any()
    # Nothing is ranked yet: every pair is a tie, half right.
    assert output.statistics["accuracies/logits"].tolist() == [0.5] * 3
    assert output.statistics["accuracies/log_ratio"].tolist() == [0.5] * 3


def assert_same(one: LossOutput, other: LossOutput, chosen, rejected):
    torch.testing.assert_close(total(one), total(other), **CLOSE)
    for g, h in zip(
        gradients(one, chosen, rejected), gradients(other, chosen, rejected), strict=True
    ):
        torch.testing.assert_close(g, h, **CLOSE)


def test_tdpo2_with_alpha_0_is_dpo():
    pair = random_pairs()
    assert_same(tdpo2(*pair, alpha=0.0), dpo(*pair), *pair)


def test_tdpo2_with_alpha_1_has_the_value_but_not_the_gradient_of_tdpo1():
    pair = random_pairs()
    one, two = tdpo1(*pair), tdpo2(*pair, alpha=1.0)
    torch.testing.assert_close(total(two), total(one), **CLOSE)
    g1, g2 = gradients(one, *pair), gradients(two, *pair)
    for i in (0, 2, 3):
        torch.testing.assert_close(g2[i], g1[i], **CLOSE)
    assert g1[1].abs().min() > 0
    assert not g2[1].any()


def test_alpha_divergence_spans_reverse_to_forward_kl():
    pair = random_pairs()
    assert_same(fdpo(*pair, divergence="reverse_kl"), dpo(*pair), *pair)
    for alpha, limit in ((1e-6, "reverse_kl"), (1 - 1e-6, "forward_kl")):
        near = total(fdpo(*pair, divergence="alpha", alpha=alpha))
        torch.testing.assert_close(near, total(fdpo(*pair, divergence=limit)), atol=1e-5, rtol=0)
    half = fdpo(*pair, divergence="alpha")
    assert_same(half, fdpo(*pair, divergence="alpha", alpha=0.5), *pair)


def test_rdpo_is_unbiased_under_flipped_labels():
    chosen, rejected = random_pairs()
    e = 0.3
    kept = rdpo(chosen, rejected, label_smoothing=e).terms[0].losses
    flipped = rdpo(rejected, chosen, label_smoothing=e).terms[0].losses
    clean = dpo(chosen, rejected).terms[0].losses
    torch.testing.assert_close((1 - e) * kept + e * flipped, clean, **CLOSE)


def test_cdpo_averages_over_flipped_labels():
    chosen, rejected = random_pairs()
    smooth = dpo(chosen, rejected, label_smoothing=0.2).terms[0].losses
    mean = 0.8 * dpo(chosen, rejected).terms[0].losses + 0.2 * dpo(rejected, chosen).terms[0].losses
    torch.testing.assert_close(smooth, mean, **CLOSE)
