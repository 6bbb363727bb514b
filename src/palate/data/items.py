"""Rows made trainable: what encoding returns, and what layouts, caches and losses' batches take.

One type for pairs, ranked lists, demonstrations, unpaired feedback, rollouts and answers to be
scored: some responses, the prompt of each, and what is known of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from palate.data.schema import Content

TokenIds = tuple[int, ...]
ItemKind = Literal["pair", "rated", "unpaired", "demonstration", "rollout"]
"""What a loss takes: items labelled `PairLabel`, `Ranks`, `Desirable`, without a label, or labelled
`Rollout`."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image or a video in a text: its placeholder tokens, and the digest of what it shows.

    Attributes:
        start: of its first token. length: how many stand for it, separators among them included.
        digest: hex SHA-256 of the file; of a video of its frames.
        grid: (frames, rows, columns) of its tokens, where positions go by them.
        interval: between the positions of two frames.
    """

    start: int
    length: int
    digest: str
    grid: tuple[int, int, int] | None = None
    interval: float = 1.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt or a response as token ids.

    Attributes:
        ids: of a prompt with BOS where the model has one; of a response with the end-of-response
            token unless it was truncated.
        trained: of a response, whether each token is trained on (True) or only read, as a user's
            turn between two answers is; None: all are.
        images: in the order of their places.

    Raises:
        ValueError: `trained` of another length than `ids`, or with nothing to train on.
    """

    ids: TokenIds
    trained: tuple[bool, ...] | None = None
    images: tuple[PlacedImage, ...] = ()

    def __post_init__(self) -> None:
        if self.trained is not None:
            if len(self.trained) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids, {len(self.trained)} flags of training")
            if not any(self.trained):
                raise ValueError("a response of which no token is trained on")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt to sample from.

    Attributes:
        tokens: as the encoder makes them; of a model that sees with their images.
        content: as scorers and chat servers take it.
    """

    tokens: Tokens
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLabel:
    """Of two responses the first is chosen, the second rejected.

    Attributes:
        margin: chosen score minus rejected score, where known.
        tie: neither was preferred; the order means nothing.
        probability: share of the votes for the chosen response, where somebody counted.
    """

    margin: float | None = None
    tie: bool = False
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of two or more responses the rank of each: 1 is best, equal ranks are ties."""

    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desirable:
    """Of one response whether it is desirable (unpaired feedback).

    Attributes:
        mismatched: another row's response, for KTO's estimate of the KL.
    """

    desirable: bool
    mismatched: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Of responses that a policy sampled what an update needs.

    Attributes:
        tokens: by name, of each response one value a trained token: `advantages`, `old_logps`,
            `ref_logps`, `values`, `returns`, `weights` ... Those that an update uses.
    """

    tokens: Mapping[str, tuple[Floats, ...]]


Label = PairLabel | Ranks | Desirable | Rollout


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row as token ids.

    Attributes:
        prompts: of each response its prompt; mostly the same one.
        responses: none of them empty.
        label: what is known of the responses; None of demonstrations and of answers to be scored.
        weight: multiplies the item's loss.
        written: characters of each response before truncation; None where there is no text.
        id, source: of the row; empty where nothing asks for them.
        index: position in the encoded data set (for caches and sample tables).

    Raises:
        ValueError: not one prompt a response, or a label for another number of responses.
    """

    prompts: tuple[Tokens, ...]
    responses: tuple[Tokens, ...]
    label: Label | None = None
    weight: float = 1.0
    written: tuple[int, ...] | None = None
    id: str = ""
    source: str = ""
    index: int = -1

    def __post_init__(self) -> None:
        n = len(self.responses)
        if n < 1 or len(self.prompts) != n:
            raise ValueError(f"{len(self.prompts)} prompts of {n} responses")
        if not all(map(len, self.responses)):
            raise ValueError("a response without a token")
        if self.written is not None and len(self.written) != n:
            raise ValueError(f"{len(self.written)} lengths as written of {n} responses")
        match self.label:
            case PairLabel() if n != 2:
                raise ValueError(f"the label of a pair, for {n} responses")
            case Ranks(ranks) if n < 2 or len(ranks) != n:
                raise ValueError(f"{len(ranks)} ranks of {n} responses")
            case Desirable() if n != 1:
                raise ValueError(f"the label of one response, for {n}")
            case Rollout(tokens) if any(len(values) != n for values in tokens.values()):
                raise ValueError(f"a rollout's values, not of {n} responses")

    @classmethod
    def of(
        cls,
        prompt: Tokens | TokenIds,
        *responses: Tokens | TokenIds,
        label: Label | None = None,
        weight: float = 1.0,
        id: str = "",
        source: str = "",
        index: int = -1,
    ) -> Item:
        """An item of responses to one prompt."""
        asked = _tokens(prompt)
        return cls(
            prompts=(asked,) * len(responses),
            responses=tuple(map(_tokens, responses)),
            label=label,
            weight=weight,
            id=id,
            source=source,
            index=index,
        )

    @property
    def kind(self) -> ItemKind:
        """Which losses take it."""
        match self.label:
            case PairLabel():
                return "pair"
            case Ranks():
                return "rated"
            case Desirable():
                return "unpaired"
            case Rollout():
                return "rollout"
        return "demonstration"

    @property
    def pair(self) -> PairLabel:
        """The label of a pair.

        Raises:
            TypeError: it is none.
        """
        if not isinstance(self.label, PairLabel):
            raise TypeError(f"a {self.kind} has no chosen and rejected response")
        return self.label

    @property
    def longer(self) -> int:
        """Of a pair the length of the chosen response less that of the rejected one.

        As written: truncation makes long responses equally long, and hides what length tells. In
        tokens where there is no text.
        """
        chosen, rejected = map(len, self.responses) if self.written is None else self.written
        return chosen - rejected

    @property
    def cut_even(self) -> bool:
        """Whether truncation has made a pair's responses equally long, in tokens, that were not."""
        return len(self.responses[0]) == len(self.responses[1]) and self.longer != 0

    @property
    def sequences(self) -> tuple[tuple[Tokens, Tokens], ...]:
        """Prompt and response of each response."""
        return tuple(zip(self.prompts, self.responses, strict=True))

    @property
    def all_sequences(self) -> tuple[tuple[Tokens, Tokens], ...]:
        """As `sequences`, and the mismatched response of unpaired feedback."""
        if isinstance(self.label, Desirable) and self.label.mismatched is not None:
            return (*self.sequences, (self.prompts[0], self.label.mismatched))
        return self.sequences

    @property
    def images(self) -> list[tuple[Tokens, PlacedImage]]:
        """Images with the texts that they stand in, those of a prompt that several responses have
        once."""
        texts = (*dict.fromkeys(self.prompts), *self.responses)
        return [(text, image) for text in texts for image in text.images]

    @property
    def n_tokens(self) -> int:
        """Tokens of prompts and responses, a prompt that several responses have once."""
        prompts = {prompt.ids: len(prompt) for prompt in self.prompts}
        return sum(prompts.values()) + sum(map(len, self.responses))


def _tokens(ids: Tokens | TokenIds) -> Tokens:
    return ids if isinstance(ids, Tokens) else Tokens(ids)


def batches_to_score(
    sequences: Sequence[tuple[Tokens, Tokens]], size: int
) -> Iterator[tuple[list[Item], list[int]]]:
    """Prompts and responses as batches of items; responses to one prompt are in one item.

    Args:
        size: most responses of a batch.

    Yields:
        Items, alike in length, and the place in `sequences` of each of their responses.
    """
    by_prompt: dict[Tokens, list[int]] = {}
    for place, (prompt, _) in enumerate(sequences):
        by_prompt.setdefault(prompt, []).append(place)
    parts = [
        (prompt, places[start : start + size])
        for prompt, places in by_prompt.items()
        for start in range(0, len(places), size)
    ]

    def longest(part: tuple[Tokens, list[int]]) -> int:
        return len(part[0]) + max(len(sequences[place][1]) for place in part[1])

    items: list[Item] = []
    batch: list[int] = []
    for prompt, places in sorted(parts, key=longest, reverse=True):
        if len(batch) + len(places) > size:
            yield items, batch
            items, batch = [], []
        items.append(Item.of(prompt, *(sequences[place][1] for place in places)))
        batch += places
    if batch:
        yield items, batch


def of_kind(items: Sequence[Item], kind: ItemKind) -> list[Item]:
    """Those items that a loss of this kind takes."""
    return [item for item in items if item.kind == kind]


def sequence_key(prompt: Tokens, response: Tokens) -> str:
    """Content key of one prompt and response: hex SHA-256 of all they hold, images included."""
    digest = hashlib.sha256()
    digest.update(np.asarray([len(prompt), len(response)], dtype="<i8").tobytes())
    for part in (prompt, response):
        digest.update(np.asarray(part.ids, dtype="<i8").tobytes())
    for name, part in (("prompt", prompt), ("response", response)):
        if part.trained is not None:
            digest.update(f"{name}|{part.trained}".encode())
        for image in part.images:
            digest.update(f"{name}|{image.start}|{image.length}|{image.digest}".encode())
            if image.grid is not None:
                digest.update(f"|{image.grid}".encode())
    return digest.hexdigest()


def items_digest(items: Iterable[Item]) -> str:
    """Hex SHA-256 of encoded data: ids, token ids, weights, labels and order."""
    digest = hashlib.sha256()
    for item in items:
        for sequence in item.all_sequences:
            digest.update(sequence_key(*sequence).encode())
        # The mismatched response is a sequence already.
        label = item.label.desirable if isinstance(item.label, Desirable) else item.label
        digest.update(repr((item.id, item.source, item.weight, label)).encode())
    return digest.hexdigest()
