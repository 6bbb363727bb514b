"""Sequences as rows: one each, or several in a prefix tree, with positions and who sees whom.

What a model that sees images does otherwise than one of text stands in `VisionLayout`: where
positions lie on several axes (M-RoPE), where the tokens of an image see each other (Gemma 3), and
where a prompt sees all of itself (PaliGemma).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palate.data.items import PlacedImage, Tokens

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VisionLayout:
    """How a model lays out images among texts.

    Attributes:
        axes: of positions: 1 as of text, or 3 (time, height, width: M-RoPE).
        blocks: tokens of one image see each other, whatever their order.
        prompts: tokens of a prompt see each other.
        placeholder: id of the tokens that features take the place of.
        video: id of those of a video, for a model that takes videos. It is run as the placeholder
            of images is: the tower treats both alike, and features take its place.
    """

    axes: int = 1
    blocks: bool = False
    prompts: bool = False
    placeholder: int = -1
    video: int = -1

    @property
    def seen(self) -> tuple[int, int]:
        """Ids of the tokens that features take the place of, those of videos too."""
        return self.placeholder, self.video

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one."""
        return not self.blocks and not self.prompts


TEXT = VisionLayout()


@dataclass(frozen=True)
class Run:
    """The tokens of a sequence that are run, in order.

    Attributes:
        ids: [n].
        marks: [n] equal where two sequences may share a token: its id, of an image what it shows.
        positions: [axes, n].
        begins: [n] the first token of the sequence that sees it: itself, where none before it does.
        images: [n] number of the image that a placeholder is of, -1 elsewhere.
        response: [n] whether it is of the response.
    """

    ids: Ids
    marks: Ids
    positions: Ids
    begins: Ids
    images: Ids
    response: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


def run_of(prompt: Tokens, response: Tokens, cut: int, vision: VisionLayout = TEXT) -> Run:
    """The tokens of a prompt and a response, as a model is given them.

    Args:
        cut: how many of the response's last tokens are left out.
    """
    ids = np.asarray((*prompt.ids, *response.ids[: len(response) - cut]), dtype=np.int64)
    n = len(ids)
    places = np.arange(n)
    marks, begins, numbers = ids, places, np.full(n, -1)
    placed = _placed(prompt, response, n)
    if placed:
        marks = ids.copy()
        for number, (start, stop, image) in enumerate(placed):
            # Told apart by what it shows; below 0, where no id is.
            marks[start:stop] = -1 - (int(image.digest[:12], 16) + ids[start:stop])
            inside = start + np.flatnonzero(np.isin(ids[start:stop], vision.seen))
            numbers[inside] = number
            if vision.blocks and len(inside):
                begins = begins.copy() if begins is places else begins
                begins[inside] = inside[0]
    if vision.prompts:
        # A prompt's states hang on all of it: only an equal one is shared.
        whole = hashlib.sha256(marks[: len(prompt)].tobytes()).hexdigest()
        marks = marks.copy()
        marks[: len(prompt)] = -1 - (int(whole[:12], 16) + marks[: len(prompt)])
        begins = np.where(places < len(prompt), 0, begins)
    return Run(
        ids=np.where(numbers >= 0, vision.placeholder, ids) if placed else ids,
        marks=marks,
        positions=_positions(n, placed, vision.axes),
        begins=begins,
        images=numbers,
        response=places >= len(prompt),
    )


def _placed(prompt: Tokens, response: Tokens, n: int) -> list[tuple[int, int, PlacedImage]]:
    """Start and stop in the sequence of each image, in order."""
    placed = [(image.start, image) for image in prompt.images]
    placed += [(len(prompt) + image.start, image) for image in response.images]
    return [
        (start, min(n, start + image.length), image)
        for start, image in sorted(placed, key=lambda pair: pair[0])
    ]


def _positions(n: int, placed: Sequence[tuple[int, int, PlacedImage]], axes: int) -> Ids:
    """[axes, n]. On several axes the tokens of an image are counted by where they lie in it, and
    the text behind it goes on after the greatest of its rows and columns (Qwen2-VL, arXiv
    2409.12191; of videos as transformers' `get_rope_index` counts: frames lie `interval` apart)."""
    if axes == 1 or not placed:
        return np.tile(np.arange(n), (axes, 1))
    parts: list[Ids] = []
    end = following = 0
    for start, stop, image in placed:
        parts.append(np.tile(following + np.arange(start - end), (axes, 1)))
        following += start - end
        assert image.grid is not None, "an image without its grid, and positions on several axes"
        grid = np.indices(image.grid).reshape(3, -1)[:, : stop - start]
        grid[0] = grid[0] * image.interval
        parts.append(following + grid)
        following += max(image.grid[1:]) if grid.size else 0
        end = stop
    parts.append(np.tile(following + np.arange(n - end), (axes, 1)))
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Rows:
    """Rows, and of each sequence the places of its tokens in the flattened rows.

    Attributes:
        order: of each image in the rows, in reading order, its sequence and its number there.
    """

    inputs: dict[str, Tensor]
    places: list[Ids]
    order: list[tuple[int, int]]


def plain_rows(runs: Sequence[Run], pad_id: int, vision: VisionLayout = TEXT) -> Rows:
    """A row a sequence, padded on the right."""
    width = max(map(len, runs))
    ids = np.full((len(runs), width), pad_id)
    mask = np.zeros((len(runs), width), dtype=np.int64)
    types = np.zeros((len(runs), width), dtype=np.int64)
    positions = np.tile(np.arange(width), (vision.axes, len(runs), 1))
    order = []
    for i, run in enumerate(runs):
        ids[i, : len(run)] = run.ids
        mask[i, : len(run)] = 1
        types[i, : len(run)] = run.response if vision.prompts else run.images >= 0
        if vision.axes > 1:
            positions[:, i, : len(run)] = run.positions
        order += [(i, number) for number in range(run.images.max(initial=-1) + 1)]
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": _as_given(positions),
    }
    if not vision.is_causal:
        inputs["token_type_ids"] = torch.from_numpy(types)
    places = [i * width + np.arange(len(run)) for i, run in enumerate(runs)]
    return Rows(inputs, places, order)


def _as_given(positions: Ids) -> Tensor:
    """[R, T] of one axis, [axes, R, T] of several."""
    given = positions[0] if len(positions) == 1 else positions
    return torch.from_numpy(np.ascontiguousarray(given))


@dataclass(frozen=True)
class Tree:
    """The sequences of one item as a prefix tree, depth first.

    Attributes:
        ids, depth: [n] token, and distance from the root. positions: [axes, n].
        begin, until: [n] first place that sees it, and first one after it that does not.
        places: of each sequence those of its tokens.
        images: of each image its place, its sequence and its number there; of a shared one once.
    """

    ids: Ids
    depth: Ids
    positions: Ids
    begin: Ids
    until: Ids
    places: list[Ids]
    images: list[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def tree_of(runs: Sequence[Run]) -> Tree:
    """The prefix tree of sequences; branches in the order of their first sequence."""
    owner: list[Ids] = []
    depth: list[Ids] = []
    spans: list[tuple[int, int, int]] = []
    places: list[list[Ids]] = [[] for _ in runs]
    end = 0

    def grow(members: list[int], start: int) -> None:
        """Adds the part that all members share from `start` on, then what branches off it."""
        nonlocal end
        stop = _shared_until([runs[m].marks for m in members], start)
        begin, end = end, end + stop - start
        owner.append(np.full(stop - start, members[0]))
        depth.append(np.arange(start, stop))
        for m in members:
            places[m].append(np.arange(begin, end))
        node = len(spans)
        spans.append((begin, end, end))
        branches: dict[int, list[int]] = {}
        for m in members:
            if len(runs[m]) > stop:
                branches.setdefault(int(runs[m].marks[stop]), []).append(m)
        for branch in branches.values():
            grow(branch, stop)
        spans[node] = (begin, spans[node][1], end)

    roots: dict[int, list[int]] = {}
    for m, run in enumerate(runs):
        roots.setdefault(int(run.marks[0]), []).append(m)
    for members in roots.values():
        grow(members, 0)
    of, at = np.concatenate(owner), np.concatenate(depth)
    whole = [np.concatenate(parts) for parts in places]
    ids, begin = np.empty_like(at), np.empty_like(at)
    positions = np.empty((len(runs[0].positions), len(at)), dtype=np.int64)
    images = []
    for m, run in enumerate(runs):
        nodes = np.flatnonzero(of == m)
        ids[nodes], positions[:, nodes] = run.ids[at[nodes]], run.positions[:, at[nodes]]
        begin[nodes] = whole[m][run.begins[at[nodes]]]
        numbers, first = np.unique(run.images[at[nodes]], return_index=True)
        pairs = zip(numbers.tolist(), nodes[first].tolist(), strict=True)
        images += [(place, m, number) for number, place in pairs if number >= 0]
    return Tree(
        ids=ids,
        depth=at,
        positions=positions,
        begin=begin,
        until=np.concatenate([np.full(stop - start, last) for start, stop, last in spans]),
        places=whole,
        images=sorted(images),
    )


def _shared_until(marks: Sequence[Ids], start: int) -> int:
    """The place up to which all agree, which agree before `start`."""
    first, stop = marks[0], min(map(len, marks))
    for run in marks[1:]:
        differ = np.flatnonzero(first[start:stop] != run[start:stop])
        if len(differ):
            stop = start + int(differ[0])
    return stop


def shared_rows(items: Sequence[Sequence[Run]], pad_id: int, vision: VisionLayout = TEXT) -> Rows:
    """Several prefix trees a row, one an item."""
    trees = [tree_of(runs) for runs in items]
    packed = first_fit([len(tree) for tree in trees])
    width = max(map(len, trees))
    shape = (len(packed), width)
    ids = np.full(shape, pad_id)
    depth, until = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    begin = np.tile(np.arange(width), (len(packed), 1))
    positions = np.zeros((vision.axes, *shape), dtype=np.int64)
    places: list[list[Ids]] = [[] for _ in items]
    order: list[tuple[int, int]] = []
    starts = np.cumsum([0, *map(len, items)])
    for i, row in enumerate(packed):
        start = 0
        for t in row:
            tree, stop = trees[t], start + len(trees[t])
            ids[i, start:stop] = tree.ids
            depth[i, start:stop] = tree.depth
            positions[:, i, start:stop] = tree.positions
            until[i, start:stop] = tree.until + start
            begin[i, start:stop] = tree.begin + start
            places[t] = [i * width + start + place for place in tree.places]
            order += [(int(starts[t]) + m, number) for _, m, number in tree.images]
            start = stop
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": _as_given(positions),
        "visible_until": torch.from_numpy(until),
    }
    if vision.axes > 1:
        inputs["depth"] = torch.from_numpy(depth)
    if not vision.is_causal:
        inputs["visible_from"] = torch.from_numpy(begin)
    if len(packed) > 1:
        # Counted here: on an accelerator to count is to wait for it.
        inputs["real"] = torch.from_numpy(np.flatnonzero(until))
    return Rows(inputs, [place for of_item in places for place in of_item], order)


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
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
