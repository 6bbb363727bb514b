"""Questions to judges and critics, with the answers that are right and wrong by the labels."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from palate.data.schema import Message
from palate.recipes.judge import PairwiseKind, PointwiseKind
from palate.rewards.questions import (
    FIRST,
    SECOND,
    TIE,
    critique_question,
    pair_question,
    rating_question,
    read_verdict,
)
from palate.train.judge.rows import Comparison, Rating, on_scale


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        asked: exactly what the scorers of `palate.rewards.judge` ask.
        options: verdicts that may be given. right: the one by the label.
        text: reasoning of the data for it.
    """

    id: str
    source: str
    asked: list[Message]
    options: tuple[str, ...]
    right: str
    text: str | None = None

    def wrong(self, seed: int) -> str:
        """One of the wrong verdicts, drawn by seed and id."""
        others = [option for option in self.options if option != self.right]
        return random.Random(f"{seed}|wrong|{self.id}").choice(others)


@dataclass(frozen=True, kw_only=True)
class CritiqueQuestion:
    """A critic's question about one side of a comparison.

    Attributes:
        better: whether it is about the better response; None of a tie.
        text: critique of the data.
    """

    id: str
    source: str
    asked: list[Message]
    better: bool | None
    text: str | None = None


def verdict_text(verdict: str) -> str:
    """A verdict as it is read back."""
    return f"<answer>{verdict}</answer>"


def pair_questions(rows: Sequence[Comparison], kind: PairwiseKind, seed: int) -> list[Question]:
    """Comparisons as questions; of each row one, or one in each order.

    Balanced orders: rows are ranked by a hash of seed and id, and every other one has the better
    response first: exactly one half, whatever the order of the rows. A text of the data that ends
    with a verdict sets the order in which its verdict is right, and is asked in that one alone.
    """
    options = (FIRST, SECOND, *((TIE,) if kind.ties else ()))
    ranked = sorted(range(len(rows)), key=lambda i: _hash(f"{seed}|order|{rows[i].id}"))
    first = {i: place % 2 == 0 for place, i in enumerate(ranked)}
    questions = []
    for i, row in enumerate(rows):
        verdict = None if row.text is None else read_verdict(row.text, (FIRST, SECOND))
        if verdict is not None and not row.tie:
            orders = [verdict == FIRST]
        elif kind.orders == "both":
            orders = [True, False]
        else:
            orders = [first[i]]
        for forward in orders:
            right = TIE if row.tie else FIRST if forward else SECOND
            sides = (row.better, row.worse) if forward else (row.worse, row.better)
            questions.append(
                Question(
                    id=row.id if len(orders) == 1 else f"{row.id}/{'12' if forward else '21'}",
                    source=row.source,
                    asked=pair_question(
                        row.prompt,
                        *sides,
                        ties=kind.ties,
                        reasoning=kind.reasoning,
                        instructions=kind.instructions,
                    ),
                    options=options,
                    right=right,
                    text=row.text,
                )
            )
    return questions


def rating_questions(
    rows: Sequence[Rating], kind: PointwiseKind, cuts: Sequence[float]
) -> list[Question]:
    """Ratings as questions for one of 1 .. best."""
    options = tuple(str(rating) for rating in range(1, kind.best + 1))
    return [
        Question(
            id=row.id,
            source=row.source,
            asked=rating_question(
                row.prompt,
                row.response,
                best=kind.best,
                reasoning=kind.reasoning,
                instructions=kind.instructions,
            ),
            options=options,
            right=str(on_scale(row.rating, cuts, kind)),
            text=row.text,
        )
        for row in rows
    ]


def critique_questions(rows: Sequence[Comparison]) -> list[CritiqueQuestion]:
    """Two questions a comparison, about the better and about the worse response."""
    return [
        CritiqueQuestion(
            id=f"{row.id}/{name}",
            source=row.source,
            asked=critique_question(row.prompt, response),
            better=None if row.tie else name == "better",
            text=None if row.critiques is None else row.critiques[name == "worse"],
        )
        for row in rows
        for name, response in (("better", row.better), ("worse", row.worse))
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
