"""Batches for the backbone: which rows it runs, and which positions predict which tokens.

Two layouts of the same pairs, one result type:

  plain   one row a sequence, `prompt + response`, padded on the right; a pair is two rows
  shared  one row a pair, `prompt + chosen + rejected`; the rejected branch cannot see the chosen
          one and its positions restart after the prompt, so the prompt is run once

The last token of a response predicts nothing and is never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from palate.data.pairs import Example, Pair, sequence_key

Layout = Literal["plain", "shared"]


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """Attention masks that a backbone wants in the shared layout.

    Attributes:
        windows: mask name -> sliding window in tokens (None: full attention). One unnamed mask
            ("") is passed as a tensor, several as a mapping of layer type to tensor.
    """

    windows: dict[str, int | None] = dataclasses.field(default_factory=lambda: {"": None})


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """S sequences (of B pairs: chosen 0..B-1, rejected B..2B-1) laid out for one forward pass.

    Tokens are flat, [N], sequence after sequence, in response order.

    Attributes:
        inputs: what the backbone takes: `input_ids` [R, T], `position_ids` [R, T] and
            `attention_mask`, [R, T] or, per layer type, boolean [R, 1, T, T] (True = visible).
        predict: [N] positions in the flattened [R * T] hidden states that predict `targets`.
        targets: [N] response token ids.
        segment: [N] sequence of each token. position: [N] its index in its response.
        n_sequences: S. n_pairs: B, or 0 when the sequences are single examples.
        weight: [B] (or [S]) loss weights. margin: [B] nan where the data has none.
        labels: [S] True = desirable; None unless unpaired feedback.
        keys: content key of each sequence. ids, sources: of each pair (or example).
        mismatched: the same prompts with other rows' responses, for KTO's estimate of the KL.
    """

    inputs: dict[str, Any]
    predict: Tensor
    targets: Tensor
    segment: Tensor
    position: Tensor
    n_sequences: int
    n_pairs: int
    weight: Tensor
    margin: Tensor
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    labels: Tensor | None = None
    mismatched: SequenceBatch | None = None

    @property
    def lengths(self) -> Tensor:
        """[S] response tokens of each sequence."""
        return torch.bincount(self.segment, minlength=self.n_sequences)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceBatch:
        """The same batch with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: move(v) for k, v in value.items()}
            if isinstance(value, (Tensor, SequenceBatch)):
                return value.to(device, non_blocking=non_blocking)
            return value

        fields = {f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return SequenceBatch(**fields)


def collate(
    items: Sequence[Pair] | Sequence[Example],
    *,
    layout: Layout,
    pad_id: int,
    masks: MaskSpec | None = None,
) -> SequenceBatch:
    """Lays out pairs, or single examples (plain only), as one batch.

    Raises:
        ValueError: no items, or single examples in the shared layout.
    """
    if not items:
        raise ValueError("an empty batch has no layout")
    first = items[0]
    if isinstance(first, Pair):
        pairs: list[Pair] = list(items)  # type: ignore[arg-type]
        sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs]
        sequences += [(p.prompt_ids, p.rejected_ids) for p in pairs]
        rows = _shared(pairs, pad_id, masks or MaskSpec()) if layout == "shared" else None
        return _batch(
            sequences,
            rows or _plain(sequences, pad_id),
            n_pairs=len(pairs),
            items=items,
            margin=[float("nan") if p.margin is None else p.margin for p in pairs],
        )
    if layout == "shared":
        raise ValueError("the shared layout is for pairs; single examples have no prefix to share")
    examples: list[Example] = list(items)  # type: ignore[arg-type]
    labels = [e.label for e in examples]
    mismatched = None
    others = [
        dataclasses.replace(e, response_ids=e.mismatched_ids, mismatched_ids=None)
        for e in examples
        if e.mismatched_ids is not None
    ]
    if len(others) == len(examples):
        mismatched = collate(others, layout="plain", pad_id=pad_id)
    sequences = [(e.prompt_ids, e.response_ids) for e in examples]
    return _batch(
        sequences,
        _plain(sequences, pad_id),
        n_pairs=0,
        items=items,
        margin=[float("nan")] * len(examples),
        labels=None if any(x is None for x in labels) else torch.tensor(labels, dtype=torch.bool),
        mismatched=mismatched,
    )


@dataclass(frozen=True)
class _Rows:
    inputs: dict[str, Any]
    starts: list[int]
    """Flat position that predicts the first response token of each sequence."""
    follows: list[int]
    """Flat position that predicts the second one; the rest are consecutive."""


_Sequence = tuple[tuple[int, ...], tuple[int, ...]]


def _batch(
    sequences: list[_Sequence],
    rows: _Rows,
    *,
    n_pairs: int,
    items: Sequence[Pair] | Sequence[Example],
    margin: list[float],
    labels: Tensor | None = None,
    mismatched: SequenceBatch | None = None,
) -> SequenceBatch:
    predict, segment, position = [], [], []
    for index, ((_, response), start, follow) in enumerate(
        zip(sequences, rows.starts, rows.follows, strict=True)
    ):
        n = len(response)
        predict.append(torch.tensor([start, *range(follow, follow + n - 1)]))
        segment.append(torch.full((n,), index))
        position.append(torch.arange(n))
    return SequenceBatch(
        inputs=rows.inputs,
        predict=torch.cat(predict),
        targets=torch.tensor([t for _, response in sequences for t in response]),
        segment=torch.cat(segment),
        position=torch.cat(position),
        n_sequences=len(sequences),
        n_pairs=n_pairs,
        weight=torch.tensor([i.weight for i in items], dtype=torch.float32),
        margin=torch.tensor(margin, dtype=torch.float32),
        keys=tuple(sequence_key(p, r) for p, r in sequences),
        ids=tuple(i.id for i in items),
        sources=tuple(i.source for i in items),
        labels=labels,
        mismatched=mismatched,
    )


def _plain(sequences: list[_Sequence], pad_id: int) -> _Rows:
    rows = [(*prompt, *response[:-1]) for prompt, response in sequences]
    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    starts = [i * width + len(prompt) - 1 for i, (prompt, _) in enumerate(sequences)]
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.arange(width).expand(len(rows), width).contiguous(),
    }
    return _Rows(inputs=inputs, starts=starts, follows=[s + 1 for s in starts])


def _shared(pairs: list[Pair], pad_id: int, masks: MaskSpec) -> _Rows:
    rows = [(*p.prompt_ids, *p.chosen_ids[:-1], *p.rejected_ids[:-1]) for p in pairs]
    n, width = len(rows), max(len(r) for r in rows)
    ids = torch.full((n, width), pad_id)
    positions = torch.zeros(n, width, dtype=torch.long)
    branch = torch.full((n, width), -1)
    starts, follow_c, follow_r = [], [], []
    for i, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        p, c, r = len(pair.prompt_ids), len(pair.chosen_ids) - 1, len(pair.rejected_ids) - 1
        ids[i, : len(row)] = torch.tensor(row)
        positions[i, : p + c] = torch.arange(p + c)
        positions[i, p + c : p + c + r] = torch.arange(p, p + r)
        branch[i, :p], branch[i, p : p + c], branch[i, p + c : p + c + r] = 0, 1, 2
        starts.append(i * width + p - 1)
        follow_c.append(i * width + p)
        follow_r.append(i * width + p + c)
    order = torch.arange(width)
    visible = (order[:, None] >= order[None, :]).expand(n, width, width)
    same = branch[:, :, None] == branch[:, None, :]
    visible = visible & (same | (branch[:, None, :] == 0)) & (branch >= 0)[:, None, :]
    # A padded query sees itself, so that no row of the mask is empty.
    visible = visible | torch.eye(width, dtype=torch.bool)
    distance = positions[:, :, None] - positions[:, None, :]
    by_type = {
        name: (visible if window is None else visible & (distance < window)).unsqueeze(1)
        for name, window in masks.windows.items()
    }
    inputs = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": by_type[""] if set(by_type) == {""} else by_type,
    }
    return _Rows(inputs=inputs, starts=starts + starts, follows=follow_c + follow_r)
