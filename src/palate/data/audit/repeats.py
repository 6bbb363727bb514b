"""Prompts, pairs and labels that come back: 16 bytes a pair.

Texts are compared with their white space evened out, by 64-bit digests: that two different pairs of
ten million are taken for one has a chance of about 1 in 10^5.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.audit.sketches import Growing
from palate.data.content import image_key
from palate.data.curation.shingles import Hashes, mix
from palate.data.schema import Content, Part, Preference, images_in

_U = np.uint64
_TIE = _U(0x9E3779B97F4A7C15)
_ONE = _U(1)
_TIMES = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 50), (51, None))
_MOST_SHARED = 20


class Repeats:
    """Digests of a source's pairs."""

    def __init__(self) -> None:
        self._prompts = Growing()
        self._pairs = Growing()

    def add(self, keys: Keys) -> None:
        self._prompts.add(keys.prompts)
        self._pairs.add(keys.pairs)

    def merge(self, other: Repeats) -> None:
        self._prompts.add(other._prompts.all())
        self._pairs.add(other._pairs.all())

    def prompts(self) -> Hashes:
        return self._prompts.all()

    def pairs(self) -> Hashes:
        return self._pairs.all()


@dataclass(frozen=True)
class Keys:
    """Digests of the pairs of a block.

    Attributes:
        prompts: [N], with their images.
        responses: [2, N] of chosen and rejected.
        pairs: [N]; the lowest bit says which response is chosen, the others do not depend on it.
        questions: [N], of prompts without their images.
        images: [I], of all rows. image_row: [I], the row that each is of.
        words: [3, N] of prompt, chosen and rejected.
    """

    prompts: Hashes
    responses: Hashes
    pairs: Hashes
    questions: Hashes
    images: Hashes
    image_row: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


def keys(rows: Sequence[Preference], ties: npt.NDArray[np.bool_]) -> Keys:
    """Digests of pairs. Args: `ties` [N], whose order means nothing."""
    digests: list[list[int]] = [[], [], []]
    words: list[list[int]] = [[], [], []]
    questions: list[int] = []
    images: list[int] = []
    seen: list[int] = []
    last: Any = None
    for row in rows:
        # Pairs of one prompt follow one another, and share it.
        if row.prompt is last:
            digests[0].append(digests[0][-1])
            words[0].append(words[0][-1])
            questions.append(questions[-1])
        else:
            # Each pair counts its images.
            last = None if row.conversational and row.images else row.prompt
            questions.append(_take(row.prompt, digests[0], words[0], images))
        for side, response in enumerate(row.responses, 1):
            _take(response.content, digests[side], words[side], images)
        seen.append(len(images))
    prompts, chosen, rejected = np.array(digests, dtype=np.uint64).reshape(3, -1)
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    unordered = mix(mix(prompts) + mix(low ^ _TIE) * _U(3) + high + np.where(ties, _TIE, _U(0)))
    direction = ((chosen < rejected) & ~ties).astype(np.uint64)
    return Keys(
        prompts=prompts,
        responses=np.stack([chosen, rejected]),
        pairs=(unordered & ~_ONE) | direction,
        questions=np.array(questions, dtype=np.uint64),
        images=np.array(images, dtype=np.uint64),
        image_row=np.repeat(np.arange(len(rows)), np.diff([0, *seen])),
        words=np.array(words, dtype=np.int64).reshape(3, -1),
    )


def summary(repeats: Repeats) -> dict[str, Any]:
    """Prompts with several pairs, duplicate pairs and contradictions."""
    pairs = repeats.pairs()
    distinct, counts = np.unique(repeats.prompts(), return_counts=True)
    bands = []
    for low, high in _TIMES:
        here = (counts >= low) & (counts <= (high or counts.max(initial=0)))
        if here.any():
            number, rows = int(here.sum()), int(counts[here].sum())
            bands.append({"from": low, "to": high, "prompts": number, "pairs": rows})
    _, equal = np.unique(pairs, return_counts=True)
    return {
        "prompts": {
            "distinct": len(distinct),
            "repeated": int((counts > 1).sum()),
            "most": int(counts.max(initial=0)),
            "pairs_by_times": bands,
        },
        "duplicates": {
            "pairs": int((equal - 1).sum()),
            "groups": int((equal > 1).sum()),
            "largest": int(equal.max(initial=0)),
        },
        "contradictions": _contradictions(pairs),
    }


def _contradictions(pairs: Hashes) -> dict[str, int]:
    """Pairs of one prompt and the same two responses with both labels."""
    found, counts = np.unique(pairs, return_counts=True)
    both = np.flatnonzero((found[1:] ^ found[:-1]) == _ONE) if len(found) else np.zeros(0, int)
    # Sorted, the two labels of a pair stand side by side, the lowest bit being the label.
    return {"groups": len(both), "pairs": int(counts[both].sum() + counts[both + 1].sum())}


def shared(digests: dict[str, Hashes], what: str) -> list[dict[str, Any]]:
    """The pairs of sources with most in common.

    Args:
        digests: of each source, in any number. what: name of the count.
    """
    names = list(digests)
    hashes = [np.unique(one) for one in digests.values()]
    everything = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
    owner = np.repeat(np.arange(len(names)), [len(one) for one in hashes])
    order = np.argsort(everything, kind="stable")
    everything, owner = everything[order], owner[order]
    common: Counter[tuple[int, int]] = Counter()
    for apart in range(1, len(names)):
        same = np.flatnonzero(everything[apart:] == everything[:-apart])
        if not len(same):
            break
        found, counts = np.unique(
            np.stack([owner[same], owner[same + apart]]), axis=1, return_counts=True
        )
        for (a, b), count in zip(found.T.tolist(), counts.tolist(), strict=True):
            common[a, b] += count
    top = sorted(common.items(), key=lambda item: (-item[1], item[0]))[:_MOST_SHARED]
    return [{"a": names[a], "b": names[b], what: count} for (a, b), count in top]


def _take(content: Content, digests: list[int], words: list[int], seen: list[int]) -> int:
    """Notes the digest and the words of one part, and the digests of its images.

    Returns:
        the digest of its text without images.
    """
    if isinstance(content, str):
        text, count = _evened(content)
    else:
        turns = [(turn["role"], *_turn(turn["content"])) for turn in content]
        count = sum(number for *_, number in turns)
        # Of a single turn, its text: a prompt is the same one as text and as a chat.
        text = (
            turns[0][1]
            if len(turns) == 1
            else "\x1e".join(f"{role}\x1f{text}" for role, text, _ in turns)
        )
    alone = digest = _digest(text)
    if images := images_in(content):
        marks = list(map(image_key, images))
        seen += map(_digest, marks)
        digest = _digest("\x1d".join([text, *marks]))
    digests.append(digest)
    words.append(count)
    return alone


def _turn(content: str | list[Part]) -> tuple[str, int]:
    if isinstance(content, str):
        return _evened(content)
    # Where in the text an image stands is part of the question.
    parts = "".join(part["text"] if part["type"] == "text" else "\x1c" for part in content)
    evened = [_evened(part) for part in parts.split("\x1c")]
    return "\x1c".join(text for text, _ in evened), sum(count for _, count in evened)


def _evened(text: str) -> tuple[str, int]:
    """`curation.text.normalised(text, "whitespace")`, and how many words there are."""
    words = (text if text.isascii() else unicodedata.normalize("NFC", text)).split()
    return " ".join(words), len(words)


def _digest(text: str) -> int:
    made = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(made.digest(), "little")
