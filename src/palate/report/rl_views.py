"""Rollouts of online learning as plain values: a table over the run, and samples of its beginning,
its middle and its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from palate.report.reader import Run
from palate.report.style import Style, Styles
from palate.report.words import plain
from palate.store.examples import Excerpt
from palate.store.pictures import Picture, PictureBudget
from palate.store.rollouts import RolloutRow

SHOWN_PROMPTS = 3
"""Prompts of a rollout whose responses are shown: the first of the file, not a selection."""
PROMPT, RESPONSE = 700, 1200
"""Characters of each that are shown."""
IMAGES = 3
"""Images of a prompt that are shown."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response of a prompt. `role`: best, worst, or what else it stands for."""

    role: str
    text: Excerpt
    score: float | None
    parts: tuple[tuple[str, float], ...]
    advantage: float | None
    tokens: int
    finished: bool
    reason: str
    dropped: str


@dataclass(frozen=True, kw_only=True)
class SampledPrompt:
    """A prompt with the best and the worst of its responses.

    Attributes:
        responses: one where all have the same score. of: how many there were.
    """

    source: str
    text: Excerpt
    images: tuple[Picture, ...]
    more_images: int
    responses: tuple[Response, ...]
    of: int


@dataclass(frozen=True, kw_only=True)
class SampledRollout:
    """The first prompts of a rollout."""

    title: str
    rollout: int
    prompts: tuple[SampledPrompt, ...]


@dataclass(frozen=True, kw_only=True)
class RolloutLine:
    """A rollout in figures.

    Attributes:
        score: mean of the responses that have one; low, high: the least and the greatest.
        distinct: share of the responses whose text no earlier one of the rollout has.
        commonest: the share of the commonest text. dropped: responses by why they are not trained
            on.
    """

    rollout: int
    version: int
    prompts: int
    responses: int
    score: float | None
    low: float | None
    high: float | None
    finished: float
    tokens: float
    distinct: float
    commonest: float
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class OnlineView:
    """The rollouts of one run. `of`: how many there are in its folder."""

    name: str
    style: Style
    lines: tuple[RolloutLine, ...]
    samples: tuple[SampledRollout, ...]
    of: int

    @property
    def has_dropped(self) -> bool:
        return any(line.dropped for line in self.lines)


def online_views(runs: Sequence[Run], styles: Styles, budget: PictureBudget) -> list[OnlineView]:
    """Views of the runs that have rollouts.

    Args:
        budget: pictures that the page may still show.
    """
    views = []
    for run in runs:
        if not run.rollouts or run.name not in styles.by_run:
            continue
        numbers = list(run.rollouts)
        ends = {numbers[0]: "First", numbers[len(numbers) // 2]: "Middle", numbers[-1]: "Last"}
        if len(numbers) == 1:
            ends = {numbers[0]: "Only"}
        views.append(
            OnlineView(
                name=run.name,
                style=styles.by_run[run.name],
                lines=tuple(_line(number, rows) for number, rows in run.rollouts.items()),
                samples=tuple(
                    SampledRollout(
                        title=f"{word} rollout",
                        rollout=number,
                        prompts=_prompts(run.rollouts[number], budget),
                    )
                    for number, word in ends.items()
                ),
                of=run.n_rollouts,
            )
        )
    return views


def _line(number: int, rows: Sequence[RolloutRow]) -> RolloutLine:
    scores = [row.score for row in rows if row.score is not None]
    texts = Counter(row.text for row in rows)
    return RolloutLine(
        rollout=number,
        version=min(row.version for row in rows),
        prompts=len({row.prompt for row in rows}),
        responses=len(rows),
        score=fmean(scores) if scores else None,
        low=min(scores, default=None),
        high=max(scores, default=None),
        finished=fmean(row.finished for row in rows),
        tokens=fmean(len(row.response_ids) for row in rows),
        distinct=len(texts) / len(rows),
        commonest=max(texts.values()) / len(rows),
        dropped=plain(dict(Counter(row.dropped for row in rows if row.dropped).most_common())),
    )


def _prompts(rows: Sequence[RolloutRow], budget: PictureBudget) -> tuple[SampledPrompt, ...]:
    by_prompt: dict[tuple[str, str], list[RolloutRow]] = {}
    for row in rows:
        by_prompt.setdefault((row.prompt, row.prompt_text), []).append(row)
    prompts = []
    for group in list(by_prompt.values())[:SHOWN_PROMPTS]:
        first = group[0]
        prompts.append(
            SampledPrompt(
                source=plain(first.source),
                text=_tail(first.prompt_text, PROMPT),
                images=tuple(map(budget.take, first.images[:IMAGES])),
                more_images=max(0, len(first.images) - IMAGES),
                responses=_best_and_worst(group),
                of=len(group),
            )
        )
    return tuple(prompts)


def _best_and_worst(group: Sequence[RolloutRow]) -> tuple[Response, ...]:
    scored = [row for row in group if row.score is not None]
    if not scored:
        return (_response("without a score", group[0]),)
    best = max(scored, key=lambda row: row.score or 0.0)
    worst = min(scored, key=lambda row: row.score or 0.0)
    if best.score == worst.score:
        return (_response("one of equal scores" if len(scored) > 1 else "only one", best),)
    return _response("best", best), _response("worst", worst)


def _response(role: str, row: RolloutRow) -> Response:
    text = plain(row.text.strip())
    return Response(
        role=role,
        text=Excerpt(text=text[:RESPONSE], after=max(0, len(text) - RESPONSE)),
        score=row.score,
        parts=tuple((plain(name), value) for name, value in row.parts.items()),
        advantage=row.advantage,
        tokens=len(row.response_ids),
        finished=row.finished,
        reason=plain(row.reason),
        dropped=plain(row.dropped),
    )


def _tail(text: str, size: int) -> Excerpt:
    """The end of a prompt: what is answered stands there."""
    text = plain(text.strip())
    start = max(0, len(text) - size)
    return Excerpt(text=text[start:], before=start)
