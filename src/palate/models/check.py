"""Start-of-run checks: does the model run as it is thought to here, and in which layouts?

A layout is refused for what the model is made of (`palate.models.structure`), or because its
numbers differ from plain ones by more than rounding explains. How much that is, is measured on the
model itself, in the run's dtype (`palate.models.rounding`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from palate.data.items import Item, PairLabel, Tokens
from palate.data.layouts import Layout
from palate.errors import ModelError, PalateError, in_one_line
from palate.kernels import Head
from palate.models.attention import Windows
from palate.models.limits import positions_of
from palate.models.model import Model, evaluating
from palate.models.readings import Readings, readings_of
from palate.models.rounding import rounded_otherwise
from palate.models.structure import backbone_of, has_experts, sharing_obstacle
from palate.testing import full_logits

if TYPE_CHECKING:
    from palate.models.pictures import Pictures

MEAN_TOLERANCE = {
    torch.float64: 1e-7,
    torch.float32: 2e-4,
    torch.bfloat16: 0.06,
    torch.float16: 0.01,
}
"""Accepted mean difference of log-probs that one layout gives twice, nats a token."""
SHORT_TOKENS = 32
"""Of the checks that need no long rows."""
UNSEEN_TOKENS = 256
"""Reach of what a model without known windows may hide: GPT-Neo's local layers see so far."""
BEYOND_TOKENS = 64
"""How far past the largest window the check goes."""
BATCH_FACTOR, ROUNDING_FACTOR = 3.0, 0.75
"""A mean difference is accepted up to so many times that of rows alone and in a batch, or of
another rounding of every layer, which moves more than another layout does."""
SEQUENCE_FACTOR = 4.0
"""That, of the worst sequence: few tokens scatter."""
LEAK_FACTOR = 4.0
HEAD_TILE = 2048
"""Words of the vocabulary whose logits are compared at a time."""
LEAST_ROUNDING = 1e-6
"""Float32 numbers of some nats lie that far apart: where a model's numbers hardly vary, rounding
each layer otherwise moves them less than adding up in another order does."""


@dataclass(frozen=True)
class LayoutCheck:
    """The shared layout against the plain one.

    Attributes:
        max_abs_difference: of the numbers compared; infinite where none were.
        ok: rounding explains it.
        reason: why not, in words; None when ok.
        tokens: of the longest sequence that was run; 0 where none was.
        rounding: mean difference that rounding explains.
        unit: of the differences.
    """

    max_abs_difference: float
    ok: bool
    reason: str | None
    tokens: int = 0
    rounding: float = 0.0
    unit: str = "nats"

    @property
    def words(self) -> str:
        """One clause for people."""
        if not self.ok:
            return f"the shared layout is not exact for this model: {self.reason}"
        return (
            f"the shared layout agrees with plain to {self.max_abs_difference:.2g} {self.unit}, in "
            f"sequences of up to {self.tokens} tokens"
        )


def check_tokens(windows: Windows, longest: int | None, positions: int | None) -> int:
    """Tokens of the longest sequence that the check of the layout runs.

    Args:
        longest: sequence of the run; None where it is not known.
        positions: that the model has; None without a table of them.
    """
    finite = [window for window in windows.values() if window is not None]
    reach = max(finite, default=UNSEEN_TOKENS) + BEYOND_TOKENS
    limits = [limit for limit in (longest, positions) if limit is not None]
    # Multiples, so that runs on other data need no check of their own.
    wanted = min([reach, *(-(-limit // BEYOND_TOKENS) * BEYOND_TOKENS for limit in limits)])
    return wanted if positions is None else min(wanted, positions)


def check_pairs(
    vocabulary: int, tokens: int, seed: int = 0, pictures: Pictures | None = None
) -> list[Item]:
    """Three pairs of random tokens that show what a wrong layout does.

    The long one's rejected response stands far behind the places that its positions say, and sees
    half of what its model can reach. The short ones share a row; responses of one token are among
    them. A model that sees has a fourth, with two images in its prompt and as many tokens behind
    them.
    """
    generator = torch.Generator().manual_seed(seed)
    marks = frozenset() if pictures is None else pictures.reserved

    def ids(n: int, parity: int) -> tuple[int, ...]:
        top = max(vocabulary // 2, 3)
        halves = torch.randint(2, top, (max(n, 1),), generator=generator)
        # Responses of a pair never begin alike, so that other tokens make no other tree.
        drawn = (2 * halves + parity).tolist()
        free = next(token for token in range(4 + parity, vocabulary, 2) if token not in marks)
        return tuple(free if token in marks else token for token in drawn)

    few = min(5, tokens // 2)
    sizes: tuple[tuple[int, int, int], ...] = (
        (tokens - tokens // 2, tokens // 2, tokens // 4),
        (few, 1, min(9, tokens - few)),
        (few, min(4, tokens - few), 2),
    )
    prompts = [Tokens(ids(prompt, 0)) for prompt, _, _ in sizes]
    if pictures is not None:
        prompts.append(pictures.example(ids(few, 0), ids(few, 1), ids(tokens - tokens // 2, 0)))
        sizes = (*sizes, sizes[0])
    return [
        Item.of(prompt, ids(chosen, 0), ids(rejected, 1), label=PairLabel(), id=f"check-{k}")
        for k, (prompt, (_, chosen, rejected)) in enumerate(zip(prompts, sizes, strict=True))
    ]


def start_check(model: Model) -> None:
    """Asserts that the plain layout gives the model's own numbers, padding and positions included.

    Raises:
        ModelError: it does not, the model cannot be run, or transforms its logits in an unknown
            way.
    """
    name = type(model.base).__name__
    try:
        if not model.is_reward_model:
            head_check(model)
        readings = readings_of(model)
        pairs = check_pairs(model.vocabulary, _short(model), pictures=model.pictures)
        with _at_rest(model):
            plain = _read(readings, pairs, "plain")
            alone = _alone(readings, pairs)
            rounding = _rounding(model, readings, pairs, plain)
    except PalateError:
        raise
    except Exception as error:
        text = in_one_line(error, 120)
        if model.has_adapters:
            text += "; without adapters it may: choose `model.lora.target_modules`"
        raise ModelError(f"{name} does not run as a causal language model: {text}") from error
    gap = float(readings.distance(plain, alone).mean())
    # Written so that a NaN fails.
    if not gap <= max(2 * rounding, LEAST_ROUNDING):
        raise ModelError(
            f"{name} gives other {readings.what} in a padded batch than alone: {gap:.3g} "
            f"{readings.unit} a token, where rounding explains {rounding:.2g}; try another "
            "`model.attn_implementation`, sdpa or eager"
        )


def layout_check(model: Model, *, longest: int | None = None) -> LayoutCheck:
    """Whether the shared layout gives the numbers of the plain one, without gradients.

    Args:
        longest: sequence of the run, in tokens; None where it is not known.
    """
    readings = readings_of(model)
    unit = readings.unit
    if (obstacle := sharing_obstacle(backbone_of(model.base))) is not None:
        return LayoutCheck(float("inf"), False, obstacle, unit=unit)
    tokens = check_tokens(model.backbone.windows, longest, positions_of(model.base))
    try:
        with _at_rest(model):
            return _compare(model, readings, tokens)
    except Exception as error:
        text = in_one_line(error, 120)
        reason = f"the model does not run it: {text}"
        return LayoutCheck(float("inf"), False, reason, unit=unit)


def _compare(model: Model, readings: Readings, tokens: int) -> LayoutCheck:
    short = check_pairs(model.vocabulary, _short(model), pictures=model.pictures)
    in_batch, alone = _read(readings, short, "plain"), _alone(readings, short)
    batching = readings.distance(in_batch, alone)
    pairs = check_pairs(model.vocabulary, tokens, pictures=model.pictures)
    plain = _read(readings, pairs, "plain")
    rounding = _rounding(model, readings, pairs, plain)
    gap = readings.distance(plain, _read(readings, pairs, "shared"))
    by_sequence = [part.mean() for part in gap.split(_lengths(pairs))]
    limit = max(BATCH_FACTOR * float(batching.mean()), ROUNDING_FACTOR * rounding, LEAST_ROUNDING)
    mean, worst = float(gap.mean()), float(torch.stack(by_sequence).max())
    reason = None
    # Experts round otherwise with the number of tokens that they are given.
    noise = max(float(batching.max()), rounding) if has_experts(model.config) else 0.0
    if (leak := _leak(model, readings, noise)) is not None:
        reason = f"responses see one another: {leak}"
    elif not (mean <= limit and worst <= SEQUENCE_FACTOR * limit):
        reason = (
            f"{readings.what} are {mean:.2g} {readings.unit} a token off the plain ones "
            f"({worst:.2g} in one sequence), where rounding explains {limit:.2g}"
        )
    return LayoutCheck(float(gap.max()), reason is None, reason, tokens, limit, readings.unit)


def _leak(model: Model, readings: Readings, noise: float) -> str | None:
    """Whether the numbers of one side's responses depend on the tokens of the others.

    They stay the same to the last bit where nothing passes the masks, also in half precision, but
    for what a neighbour in a plain batch changes too.

    Args:
        noise: that the model may show beside.
    """
    pairs, variants = (
        check_pairs(model.vocabulary, _short(model), seed, model.pictures) for seed in (0, 1)
    )
    lengths = _lengths(pairs)
    worst: dict[Layout, float] = {"shared": 0.0, "plain": 0.0}
    for layout in worst:
        before = _read(readings, pairs, layout)
        # A rejected response may see the chosen one, and the next pair of its row either.
        for side in (0, 1):
            changed = [
                _with_response(pair, side, variant.responses[side])
                for pair, variant in zip(pairs, variants, strict=True)
            ]
            moved = readings.distance(before, _read(readings, changed, layout)).split(lengths)
            kept = torch.cat(moved[1 - side :: 2])
            worst[layout] = max(worst[layout], float(kept.max()))
    if worst["shared"] <= LEAK_FACTOR * max(worst["plain"], noise):
        return None
    by = f"{worst['shared']:.2g} {readings.unit}"
    return f"{readings.what} of one move by {by} with the tokens of another"


def _with_response(pair: Item, side: int, response: Tokens) -> Item:
    responses = (response, pair.responses[1]) if side == 0 else (pair.responses[0], response)
    return dataclasses.replace(pair, responses=responses)


def _lengths(pairs: list[Item]) -> list[int]:
    """Tokens of every response, in the order of a batch."""
    return [len(response) for pair in pairs for response in pair.responses]


def _short(model: Model) -> int:
    return min(SHORT_TOKENS, positions_of(model.base) or SHORT_TOKENS)


@contextmanager
def _at_rest(model: Model) -> Iterator[None]:
    with evaluating(model), torch.no_grad():
        yield


def _read(readings: Readings, pairs: list[Item], layout: Layout) -> Tensor:
    return readings.of_batch(readings.model.collator(layout, keep_last=True)(pairs))


def _alone(readings: Readings, pairs: list[Item]) -> Tensor:
    """Each sequence by itself, in the order of a batch."""
    return torch.cat(
        [readings.of_sequence(*sequence) for pair in pairs for sequence in pair.sequences]
    )


def _rounding(model: Model, readings: Readings, pairs: list[Item], plain: Tensor) -> float:
    """Mean difference of plain numbers to those of the same model rounded otherwise."""
    with rounded_otherwise(model.base, seed=0):
        moved = _read(readings, pairs, "plain")
    return float(readings.distance(plain, moved).mean())


def head_check(policy: Model) -> None:
    """Asserts that `Model.vocabulary_head` reproduces the model's own logits.

    Raises:
        ModelError: the family transforms its logits in a way that is not known here.
    """
    ids = torch.tensor(
        [check_pairs(policy.vocabulary, 16)[0].prompts[0].ids[:8]], device=policy.device
    )
    backbone = backbone_of(policy.base)
    with _at_rest(policy):
        logits = policy.base(input_ids=ids, use_cache=False).logits[0].float()
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
        head = policy.vocabulary_head()
        gap = _logits_gap(logits, states, head) if logits.shape[1] == len(head.weight) else math.inf
    scale = max(1.0, float(logits.abs().max()))
    tolerance = 1e-3 if policy.dtype == torch.float32 else 2e-2
    if not gap <= tolerance * scale:
        raise ModelError(
            f"{type(policy.base).__name__} transforms its logits in a way palate does not know"
        )


def _logits_gap(logits: Tensor, states: Tensor, head: Head) -> float:
    """The largest distance of a model's own logits [N, V] from those of the head.

    Tile by tile: the weights in float64 would be the largest thing that a run ever holds.
    """
    gaps = []
    for start in range(0, len(head.weight), HEAD_TILE):
        words = slice(start, start + HEAD_TILE)
        tile = dataclasses.replace(
            head,
            weight=head.weight[words],
            bias=None if head.bias is None else head.bias[words],
        )
        gaps.append((logits[:, words] - full_logits(states, tile).float()).abs().max())
    return float(torch.stack(gaps).max())
