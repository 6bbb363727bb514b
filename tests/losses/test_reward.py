"""Losses of rewards: hand-derived values, limits, gradients, and TRL's own loss."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from palate.losses import (
    PAIR_LOSSES,
    PairLabels,
    bradley_terry,
    centring,
    davidson,
    length_expert,
    length_scaled,
    likelihood,
    magnitude,
    plackett_luce,
    rao_kupper,
    shortcut_weights,
)

NONE = PairLabels()
W = torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64)
L = torch.tensor([0.5, 0.5, -3.0], dtype=torch.float64)
TIE = torch.tensor([False, True, False])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_values() -> None:
    want = [-math.log(sigmoid(d)) for d in (0.5, -1.0, 6.0)]
    assert bradley_terry(W, L, NONE).tolist() == pytest.approx(want)
    at_start = bradley_terry(torch.zeros(1), torch.zeros(1), NONE)
    assert at_start.item() == pytest.approx(math.log(2))


def test_margins_ties_votes_and_smoothing() -> None:
    labels = PairLabels(
        margin=torch.tensor([1.0, 7.0, math.nan]),
        probability=torch.tensor([math.nan, 0.9, 0.75]),
        tie=TIE,
    )
    found = bradley_terry(W, L, labels, label_smoothing=0.1).tolist()

    def loss(a: float, p: float) -> float:
        p = 0.9 * p + 0.1 * (1 - p)
        return -p * math.log(sigmoid(a)) - (1 - p) * math.log(sigmoid(-a))

    assert found == pytest.approx([loss(-0.5, 1.0), loss(-1.0, 0.5), loss(6.0, 0.75)])


def test_rao_kupper_probabilities_sum_to_one_and_have_the_stated_tie_rate() -> None:
    some = PairLabels(tie=torch.ones(3, dtype=torch.bool))
    win, loss = (torch.exp(-rao_kupper(a, b, NONE, threshold=0.7)) for a, b in ((W, L), (L, W)))
    draw = torch.exp(-rao_kupper(W, L, some, threshold=0.7))
    torch.testing.assert_close(win + loss + draw, torch.ones_like(W))
    level = rao_kupper(W[:1], W[:1], PairLabels(tie=torch.tensor([True])), threshold=0.7)
    assert math.exp(-level.item()) == pytest.approx(math.tanh(0.35))


def test_davidson_probabilities_sum_to_one_and_have_the_stated_tie_rate() -> None:
    some = PairLabels(tie=torch.ones(3, dtype=torch.bool))
    win, loss = (torch.exp(-davidson(a, b, NONE, tie_strength=2.0)) for a, b in ((W, L), (L, W)))
    draw = torch.exp(-davidson(W, L, some, tie_strength=2.0))
    torch.testing.assert_close(win + loss + draw, torch.ones_like(W))
    want = [math.exp(w) for w in W.tolist()]
    other = [math.exp(x) for x in L.tolist()]
    shares = [w / (w + x + 2 * math.sqrt(w * x)) for w, x in zip(want, other, strict=True)]
    assert win.tolist() == pytest.approx(shares)
    level = davidson(W[:1], W[:1], PairLabels(tie=torch.tensor([True])), tie_strength=2.0)
    assert math.exp(-level.item()) == pytest.approx(0.5)


def test_of_a_batch_only_ties_are_draws() -> None:
    """The pairs that are none keep the loss of a win; values by hand, in float64 throughout."""
    labels = PairLabels(tie=TIE)
    for d, tie, kupper, davids in zip(
        (W - L).tolist(),
        TIE.tolist(),
        rao_kupper(W, L, labels).tolist(),
        davidson(W, L, labels, tie_strength=0.3).tolist(),
        strict=True,
    ):
        win, loss = sigmoid(d - 0.5), sigmoid(-d - 0.5)
        shares = [math.exp(d / 2), math.exp(-d / 2), 0.3]
        if tie:
            assert kupper == pytest.approx(-math.log(1 - win - loss), rel=1e-12)
            assert davids == pytest.approx(-math.log(shares[2] / sum(shares)), rel=1e-12)
        else:
            assert kupper == pytest.approx(-math.log(win), rel=1e-12)
            assert davids == pytest.approx(-math.log(shares[0] / sum(shares)), rel=1e-12)
    # Unless told otherwise a draw of equals has probability 1 / 3.
    level = davidson(W[:1], W[:1], PairLabels(tie=torch.tensor([True])))
    assert level.item() == pytest.approx(math.log(3), rel=1e-12)
    third = rao_kupper(W, L, PairLabels(tie=TIE), threshold=0.3)[1].item()
    assert third == pytest.approx(-math.log(1 - sigmoid(-1.3) - sigmoid(0.7)), rel=1e-12)


@pytest.mark.parametrize("options", [{"threshold": 1e-9}, {"tie_strength": 1e-12}])
def test_without_ties_both_become_bradley_terry(options: dict[str, float]) -> None:
    own = rao_kupper if "threshold" in options else davidson
    torch.testing.assert_close(own(W, L, NONE, **options), bradley_terry(W, L, NONE))


def test_plackett_luce_is_the_probability_of_the_order() -> None:
    r = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    every = torch.ones(1, 3, dtype=torch.bool)
    total = 0.0
    for order in permutations(range(3)):
        rank = torch.empty(1, 3, dtype=torch.long)
        rank[0, list(order)] = torch.arange(1, 4)
        left, p = [math.exp(x) for x in r[0].tolist()], 1.0
        for i, item in enumerate(order):
            p *= left[item] / sum(left[j] for j in order[i:])
        assert math.exp(-plackett_luce(r, rank, every).item()) == pytest.approx(p)
        total += p
    assert total == pytest.approx(1.0)


def test_two_items_are_bradley_terry_and_padding_is_nothing() -> None:
    r = torch.stack([W, L, torch.full_like(W, 99.0)], 1)
    listed = torch.tensor([[True, True, False]] * 3)
    # Padding ranked first, tied, or last: only the last would be among those left.
    for padding in (0, 1, 9):
        rank = torch.tensor([[1, 2, padding]] * 3)
        for ties in ("unordered", "breslow"):
            two = plackett_luce(r, rank, listed, ties=ties)
            torch.testing.assert_close(two, bradley_terry(W, L, NONE))
            nothing = plackett_luce(r, rank, torch.zeros_like(listed), ties=ties)
            assert nothing.tolist() == [0.0, 0.0, 0.0]


def test_tied_ranks() -> None:
    r = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    rank, every = torch.tensor([[1, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    unordered = plackett_luce(r, rank, every)
    want = -math.log(sigmoid(2.0)) - math.log(sigmoid(1.0))
    assert unordered.item() == pytest.approx(want)
    both = math.log(math.e + 1 + math.exp(-1))
    breslow = plackett_luce(r, rank, every, ties="breslow")
    assert breslow.item() == pytest.approx(2 * both - 1.0)
    # All tied: nothing is known, or all are pulled together.
    (still,) = torch.autograd.grad(plackett_luce(r, torch.ones_like(rank), every).sum(), r)
    assert still.abs().max().item() == 0.0
    together = plackett_luce(r, torch.ones_like(rank), every, ties="breslow")
    (pull,) = torch.autograd.grad(together.sum(), r)
    assert pull[0, 0] > 0 > pull[0, 2]
    with pytest.raises(ValueError, match="no ties 'efron'; there are unordered, breslow"):
        plackett_luce(r, rank, every, ties="efron")  # type: ignore[arg-type]


def test_regularisers() -> None:
    assert centring(W, L).tolist() == pytest.approx([2.25, 0.0, 0.0])
    assert magnitude(W, L).tolist() == pytest.approx([0.625, 0.25, 9.0])
    n = torch.tensor([1, 9, 99])
    assert length_scaled(W, n).tolist() == pytest.approx(
        [1 / math.log(2), -0.5 / math.log(10), 3 / math.log(100)], rel=1e-12
    )
    # An empty response counts as one token: log 0 is not finite.
    for lengths in (n, torch.tensor([0, 9, 99])):
        assert length_expert(W, lengths, strength=0.5).tolist() == pytest.approx(
            [1.0, -0.5 + 0.5 * math.log(9), 3 + 0.5 * math.log(99)], rel=1e-12
        )
    assert likelihood(torch.tensor([-10.0]), beta=0.1).item() == pytest.approx(
        -math.log(sigmoid(-1.0))
    )


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_gradients_of_pairs(name: str) -> None:
    labels = PairLabels(
        margin=torch.tensor([0.3, 0.1, math.nan]),
        probability=torch.tensor([math.nan, 0.5, 0.8]),
        tie=TIE,
    )
    w, x = W.clone().requires_grad_(), L.clone().requires_grad_()
    assert gradcheck(lambda a, b: PAIR_LOSSES[name](a, b, labels), (w, x))


@pytest.mark.parametrize("name", sorted(PAIR_LOSSES))
def test_losses_keep_the_dtype_of_the_rewards(name: str) -> None:
    wide = torch.tensor([0.3, 0.5, math.nan], dtype=torch.float64)
    labels = PairLabels(margin=wide, probability=wide, tie=TIE)
    assert PAIR_LOSSES[name](W.float(), L.float(), labels).dtype == torch.float32
    assert PAIR_LOSSES[name](W, L, labels).dtype == torch.float64


@pytest.mark.parametrize("ties", ["unordered", "breslow"])
def test_gradients_of_lists(ties: str) -> None:
    torch.manual_seed(0)
    r = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rank = torch.tensor([[1, 2, 2, 3], [4, 3, 2, 1], [1, 2, 9, 9]])
    listed = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
    assert gradcheck(lambda a: plackett_luce(a, rank, listed, ties=ties), (r,))


def test_gradients_of_regularisers() -> None:
    n = torch.tensor([1, 9, 99])
    w, x = W.clone().requires_grad_(), L.clone().requires_grad_()
    assert gradcheck(lambda a, b: centring(a, b) + magnitude(a, b), (w, x))
    assert gradcheck(
        lambda a: length_scaled(a, n) + length_expert(a, n, strength=0.2) + likelihood(a, beta=0.1),
        (w,),
    )


@pytest.mark.parametrize("centre", [None, 0.01])
@pytest.mark.parametrize("margin", [False, True])
def test_as_trl_has_it(centre: float | None, margin: bool) -> None:
    """TRL's own `compute_loss`, on rewards that a stand-in model returns."""
    trainer = pytest.importorskip("trl").RewardTrainer
    torch.manual_seed(1)
    rewards = torch.randn(10, 1)
    margins = torch.rand(5)

    class Model:
        training = False

        def __call__(self, **_: object) -> object:
            return SimpleNamespace(logits=rewards)

    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    stand_in = SimpleNamespace(
        model=Model(),
        args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=same,
        _metrics=metrics,
        _total_train_tokens=0,
    )
    inputs = {"margin": margins} if margin else {}
    theirs = trainer.compute_loss(stand_in, Model(), inputs)
    chosen, rejected = rewards[:5, 0], rewards[5:, 0]
    labels = PairLabels(margin=margins if margin else None)
    ours = bradley_terry(chosen, rejected, labels).mean()
    if centre is not None:
        ours = ours + centre * centring(chosen, rejected).mean()
    torch.testing.assert_close(ours, theirs)


def test_shortcut_weights() -> None:
    margin = torch.tensor([2.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    for temperature in (1.0, 0.25, 8.0):
        raw = [sigmoid(-m / temperature) for m in margin.tolist()]
        want = [len(raw) * value / sum(raw) for value in raw]
        assert shortcut_weights(margin, temperature=temperature).tolist() == pytest.approx(want)
    # Where text alone is right about everything by far, the least sure pairs still count most.
    sure = shortcut_weights(torch.tensor([900.0, 1000.0, 901.0]))
    assert sure.tolist() == pytest.approx([3 / (1 + math.exp(-1)), 0.0, 3 / (1 + math.e)], abs=1e-6)
    assert shortcut_weights(torch.zeros(0)).shape == (0,)
