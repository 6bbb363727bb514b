"""Token rows for a backbone, and where in them the responses are.

Two layouts of the same items, one batch type:

  plain   one row a sequence, `prompt + response`, padded on the right
  shared  several items a row, each a prefix tree: what sequences of an item begin with is run once,
          and each goes on in a branch of its own, which sees its ancestors alone and whose
          positions go on from them: prompt, common beginning of responses, branches, later turns

A tree lies in a row depth first, so that everything that may see a token follows it without a gap.
One number a token therefore says all of the structure: `visible_until`, the first later place in
the row that no longer sees it. Masks are made of that, and of positions where a window is slid,
inside the attention that needs them (`palate.models.attention`).

The last token of a response predicts nothing and is run only where it is asked for: reward models
read their score there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palate.data.items import Desirable, Item, PairLabel, Ranks, Tokens, sequence_key

Layout = Literal["plain", "shared"]
_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The pairs of a batch of pairs.

    Attributes:
        chosen, rejected: [B] the sequence of each.
        margin: [B] nan where the data has none. probability: [B] nan where nobody counted votes.
        tie: [B] bool.
    """

    chosen: Tensor
    rejected: Tensor
    margin: Tensor
    probability: Tensor
    tie: Tensor

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """S sequences of B items laid out for one forward pass, item after item, response by response.

    Tokens are flat, [N], sequence after sequence, in response order: those that are trained on.

    Attributes:
        inputs: what the backbone takes: `input_ids` and `position_ids`, [R, T], and in the plain
            layout `attention_mask`, [R, T], in the shared one `visible_until`, [R, T]: place j of a
            row is seen by the places j <= i < visible_until[j], padding (0) by none; of several
            shared rows also `real`, [n]: the places of tokens, not padding, in the flattened rows.
        predict: [N] positions in the flattened [R * T] hidden states that predict `targets`.
        target_positions: [N] those of the targets themselves; None where their last one is not run.
        ends: [S] those of the last token of each response; None as `target_positions`.
        targets: [N] response token ids.
        segment: [N] sequence of each token. position: [N] its index among its response's tokens
            that are trained on.
        item: [S] item of each sequence.
        weight: [B] loss weights.
        pairs: of a batch of pairs. rank: [S] of ranked lists, 1 = best, equal ranks are ties.
            desirable: [S] bool, of unpaired feedback. None where the items have no such label.
        lists: [B, K] int64, of ranked lists the sequences of each, -1 where it has fewer than K.
        sides: the chosen and the rejected sequences, int64, by these names: of pairs, the desirable
            ones and the others of unpaired feedback, the best and the others of ranked lists, of
            demonstrations all as chosen. A side that is empty is not there. It is made on the host,
            where counting costs nothing, as is what follows: to count on an accelerator is to wait.
        comparisons: what pairs and lists say of two sequences: `better` and `worse`, [M] int64, and
            `item`, [M] that of each; a pair is one unless it is a tie, a list has one for every two
            of unequal rank.
        chosen_tokens: of pairs the places in [N] of the chosen responses' tokens, int64.
        keys: content key of each sequence. ids, sources: of each item.
        mismatched: the same prompts with other rows' responses, for KTO's estimate of the KL.
    """

    inputs: dict[str, Tensor]
    predict: Tensor
    targets: Tensor
    segment: Tensor
    position: Tensor
    item: Tensor
    weight: Tensor
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    target_positions: Tensor | None = None
    ends: Tensor | None = None
    pairs: PairBatch | None = None
    rank: Tensor | None = None
    lists: Tensor | None = None
    desirable: Tensor | None = None
    mismatched: SequenceBatch | None = None
    sides: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    comparisons: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    chosen_tokens: Tensor | None = None

    @property
    def n_sequences(self) -> int:
        return len(self.item)

    @property
    def n_items(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Tensor:
        """[S] response tokens of each sequence that are trained on."""
        # `bincount` looks for the greatest first, and waits for it.
        lengths = torch.zeros_like(self.item)
        return lengths.index_add_(0, self.segment, torch.ones_like(self.segment))

    def of_pairs(self) -> PairBatch:
        """The pairs.

        Raises:
            ValueError: the items are no pairs.
        """
        if self.pairs is None:
            raise ValueError("a batch without pairs")
        return self.pairs

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceBatch:
        """The same batch with every tensor on `device`."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SequenceBatch:
        """The same batch in memory that an accelerator reads by itself, without the host."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> SequenceBatch:
        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: changed(v) for k, v in value.items()}
            if isinstance(value, PairBatch):
                return PairBatch(**{k: changed(v) for k, v in vars(value).items()})
            if isinstance(value, SequenceBatch):
                return value._with_each(change)
            return change(value) if isinstance(value, Tensor) else value

        fields = {f.name: changed(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return SequenceBatch(**fields)


def collate(
    items: Sequence[Item], *, layout: Layout, pad_id: int, keep_last: bool = False
) -> SequenceBatch:
    """Lays out items as one batch.

    Args:
        items: all labelled alike.
        keep_last: run the last token of every response too.

    Raises:
        ValueError: no items, labels of several kinds, or images, which no backbone here reads.
    """
    if not items:
        raise ValueError("an empty batch has no layout")
    sequences = [sequence for item in items for sequence in item.sequences]
    if any(part.images for sequence in sequences for part in sequence):
        raise ValueError("items with images, and a backbone of text alone")
    cut = 0 if keep_last else 1
    runs = [_run(prompt, response, cut) for prompt, response in sequences]
    if layout == "plain":
        rows = _plain(runs, pad_id)
    else:
        sizes = [len(item.responses) for item in items]
        rows = _shared(_split(runs, sizes), pad_id)
    predict, target_positions, ends, segment, position, targets = [], [], [], [], [], []
    for index, ((prompt, response), places) in enumerate(zip(sequences, rows.places, strict=True)):
        n = len(response)
        trained = np.arange(n) if response.trained is None else np.flatnonzero(response.trained)
        before = places[len(prompt) - 1 :]
        predict.append(before[trained])
        if keep_last:
            target_positions.append(before[trained + 1])
            ends.append(before[n])
        targets.append(np.asarray(response.ids)[trained])
        segment.append(np.full(len(trained), index))
        position.append(np.arange(len(trained)))
    fields = item_fields(items, layout, pad_id)
    if "pairs" in fields:
        # Sequences are chosen and rejected by turns.
        fields["chosen_tokens"] = _flat([np.flatnonzero(np.concatenate(segment) % 2 == 0)])
    return SequenceBatch(
        inputs=rows.inputs,
        predict=_flat(predict),
        target_positions=_flat(target_positions) if keep_last else None,
        ends=torch.tensor(ends) if keep_last else None,
        targets=_flat(targets),
        segment=_flat(segment),
        position=_flat(position),
        keys=tuple(sequence_key(*sequence) for sequence in sequences),
        **fields,
    )


def item_fields(items: Sequence[Item], layout: Layout, pad_id: int) -> dict[str, Any]:
    """The fields of a batch that say which items its sequences are of, and what their labels are.

    Args:
        layout, pad_id: of the batch of mismatched responses.

    Raises:
        ValueError: labels of several kinds.
    """
    kinds = {item.kind for item in items}
    if len(kinds) > 1:
        raise ValueError(f"a batch of items of several kinds: {', '.join(sorted(kinds))}")
    sizes = [len(item.responses) for item in items]
    fields: dict[str, Any] = {
        "item": torch.arange(len(items)).repeat_interleave(torch.tensor(sizes)),
        "weight": torch.tensor([item.weight for item in items], dtype=torch.float32),
        "ids": tuple(item.id for item in items),
        "sources": tuple(item.source for item in items),
    }
    sequences = torch.arange(sum(sizes))
    if kinds == {"demonstration"}:
        fields["sides"] = {"chosen": sequences}
    labels = [item.label for item in items]
    pairs = [label for label in labels if isinstance(label, PairLabel)]
    if pairs:
        chosen, rejected = sequences[::2].clone(), sequences[1::2].clone()
        fields["sides"] = {"chosen": chosen, "rejected": rejected}
        fields["pairs"] = PairBatch(
            chosen=chosen,
            rejected=rejected,
            margin=_known(label.margin for label in pairs),
            probability=_known(label.probability for label in pairs),
            tie=torch.tensor([label.tie for label in pairs]),
        )
        decided = _where(not label.tie for label in pairs)
        fields["comparisons"] = {
            "better": chosen[decided],
            "worse": rejected[decided],
            "item": decided,
        }
    if kinds == {"rated"}:
        fields |= _list_fields([label.ranks for label in labels if isinstance(label, Ranks)])
    feedback = [label for label in labels if isinstance(label, Desirable)]
    if feedback:
        fields["desirable"] = torch.tensor([label.desirable for label in feedback])
        fields["sides"] = _sides([label.desirable for label in feedback])
        mismatched = [
            Item.of(item.prompts[0], label.mismatched)
            for item, label in zip(items, feedback, strict=True)
            if label.mismatched is not None
        ]
        if len(mismatched) == len(items):
            fields["mismatched"] = collate(mismatched, layout=layout, pad_id=pad_id)
    return fields


def _list_fields(lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of ranked lists, by the ranks of each."""
    starts = np.cumsum([0, *map(len, lists)])[:-1].tolist()
    places = torch.full((len(lists), max(map(len, lists))), -1)
    compared: list[tuple[int, int, int]] = []
    for b, (start, ranks) in enumerate(zip(starts, lists, strict=True)):
        places[b, : len(ranks)] = torch.arange(start, start + len(ranks))
        for i, better in enumerate(ranks):
            compared += [(start + i, start + j, b) for j, r in enumerate(ranks) if better < r]
    columns = torch.tensor(compared, dtype=torch.int64).reshape(-1, 3).unbind(1)
    names = ("better", "worse", "item")
    return {
        "rank": torch.tensor([rank for ranks in lists for rank in ranks]),
        "lists": places,
        "sides": _sides([rank == min(ranks) for ranks in lists for rank in ranks]),
        "comparisons": {n: c.contiguous() for n, c in zip(names, columns, strict=True)},
    }


def _sides(is_chosen: Sequence[bool]) -> dict[str, Tensor]:
    """The sequences of both sides; without an empty one."""
    sides = {"chosen": _where(is_chosen), "rejected": _where(not flag for flag in is_chosen)}
    return {name: side for name, side in sides.items() if len(side)}


def _where(flags: Iterable[bool]) -> Tensor:
    """Places of those that are true."""
    return torch.tensor([i for i, flag in enumerate(flags) if flag], dtype=torch.int64)


def _known(values: Any) -> Tensor:
    """[B] float32, nan for None."""
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float32)


def _flat(parts: Sequence[_Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _run(prompt: Tokens, response: Tokens, cut: int) -> _Ids:
    """The tokens of a sequence that are run, in order."""
    return np.asarray((*prompt.ids, *response.ids[: len(response) - cut]), dtype=np.int64)


def _split(runs: Sequence[_Ids], sizes: Sequence[int]) -> list[Sequence[_Ids]]:
    ends = np.cumsum(sizes)
    return [runs[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True)
class _Rows:
    """Rows, and of each sequence the places of its tokens in the flattened rows."""

    inputs: dict[str, Tensor]
    places: list[_Ids]


def _plain(runs: Sequence[_Ids], pad_id: int) -> _Rows:
    width = max(map(len, runs))
    ids = np.full((len(runs), width), pad_id)
    mask = np.zeros((len(runs), width), dtype=np.int64)
    for i, run in enumerate(runs):
        ids[i, : len(run)] = run
        mask[i, : len(run)] = 1
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.arange(width).expand(len(runs), width).contiguous(),
    }
    return _Rows(inputs, [i * width + np.arange(len(run)) for i, run in enumerate(runs)])


@dataclass(frozen=True)
class _Tree:
    """The sequences of one item as a prefix tree, depth first.

    Attributes:
        ids, depth, until: [n] token, distance from the root, and first place that does not see it.
        places: of each sequence those of its tokens.
    """

    ids: _Ids
    depth: _Ids
    until: _Ids
    places: list[_Ids]

    def __len__(self) -> int:
        return len(self.ids)


def _tree(runs: Sequence[_Ids]) -> _Tree:
    """The prefix tree of sequences; branches in the order of their first sequence."""
    ids: list[_Ids] = []
    depth: list[_Ids] = []
    spans: list[tuple[int, int, int]] = []
    places: list[list[_Ids]] = [[] for _ in runs]
    end = 0

    def grow(members: list[int], start: int) -> None:
        """Adds the part that all members share from `start` on, then what branches off it."""
        nonlocal end
        stop = _shared_until([runs[m] for m in members], start)
        begin, end = end, end + stop - start
        ids.append(runs[members[0]][start:stop])
        depth.append(np.arange(start, stop))
        for m in members:
            places[m].append(np.arange(begin, end))
        node = len(spans)
        spans.append((begin, end, end))
        branches: dict[int, list[int]] = {}
        for m in members:
            if len(runs[m]) > stop:
                branches.setdefault(int(runs[m][stop]), []).append(m)
        for branch in branches.values():
            grow(branch, stop)
        spans[node] = (begin, spans[node][1], end)

    roots: dict[int, list[int]] = {}
    for m, run in enumerate(runs):
        roots.setdefault(int(run[0]), []).append(m)
    for members in roots.values():
        grow(members, 0)
    until = np.concatenate([np.full(stop - start, last) for start, stop, last in spans])
    return _Tree(
        ids=np.concatenate(ids),
        depth=np.concatenate(depth),
        until=until,
        places=[np.concatenate(parts) for parts in places],
    )


def _shared_until(runs: Sequence[_Ids], start: int) -> int:
    """The place up to which all runs, which agree before `start`, agree."""
    first, stop = runs[0], min(map(len, runs))
    for run in runs[1:]:
        differ = np.flatnonzero(first[start:stop] != run[start:stop])
        if len(differ):
            stop = start + int(differ[0])
    return stop


def _shared(items: Sequence[Sequence[_Ids]], pad_id: int) -> _Rows:
    trees = [_tree(runs) for runs in items]
    packed = _first_fit([len(tree) for tree in trees])
    width = max(map(len, trees))
    ids = np.full((len(packed), width), pad_id)
    positions = np.zeros((len(packed), width), dtype=np.int64)
    until = np.zeros((len(packed), width), dtype=np.int64)
    places: list[list[_Ids]] = [[] for _ in items]
    for i, row in enumerate(packed):
        start = 0
        for t in row:
            tree, stop = trees[t], start + len(trees[t])
            ids[i, start:stop] = tree.ids
            positions[i, start:stop] = tree.depth
            until[i, start:stop] = tree.until + start
            places[t] = [i * width + start + place for place in tree.places]
            start = stop
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "visible_until": torch.from_numpy(until),
    }
    if len(packed) > 1:
        # Counted here: on an accelerator to count is to wait for it.
        inputs["real"] = torch.from_numpy(np.flatnonzero(until))
    return _Rows(inputs, [place for of_item in places for place in of_item])


def _first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Rows no longer than the longest tree: longest first, each into the first with room."""
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
