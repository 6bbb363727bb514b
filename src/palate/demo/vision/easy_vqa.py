"""Pairs from easy-VQA: questions about a coloured shape, their answers written as sentences.

Each pair has a twin: the same question about another image, whose rejected answer is this one's
chosen one. So every answer of every question is chosen exactly as often as it is rejected, and
whoever does not look at the image is right about exactly one of two twins.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from palate.errors import DataError, PalateError

PACKAGE = "easy_vqa"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
Split = Literal["train", "test"]

UNSEEN_THINGS = frozenset(
    {("red", "triangle"), ("teal", "circle"), ("gray", "rectangle"), ("green", "triangle")}
)
"""Colour and shape of images that are never trained on, though each alone is."""
UNSEEN_WORDINGS = frozenset(
    {
        "is a {colour} shape present?",
        "is there not a {shape} in the image?",
        "what is the color of the shape?",
        "what shape is present?",
    }
)
"""Questions that are never trained on."""

_SLOTS = (("{colour}", COLOURS), ("{shape}", SHAPES))


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Attributes:
        text: as easy-VQA has it. answer: one word.
        split, image: of easy-VQA. subject: colour and shape of what the image shows.
    """

    text: str
    answer: str
    split: Split
    image: int
    subject: tuple[str, str]

    @property
    def wording(self) -> str:
        """The question with its colour and shape left open."""
        text = self.text
        for slot, words in _SLOTS:
            text = re.sub(rf"\b({'|'.join(words)})\b", slot, text)
        return text

    @property
    def path(self) -> str:
        """Of the image, below easy-VQA's data."""
        return f"{self.split}/images/{self.image}.png"


def data_folder() -> Path:
    """easy-VQA's files.

    Raises:
        PalateError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PalateError("the pairs need easy-vqa: pip install 'palate[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data"


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """Every question of a split whose image's colour and shape its own questions tell.

    Raises:
        DataError: the file is not as easy-VQA's.
    """
    file = data_folder() / split / "questions.json"
    try:
        rows = [(str(q), str(a), int(i)) for q, a, i in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: not easy-VQA's questions: {error}") from None
    things = things_of(rows)
    return tuple(Question(q, a, split, i, things[i]) for q, a, i in rows if i in things)


def things_of(rows: Iterable[tuple[str, str, int]]) -> dict[int, tuple[str, str]]:
    """Image -> colour and shape, of those whose questions tell both.

    Args:
        rows: question, answer and image.
    """
    told: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for text, answer, image in rows:
        negated = bool(re.search(r"\b(no|not)\b", text))
        for slot, words in _SLOTS:
            named = [word for word in words if re.search(rf"\b{word}\b", text)]
            if answer in words:
                told[image][slot].add(answer)
            # "what is the blue shape?" takes for granted that it is blue.
            if named and (answer not in ("yes", "no") or (answer == "yes") != negated):
                told[image][slot].update(named)
    return {
        image: (min(slots["{colour}"]), min(slots["{shape}"]))
        for image, slots in told.items()
        if len(slots["{colour}"]) == len(slots["{shape}"]) == 1
    }


def sentence(question: str, answer: str) -> str:
    """An answer as a sentence that says what it claims of the image.

    Of one question all sentences have as many words, yes and no apart, which differ by none.
    """
    if answer not in ("yes", "no"):
        if answer in COLOURS:
            named = next((s for s in SHAPES if re.search(rf"\b{s}\b", question)), "shape")
            return f"The {named} is {answer}."
        named = next((c for c in COLOURS if re.search(rf"\b{c}\b", question)), "")
        return f"The {named + ' ' if named else ''}shape is a {answer}."
    negated = bool(re.search(r"\b(no|not)\b", question))
    there = (answer == "yes") != negated
    (named,) = (w for w in (*COLOURS, *SHAPES) if re.search(rf"\b{w}\b", question))
    subject = f"{named} shape" if named in COLOURS else named
    return f"{answer.capitalize()}, there is {'a' if there else 'no'} {subject}."


@dataclass(frozen=True)
class Pair:
    """An answer that is true of an image, and one that is not.

    Attributes:
        twin: number that it shares with its twin.
    """

    question: Question
    rejected: str
    twin: int

    def row(self, image: str) -> dict[str, object]:
        """As preference data; the image's path is relative to the file's folder."""
        content = [
            {"type": "image"},
            {"type": "text", "text": self.question.text.capitalize()},
        ]
        q = self.question
        return {
            "id": f"{q.split}-{self.twin}-{q.image}",
            "prompt": [{"role": "user", "content": content}],
            "chosen": [{"role": "assistant", "content": sentence(q.text, q.answer)}],
            "rejected": [{"role": "assistant", "content": sentence(q.text, self.rejected)}],
            "images": [image],
        }


def twins(asked: Sequence[Question], *, seed: int) -> list[Pair]:
    """Pairs from questions, two and two of the same text and different answers.

    Of each text as many pairs as can be made when every question of an image is used once; what is
    left over has no twin and is left out.

    Returns:
        Twins side by side, pairs of twins in random order.
    """
    by_text: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in asked:
        by_text[question.text][question.answer].append(question)
    rng = random.Random(f"{seed}|twins")
    couples: list[tuple[Question, Question]] = []
    for text in sorted(by_text):
        answers = {answer: list(of) for answer, of in sorted(by_text[text].items())}
        for of in answers.values():
            rng.shuffle(of)
        while True:
            # The answer with most left always takes part, or it would be left without others.
            full = sorted((a for a in answers if answers[a]), key=lambda a: -len(answers[a]))
            if len(full) < 2:
                break
            most = len(answers[full[0]])
            even = [a for a in full if len(answers[a]) == most]
            a, b = rng.sample(even, 2) if len(even) > 1 else (full[0], rng.choice(full[1:]))
            couples.append((answers[a].pop(), answers[b].pop()))
    rng.shuffle(couples)
    pairs: list[Pair] = []
    for number, (first, second) in enumerate(couples):
        pairs += [Pair(first, second.answer, number), Pair(second, first.answer, number)]
    return pairs
