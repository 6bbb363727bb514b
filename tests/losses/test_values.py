"""Loss values against hand-derived numbers, and TDPO against its closed-form logit gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from palate.losses import LOSSES, SequenceStats, dpo, kto, tdpo1, tdpo2

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def stats(logp: float, ref_logp: float, length: int, kl: float | None = None) -> SequenceStats:
    def one(x: float) -> Tensor:
        return torch.tensor([x], dtype=torch.float64)

    return SequenceStats(
        logp=one(logp),
        ref_logp=one(ref_logp),
        length=one(length),
        kl=None if kl is None else one(kl),
    )


# One pair: m_w = 2, m_l = -1; 4 and 2 tokens; mean log-probs -0.75 and -3.5.
CHOSEN, REJECTED = stats(-3.0, -5.0, 4), stats(-7.0, -6.0, 2)
ODDS = math.log(math.exp(-0.75) / (1 - math.exp(-0.75))) - math.log(
    math.exp(-3.5) / (1 - math.exp(-3.5))
)

# type, options, value of each term, rewards of chosen and rejected.
HAND = [
    ("dpo", {}, [softplus(-0.3)], 0.2, -0.1),
    (
        "dpo",
        {"beta": 0.5, "label_smoothing": 0.1},
        [0.9 * softplus(-1.5) + 0.1 * softplus(1.5)],
        1.0,
        -0.5,
    ),
    (
        "rdpo",
        {},
        [(0.9 * softplus(-0.3) - 0.1 * softplus(0.3)) / 0.8],
        0.2,
        -0.1,
    ),
    ("ipo_sum", {}, [(3.0 - 5.0) ** 2], 0.2, -0.1),
    ("ipo_mean", {}, [(0.5 + 0.5 - 5.0) ** 2], 0.05, -0.05),
    ("hinge", {}, [0.7], 0.2, -0.1),
    ("hinge", {"beta": 0.5}, [0.0], 1.0, -0.5),
    ("simpo", {}, [softplus(-(2.0 * (-0.75 + 3.5) - 1.0))], -1.5, -7.0),
    ("dpo_norm", {}, [softplus(-5.0)], 2.5, -2.5),
    (
        "dpo_norm",
        {"label_smoothing": 0.1},
        [0.9 * softplus(-5.0) + 0.1 * softplus(5.0)],
        2.5,
        -2.5,
    ),
    ("orpo", {}, [0.1 * softplus(-ODDS), 3.0], None, None),
    ("cpo", {}, [softplus(-0.4), 3.0], -0.3, -0.7),
    (
        "cpo",
        {"nll_weight": 0.5, "label_smoothing": 0.1},
        [0.9 * softplus(-0.4) + 0.1 * softplus(0.4), 1.5],
        -0.3,
        -0.7,
    ),
    ("cpo", {"nll_weight": 0.0}, [softplus(-0.4)], -0.3, -0.7),
    ("fdpo", {"divergence": "reverse_kl"}, [softplus(-0.3)], 0.2, -0.1),
    (
        "fdpo",
        {"divergence": "forward_kl"},
        [softplus(-0.1 * (math.e - math.exp(-2.0)))],
        0.1 * (1 - math.exp(-2.0)),
        0.1 * (1 - math.e),
    ),
    (
        "fdpo",
        {"divergence": "js"},
        [softplus(-0.1 * (softplus(1.0) - softplus(-2.0)))],
        0.1 * math.log(2 * math.exp(2.0) / (1 + math.exp(2.0))),
        0.1 * math.log(2 * math.exp(-1.0) / (1 + math.exp(-1.0))),
    ),
    (
        "fdpo",
        {"divergence": "alpha", "alpha": 0.25},
        [softplus(-0.1 * (math.exp(0.25) - math.exp(-0.5)) / 0.25)],
        0.1 * (1 - math.exp(-0.5)) / 0.25,
        0.1 * (1 - math.exp(0.25)) / 0.25,
    ),
    ("anchor", {}, [softplus(-0.2)], 0.2, -0.1),
    ("anchor", {"beta": 0.5, "delta": 1.5}, [softplus(0.5)], 1.0, -0.5),
    ("sft", {}, [3.0], -3.0, -7.0),
]


@pytest.mark.parametrize(("kind", "options", "terms", "reward_w", "reward_l"), HAND)
def test_hand_derived(kind, options, terms, reward_w, reward_l):
    output = LOSSES[kind].function(CHOSEN, REJECTED, **options)
    assert [t.losses.item() for t in output.terms] == pytest.approx(terms, rel=1e-12)
    if reward_w is not None:
        assert output.chosen_rewards.item() == pytest.approx(reward_w, rel=1e-12)
        assert output.rejected_rewards.item() == pytest.approx(reward_l, rel=1e-12)


def test_orpo_rewards_are_log_odds():
    output = LOSSES["orpo"].function(CHOSEN, REJECTED)
    p = math.exp(-0.75)
    assert output.chosen_rewards.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-12)
    assert output.statistics["logits"].item() == pytest.approx(ODDS, rel=1e-12)


def test_denominators():
    output = LOSSES["orpo"].function(CHOSEN, REJECTED)
    assert [(t.name, t.per) for t in output.terms] == [
        ("odds_ratio", "pair"),
        ("nll", "chosen_token"),
    ]
    for one in (1, torch.tensor(1), torch.tensor(0)):
        value = output.value({"pair": one, "chosen_token": one})
        assert value.item() == pytest.approx(0.1 * softplus(-ODDS) + 3.0, rel=1e-12)
    value = output.value({"pair": 8, "chosen_token": 60})
    assert value.item() == pytest.approx(0.1 * softplus(-ODDS) / 8 + 3.0 / 60, rel=1e-12)


def test_accuracies_by_hand():
    """Ratios 1 and 2: wrong for DPO; the log-probs alone, which CPO compares, are right."""
    w, x = stats(-3.0, -4.0, 2), stats(-5.0, -7.0, 2)
    assert dpo(w, x).statistics["accuracies/log_ratio"].item() == 0.0
    assert dpo(x, w).statistics["accuracies/log_ratio"].item() == 1.0
    shown = LOSSES["cpo"].function(w, x).statistics
    assert shown["accuracies/logits"].item() == 1.0
    assert shown["accuracies/log_ratio"].item() == 0.0
    for sides in ((w, REJECTED), (REJECTED, w)):
        bare = [s if s is w else SequenceStats(logp=s.logp, length=s.length) for s in sides]
        assert "accuracies/log_ratio" not in LOSSES["cpo"].function(*bare).statistics


def test_some_of_the_sequences_have_what_all_have():
    bare = SequenceStats(logp=torch.tensor([-1.0, -2.0, -3.0]), length=torch.tensor([1, 2, 3]))
    some = bare[torch.tensor([2, 0])]
    assert (some.logp.tolist(), some.length.tolist()) == ([-3.0, -1.0], [3, 1])
    assert some.ref_logp is None and some.kl is None
    full = SequenceStats(logp=bare.logp, length=bare.length, ref_logp=-bare.logp, kl=2 * bare.logp)
    assert (full[1:].ref_logp.tolist(), full[1:].kl.tolist()) == ([2.0, 3.0], [-4.0, -6.0])


def test_sft_takes_single_demonstrations():
    output = LOSSES["sft"].function(CHOSEN)
    assert output.value({"chosen_token": 4}).item() == pytest.approx(0.75)
    assert output.rejected_rewards.numel() == 0


def test_kto_by_hand():
    g = {"dtype": torch.float64}
    both = SequenceStats(
        logp=torch.tensor([-3.0, -7.0], **g),
        ref_logp=torch.tensor([-5.0, -6.0], **g),
        length=torch.tensor([4.0, 2.0], **g),
    )
    output = kto(
        both,
        desirable=torch.tensor([True, False]),
        kl_baseline=torch.tensor(0.5, **g),
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    (term,) = output.terms
    expected = [2.0 / (1 + math.exp(0.15)), 3.0 / (1 + math.exp(0.15))]
    assert term.per == "sequence"
    assert term.losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert output.chosen_rewards.tolist() == pytest.approx([0.2])
    assert output.rejected_rewards.tolist() == pytest.approx([-0.1])
    assert output.statistics["kl_baseline"].tolist() == [0.5, 0.5]
    assert output.statistics["logits"].tolist() == pytest.approx([0.15, 0.15])
    assert output.statistics["accuracies/logits"].tolist() == [1.0, 1.0]
    assert (term.name, set(output.statistics)) == (
        "kto",
        {"logits", "accuracies/logits", "kl_baseline"},
    )


def test_kto_reports_without_gradient_and_in_the_dtype_of_its_responses():
    stats = SequenceStats(
        logp=torch.tensor([-3.0, -7.0], requires_grad=True),
        ref_logp=torch.tensor([-5.0, -6.0]),
        length=torch.ones(2),
    )
    baseline = torch.tensor([0.5], dtype=torch.float64)[0]
    output = kto(stats, desirable=torch.tensor([True, False]), kl_baseline=baseline.view(1))
    reported = [output.chosen_rewards, output.rejected_rewards, *output.statistics.values()]
    assert not any(values.requires_grad for values in reported)
    assert output.terms[0].losses.requires_grad
    assert {x.dtype for x in (*reported, output.terms[0].losses)} == {torch.float32}


def test_kto_baseline_is_clamped_and_has_no_gradient():
    logp = torch.tensor([-3.0, -4.0], dtype=torch.float64)
    single = SequenceStats(logp=logp, ref_logp=logp - 0.3, length=torch.ones(2))
    desirable = torch.tensor([True, False])
    baseline = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    below = kto(single, desirable=desirable, kl_baseline=baseline)
    zero = kto(single, desirable=desirable, kl_baseline=torch.zeros(()))
    torch.testing.assert_close(below.terms[0].losses, zero.terms[0].losses)
    assert not below.terms[0].losses.requires_grad


def test_tdpo_worked_example():
    w, x = stats(2.0, 0.0, 3, kl=0.5), stats(-1.0, 0.0, 3, kl=1.5)
    expected = {
        "dpo": (dpo(w, x), 0.30, 0.554355),
        "tdpo1": (tdpo1(w, x), 0.20, 0.598139),
        "tdpo2": (tdpo2(w, x, alpha=0.5), 0.25, 0.575939),
    }
    for output, a, loss in expected.values():
        assert output.statistics["logits"].item() == pytest.approx(a, abs=1e-12)
        assert output.terms[0].losses.item() == pytest.approx(loss, abs=5e-7)
    for output in (tdpo1(w, x), tdpo2(w, x, reward="released")):
        assert output.chosen_rewards.item() == pytest.approx(0.25)
        assert output.rejected_rewards.item() == pytest.approx(0.05)
    first = tdpo1(w, x).statistics
    assert first["logits/log_ratio"].item() == pytest.approx(0.3)
    assert first["logits/kl"].item() == pytest.approx(-0.1)
    trained = tdpo2(w, x)
    assert trained.chosen_rewards.item() == pytest.approx(0.225)
    assert trained.rejected_rewards.item() == pytest.approx(-0.025)
    assert trained.statistics["logits/log_ratio"].item() == pytest.approx(0.3)
    assert trained.statistics["logits/kl"].item() == pytest.approx(-0.05)


def sequence(policy: Tensor, reference: Tensor, y: Tensor) -> SequenceStats:
    """Statistics of one response from its [T, V] logits, by the definitions."""
    log_q, log_p = policy.log_softmax(-1), reference.log_softmax(-1)
    take = y.unsqueeze(-1)
    return SequenceStats.from_tokens(
        logp=log_q.gather(-1, take).squeeze(-1),
        ref_logp=log_p.gather(-1, take).squeeze(-1),
        kl=(log_p.exp() * (log_p - log_q)).sum(-1),
        segment=torch.zeros(len(y), dtype=torch.int64),
        n_sequences=1,
    )


def test_tdpo_golden_values_from_logits():
    def f64(rows: list[list[float]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    w = sequence(f64([[1, 0, -1], [2, 0, 0.5]]), f64([[0, 0, 0], [1, 0, 0]]), torch.tensor([0, 0]))
    x = sequence(
        f64([[0, 0.5, 0], [0, -1, 1]]), f64([[0, 0, 0], [0.5, 0, 0]]), torch.tensor([1, 1])
    )
    near = {"abs": 1e-10}
    assert (w.logp - w.ref_logp).item() == pytest.approx(0.9360953259, **near)
    assert w.kl.item() == pytest.approx(0.3818170105, **near)
    assert (x.logp - x.ref_logp).item() == pytest.approx(-0.8089936758, **near)
    assert x.kl.item() == pytest.approx(0.3682583900, **near)
    for output, loss in (
        (dpo(w, x), 0.6096945795),
        (tdpo1(w, x), 0.6090758794),
        (tdpo2(w, x, alpha=0.5), 0.6093851725),
    ):
        assert output.terms[0].losses.item() == pytest.approx(loss, **near)


def perturbed_pair(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Policy and reference logits and tokens of both sides; policy away from the reference,
    because at the reference DPO, TDPO1 and TDPO2 have one and the same gradient."""
    g = torch.Generator().manual_seed(seed)

    def draw(t: int) -> Tensor:
        return torch.randn(t, 6, generator=g, dtype=torch.float64) * 2

    z_w, z_l = draw(4).requires_grad_(), draw(3).requires_grad_()
    y_w, y_l = (torch.randint(6, (t,), generator=g) for t in (4, 3))
    return z_w, draw(4), y_w, z_l, draw(3), y_l


ONE_HOT = torch.eye(6, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_closed_form_logit_gradients(seed):
    """dL/dz per token, with p the reference's, q the policy's distribution, w = sigmoid(-a)."""
    beta, alpha = 0.4, 0.7
    z_w, ref_w, y_w, z_l, ref_l, y_l = perturbed_pair(seed)
    p_w, p_l, q_w, q_l = (x.detach().softmax(-1) for x in (ref_w, ref_l, z_w, z_l))
    hot_w, hot_l = ONE_HOT[y_w], ONE_HOT[y_l]
    sides = {
        "dpo": (hot_w - q_w, hot_l - q_l),
        "tdpo1": (hot_w - p_w, hot_l - p_l),
        "tdpo2": (hot_w - q_w, hot_l - (1 - alpha) * q_l - alpha * p_l),
    }
    chosen, rejected = sequence(z_w, ref_w, y_w), sequence(z_l, ref_l, y_l)
    outputs = {
        "dpo": dpo(chosen, rejected, beta=beta),
        "tdpo1": tdpo1(chosen, rejected, beta=beta),
        "tdpo2": tdpo2(chosen, rejected, beta=beta, alpha=alpha),
    }
    values = set()
    for kind, output in outputs.items():
        got_w, got_l = torch.autograd.grad(output.value({"pair": 1}), (z_w, z_l), retain_graph=True)
        w = torch.sigmoid(-output.statistics["logits"])
        torch.testing.assert_close(got_w, -beta * w * sides[kind][0], **EXACT)
        torch.testing.assert_close(got_l, beta * w * sides[kind][1], **EXACT)
        values.add(round(w.item(), 9))
    assert len(values) == 3, "the three losses coincide: the policy was not perturbed"


def test_tdpo1_reward_is_a_centred_logit_difference():
    """m + K per token = dz_y - E_p[dz]: the policy's normaliser cancels."""
    z, ref, y, *_ = perturbed_pair(0)
    s = sequence(z, ref, y)
    dz = (z - ref).detach()
    expected = (dz.gather(-1, y.unsqueeze(-1)).squeeze(-1) - (ref.softmax(-1) * dz).sum(-1)).sum()
    torch.testing.assert_close((s.logp - s.ref_logp + s.kl).squeeze(), expected, **EXACT)


def test_all_three_coincide_at_the_reference():
    _, ref_w, y_w, _, ref_l, y_l = perturbed_pair(0)
    found = []
    for loss in (dpo, tdpo1, tdpo2):
        z_w, z_l = ref_w.clone().requires_grad_(), ref_l.clone().requires_grad_()
        value = loss(sequence(z_w, ref_w, y_w), sequence(z_l, ref_l, y_l)).value({"pair": 1})
        assert value.item() == pytest.approx(math.log(2.0), abs=1e-12)
        found.append(torch.autograd.grad(value, (z_w, z_l)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **EXACT)


def test_adding_a_constant_to_the_logits_of_a_position_changes_nothing():
    z_w, ref_w, y_w, z_l, ref_l, y_l = perturbed_pair(1)
    shift = torch.tensor([[3.0], [-50.0], [0.0], [200.0]], dtype=torch.float64)
    for loss in (dpo, tdpo1, tdpo2):
        plain = loss(sequence(z_w, ref_w, y_w), sequence(z_l, ref_l, y_l))
        moved = loss(sequence(z_w + shift, ref_w, y_w), sequence(z_l, ref_l, y_l))
        torch.testing.assert_close(moved.terms[0].losses, plain.terms[0].losses, **EXACT)
