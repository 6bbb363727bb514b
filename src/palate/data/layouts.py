"""Batches for the backbone: which rows it runs, and which positions predict which tokens.

Three layouts of the same pairs, one result type:

  plain   one row a sequence, `prompt + response`, padded on the right; a pair is two rows
  packed  as plain, but short sequences share a row; none sees another, positions restart
  shared  one row a pair, `prompt + chosen + rejected`; the rejected branch cannot see the chosen
          one and its positions restart after the prompt, so the prompt is run once; where the two
          prompts differ, what they begin with is shared

The last token of a response predicts nothing and is run only where it is asked for: reward models
read their score there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from palate.data.pairs import Example, Pair, Ranking, sequence_key

Layout = Literal["plain", "packed", "shared"]


@dataclass(frozen=True, kw_only=True)
class MaskSpec:
    """Attention masks that a backbone wants in the packed and shared layouts.

    Attributes:
        windows: mask name -> sliding window in tokens (None: full attention). One unnamed mask
            ("") is passed as a tensor, several as a mapping of layer type to tensor.
    """

    windows: dict[str, int | None] = dataclasses.field(default_factory=lambda: {"": None})


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """S sequences (of B pairs: chosen 0..B-1, rejected B..2B-1) laid out for one forward pass.

    Tokens are flat, [N], sequence after sequence, in response order. Ranked lists are sequences
    list after list.

    Attributes:
        inputs: what the backbone takes: `input_ids` [R, T], `position_ids` [R, T] and
            `attention_mask`, [R, T] or, per layer type, boolean [R, 1, T, T] (True = visible).
        predict: [N] positions in the flattened [R * T] hidden states that predict `targets`.
        at: [N] positions of the targets themselves; None where their last one is not run.
        targets: [N] response token ids.
        segment: [N] sequence of each token. position: [N] its index in its response.
        n_sequences: S. n_pairs: B, or 0 when the sequences are single examples.
        weight: [B] (or [S]) loss weights. margin: [B] nan where the data has none.
        tie: [B] bool. probability: [B] nan where the data counts no votes; None without pairs.
        labels: [S] True = desirable; None unless unpaired feedback.
        group: [S] list of each sequence. rank: [S] its place there, 1 = best, equal ranks are ties.
            None unless the items are ranked lists.
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
    at: Tensor | None = None
    tie: Tensor | None = None
    probability: Tensor | None = None
    labels: Tensor | None = None
    group: Tensor | None = None
    rank: Tensor | None = None
    mismatched: SequenceBatch | None = None

    @property
    def ends(self) -> Tensor:
        """[S] positions of the last response tokens.

        Raises:
            ValueError: they are not run.
        """
        if self.at is None:
            raise ValueError("the last response tokens are not run: collate with keep_last")
        return self.at[self.lengths.cumsum(0) - 1]

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
    items: Sequence[Pair] | Sequence[Example] | Sequence[Ranking],
    *,
    layout: Layout,
    pad_id: int,
    masks: MaskSpec | None = None,
    keep_last: bool = False,
) -> SequenceBatch:
    """Lays out pairs, ranked lists, or single examples (not shared) as one batch.

    Args:
        masks: of the backbone, for the packed and shared layouts.
        keep_last: run the last token of every response too.

    Raises:
        ValueError: no items, or single examples in the shared layout.
    """
    if not items:
        raise ValueError("an empty batch has no layout")
    first = items[0]
    if isinstance(first, Example):
        return _examples(list(items), layout, pad_id, masks or MaskSpec(), keep_last)  # type: ignore[arg-type]
    prompted: list[Pair | Ranking] = list(items)  # type: ignore[arg-type]
    branches = [
        (item.chosen_ids, item.rejected_ids) if isinstance(item, Pair) else item.responses
        for item in prompted
    ]
    own_prompts = [
        [ids for ids, _ in item.sequences] if isinstance(item, Pair) else [item.prompt_ids] * len(b)
        for item, b in zip(prompted, branches, strict=True)
    ]
    # Of pairs all chosen responses come first, of lists each list's own.
    order = [(i, j) for i, own in enumerate(branches) for j in range(len(own))]
    if isinstance(first, Pair):
        order.sort(key=lambda both: both[1])
    sequences = [(own_prompts[i][j], branches[i][j]) for i, j in order]
    cut = 0 if keep_last else 1
    if layout == "shared":
        blocks = [_block(*both) for both in zip(own_prompts, branches, strict=True)]
        rows = _blocks([[block] for block in blocks], pad_id, masks or MaskSpec(), cut)
        laid = {both: k for k, both in enumerate(sorted(order))}
        rows = rows.reordered([laid[both] for both in order])
    else:
        rows = _single(sequences, layout, pad_id, masks or MaskSpec(), cut)
    if isinstance(first, Pair):
        pairs: list[Pair] = list(items)  # type: ignore[arg-type]
        return _batch(
            sequences,
            rows,
            n_pairs=len(pairs),
            items=items,
            keep_last=keep_last,
            margin=[_known(p.margin) for p in pairs],
            tie=torch.tensor([p.tie for p in pairs]),
            probability=torch.tensor([_known(p.probability) for p in pairs]),
        )
    lists: list[Ranking] = list(items)  # type: ignore[arg-type]
    return _batch(
        sequences,
        rows,
        n_pairs=0,
        items=items,
        keep_last=keep_last,
        margin=[float("nan")] * len(lists),
        group=torch.tensor([i for i, _ in order]),
        rank=torch.tensor([r for item in lists for r in item.ranks]),
    )


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _examples(
    examples: list[Example], layout: Layout, pad_id: int, masks: MaskSpec, keep_last: bool
) -> SequenceBatch:
    if layout == "shared":
        raise ValueError("the shared layout is for pairs; single examples have no prefix to share")
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
        _single(sequences, layout, pad_id, masks, 0 if keep_last else 1),
        n_pairs=0,
        items=examples,
        keep_last=keep_last,
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
    """Flat position of that token, which predicts the second; the rest are consecutive."""

    def reordered(self, order: list[int]) -> _Rows:
        return _Rows(self.inputs, [self.starts[k] for k in order], [self.follows[k] for k in order])


_Sequence = tuple[tuple[int, ...], tuple[int, ...]]
_Block = tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
"""What all prompts begin with; of each response the rest of its prompt, and the response."""


def _block(prompts: Sequence[tuple[int, ...]], responses: tuple[tuple[int, ...], ...]) -> _Block:
    first = prompts[0]
    shared = len(first)
    for other in prompts[1:]:
        if other != first:
            both = zip(first[:shared], other, strict=False)
            shared = next((n for n, (a, b) in enumerate(both) if a != b), min(shared, len(other)))
    return first[:shared], tuple(prompt[shared:] for prompt in prompts), responses


def _batch(
    sequences: list[_Sequence],
    rows: _Rows,
    *,
    n_pairs: int,
    items: Sequence[Pair] | Sequence[Example] | Sequence[Ranking],
    keep_last: bool,
    margin: list[float],
    **more: Any,
) -> SequenceBatch:
    predict, at, segment, position = [], [], [], []
    for index, ((_, response), start, follow) in enumerate(
        zip(sequences, rows.starts, rows.follows, strict=True)
    ):
        n = len(response)
        predict.append(torch.tensor([start, *range(follow, follow + n - 1)]))
        at.append(torch.arange(follow, follow + n))
        segment.append(torch.full((n,), index))
        position.append(torch.arange(n))
    return SequenceBatch(
        inputs=rows.inputs,
        predict=torch.cat(predict),
        at=torch.cat(at) if keep_last else None,
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
        **more,
    )


def _single(
    sequences: list[_Sequence], layout: Layout, pad_id: int, masks: MaskSpec, cut: int
) -> _Rows:
    if layout != "packed":
        return _plain(sequences, pad_id, cut)
    lengths = [len(prompt) + len(response) - cut for prompt, response in sequences]
    packed = _first_fit(lengths)
    rows = _blocks(
        [[(sequences[i][0], ((),), (sequences[i][1],)) for i in row] for row in packed],
        pad_id,
        masks,
        cut,
    )
    place = {i: k for k, i in enumerate(i for row in packed for i in row)}
    return rows.reordered([place[i] for i in range(len(sequences))])


def _first_fit(lengths: list[int]) -> list[list[int]]:
    """Rows no longer than the longest sequence: longest first, each into the first with room."""
    room: list[int] = []
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fit = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if fit is None:
            room.append(max(lengths))
            rows.append([])
            fit = len(rows) - 1
        room[fit] -= lengths[i]
        rows[fit].append(i)
    return rows


def _plain(sequences: list[_Sequence], pad_id: int, cut: int) -> _Rows:
    rows = [(*prompt, *response[: len(response) - cut]) for prompt, response in sequences]
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


def _blocks(rows: list[list[_Block]], pad_id: int, masks: MaskSpec, cut: int) -> _Rows:
    """Rows of blocks that do not see one another; in a block every response sees its prompt.

    Sequences are numbered row by row, block by block, response by response.
    """
    length = [
        sum(len(p) + sum(map(len, rests)) + sum(len(r) - cut for r in own) for p, rests, own in row)
        for row in rows
    ]
    n, width = len(rows), max(length)
    ids = torch.full((n, width), pad_id)
    positions = torch.zeros(n, width, dtype=torch.long)
    block, branch = (torch.full((n, width), -1) for _ in range(2))
    starts, follows = [], []
    for i, row in enumerate(rows):
        end = 0
        for b, (prompt, rests, responses) in enumerate(row):
            begin, p = end, len(prompt)
            tails = zip(rests, responses, strict=True)
            parts = (prompt, *((*rest, *r[: len(r) - cut]) for rest, r in tails))
            for k, part in enumerate(parts):
                begun, end = end, end + len(part)
                first = 0 if k == 0 else p
                ids[i, begun:end] = torch.tensor(part, dtype=torch.long)
                positions[i, begun:end] = torch.arange(first, first + len(part))
                block[i, begun:end], branch[i, begun:end] = b, k
                if k:
                    rest = len(rests[k - 1])
                    starts.append(i * width + (begun + rest if rest else begin + p) - 1)
                    follows.append(i * width + begun + rest)
    order = torch.arange(width)
    visible = (order[:, None] >= order[None, :]).expand(n, width, width)
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    visible = visible & same & (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, None, :]
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
    return _Rows(inputs=inputs, starts=starts, follows=follows)
