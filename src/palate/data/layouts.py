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
import torch
from torch import Tensor

from palate.data.items import (
    Desirable,
    Item,
    PairLabel,
    PlacedImage,
    Ranks,
    Rollout,
    Tokens,
    sequence_key,
)
from palate.data.trees import TEXT, Ids, Run, VisionLayout, plain_rows, run_of, shared_rows

Layout = Literal["plain", "shared"]


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
class ImageBatch:
    """The images of a batch, each once.

    Attributes:
        digests: of them.
        lengths: placeholder tokens of each.
        order: number of the image of each placement, as the rows are read.
        pixels: what the vision tower takes, of each image. features: what it gives, by name. One of
            the two, once they are filled in.
    """

    digests: tuple[str, ...]
    lengths: tuple[int, ...]
    order: tuple[int, ...]
    pixels: tuple[dict[str, Tensor], ...] = ()
    features: Sequence[dict[str, Tensor]] = ()


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """S sequences of B items laid out for one forward pass, item after item, response by response.

    Tokens are flat, [N], sequence after sequence, in response order: those that are trained on.

    Attributes:
        inputs: what the backbone takes: `input_ids` and `position_ids`, [R, T], and in the plain
            layout `attention_mask`, [R, T], in the shared one `visible_until`, [R, T]: place j of a
            row is seen by the places j <= i < visible_until[j], padding (0) by none; of several
            shared rows also `real`, [n]: the places of tokens, not padding, in the flattened rows.
            Of models that see images `position_ids` may be [axes, R, T], with `depth`, [R, T], as
            of text beside them in the shared layout; where tokens see later ones there are
            `token_type_ids`, [R, T], or `visible_from`, [R, T], in the place of j.
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
        images: of the batch; None where it has none.
        keys: content key of each sequence. ids, sources: of each item.
        mismatched: the same prompts with other rows' responses, for KTO's estimate of the KL.
        rollout: [N] float32 each, of sampled responses what an update needs, by name; see
            `palate.data.items.Rollout`.
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
    images: ImageBatch | None = None
    rollout: dict[str, Tensor] | None = None

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
            if isinstance(value, PairBatch | ImageBatch):
                return type(value)(**{k: changed(v) for k, v in vars(value).items()})
            if isinstance(value, (tuple, list)) and value and isinstance(value[0], dict):
                return tuple(map(changed, value))
            if isinstance(value, SequenceBatch):
                return value._with_each(change)
            return change(value) if isinstance(value, Tensor) else value

        fields = {f.name: changed(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return SequenceBatch(**fields)


def collate(
    items: Sequence[Item],
    *,
    layout: Layout,
    pad_id: int,
    keep_last: bool = False,
    vision: VisionLayout | None = None,
) -> SequenceBatch:
    """Lays out items as one batch.

    Args:
        items: all labelled alike.
        keep_last: run the last token of every response too.
        vision: of a model that sees images.

    Raises:
        ValueError: no items, labels of several kinds, or images for a model of text alone.
    """
    if not items:
        raise ValueError("an empty batch has no layout")
    sequences = [sequence for item in items for sequence in item.sequences]
    if vision is None and any(part.images for sequence in sequences for part in sequence):
        raise ValueError("items with images, and a model of text alone")
    lays = vision or TEXT
    cut = 0 if keep_last else 1
    runs = [run_of(prompt, response, cut, lays) for prompt, response in sequences]
    if layout == "plain":
        rows = plain_rows(runs, pad_id, lays)
    else:
        sizes = [len(item.responses) for item in items]
        rows = shared_rows(_split(runs, sizes), pad_id, lays)
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
    fields = item_fields(items, layout, pad_id, vision)
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
        images=_images(sequences, rows.order, lays),
        keys=tuple(sequence_key(*sequence) for sequence in sequences),
        **fields,
    )


def images_of(prompts: Sequence[Tokens], vision: VisionLayout | None) -> ImageBatch | None:
    """The images of rows that are prompts alone, in reading order; None where they have none."""
    order = [(i, k) for i, prompt in enumerate(prompts) for k in range(len(prompt.images))]
    return _images([(prompt, Tokens(())) for prompt in prompts], order, vision or TEXT)


def seen_tokens(part: Tokens, image: PlacedImage, vision: VisionLayout) -> int:
    """How many tokens features take the place of, in an image of a prompt or a response."""
    ids = part.ids[image.start : image.start + image.length]
    return sum(map(ids.count, vision.seen))


def on_device(images: ImageBatch, device: torch.device | str) -> ImageBatch:
    """The same images with every tensor on `device`."""

    def moved(values: Sequence[dict[str, Tensor]]) -> tuple[dict[str, Tensor], ...]:
        return tuple({name: v.to(device) for name, v in value.items()} for value in values)

    return dataclasses.replace(images, pixels=moved(images.pixels), features=moved(images.features))


def _images(
    sequences: Sequence[tuple[Tokens, Tokens]],
    order: Sequence[tuple[int, int]],
    vision: VisionLayout,
) -> ImageBatch | None:
    """The images of rows, in the order in which `order` names (sequence, number) of each."""
    if not order:
        return None
    lengths: dict[str, int] = {}
    digests = []
    for s, number in order:
        prompt, response = sequences[s]
        in_prompt = number < len(prompt.images)
        part = prompt if in_prompt else response
        image = part.images[number if in_prompt else number - len(prompt.images)]
        digests.append(image.digest)
        if image.digest not in lengths:
            lengths[image.digest] = seen_tokens(part, image, vision)
    numbers = {digest: number for number, digest in enumerate(lengths)}
    return ImageBatch(
        digests=tuple(lengths),
        lengths=tuple(lengths.values()),
        order=tuple(numbers[digest] for digest in digests),
    )


@dataclass(frozen=True)
class Collator:
    """Lays out items for one model.

    Attributes:
        vision: of a model that sees. fill: gives the images of a batch their pixels or features.
    """

    layout: Layout
    pad_id: int = 0
    keep_last: bool = False
    vision: VisionLayout | None = None
    fill: Callable[[ImageBatch], ImageBatch] | None = None

    def __call__(self, items: Sequence[Item]) -> SequenceBatch:
        batch = collate(
            items,
            layout=self.layout,
            pad_id=self.pad_id,
            keep_last=self.keep_last,
            vision=self.vision,
        )
        if batch.images is None or self.fill is None:
            return batch
        mismatched = batch.mismatched
        if mismatched is not None and mismatched.images is not None:
            mismatched = dataclasses.replace(mismatched, images=self.fill(mismatched.images))
        return dataclasses.replace(batch, images=self.fill(batch.images), mismatched=mismatched)


def item_fields(
    items: Sequence[Item], layout: Layout, pad_id: int, vision: VisionLayout | None = None
) -> dict[str, Any]:
    """The fields of a batch that say which items its sequences are of, and what their labels are.

    Args:
        layout, pad_id, vision: of the batch of mismatched responses.

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
    rollouts = [label for label in labels if isinstance(label, Rollout)]
    if rollouts:
        names = list(rollouts[0].tokens)
        if any(list(label.tokens) != names for label in rollouts):
            raise ValueError("rollouts of one batch that hold different values")
        fields["rollout"] = {
            name: torch.from_numpy(
                np.concatenate([values for label in rollouts for values in label.tokens[name]])
            )
            for name in names
        }
        fields["sides"] = {"chosen": sequences}
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
            fields["mismatched"] = collate(mismatched, layout=layout, pad_id=pad_id, vision=vision)
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


def _flat(parts: Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _split(runs: Sequence[Run], sizes: Sequence[int]) -> list[Sequence[Run]]:
    ends = np.cumsum(sizes)
    return [runs[end - size : end] for end, size in zip(ends, sizes, strict=True)]
