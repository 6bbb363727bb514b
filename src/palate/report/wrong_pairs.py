"""The pairs that models got wrong by most, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from palate.report.audit_diff import Difference, difference
from palate.report.reader import Run
from palate.report.style import Style
from palate.store.examples import WrongPair
from palate.store.pictures import LEFT_OUT, Picture, PictureBudget

MOST = 12
"""Pairs of one benchmark, whatever the file holds."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One model's scores of a pair; `margin` is None where either is missing."""

    model: str
    style: Style | None
    better: float | None
    worse: float | None

    @property
    def margin(self) -> float | None:
        if self.better is None or self.worse is None:
            return None
        return self.better - self.worse


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A pair with its differences, its pictures as far as there is room, and its verdicts."""

    pair: WrongPair
    difference: Difference
    images: tuple[Picture, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class WrongPairs:
    """Pairs of one benchmark or run. `left_out`: pictures that there was no room for."""

    name: str
    shown: tuple[ShownPair, ...]
    left_out: int


def wrong_pairs(
    name: str,
    pairs: Iterable[WrongPair],
    styles: Mapping[str, Style],
    budget: PictureBudget,
) -> WrongPairs | None:
    """The first dozen of some pairs; None of none.

    Args:
        styles: of models. budget: of the whole page.
    """
    shown = []
    left_out = 0
    for pair in list(pairs)[:MOST]:
        images = tuple(map(budget.take, pair.images))
        # Some were left out when the file was written.
        left_out += sum(image.url is None and image.problem == LEFT_OUT for image in images)
        shown.append(
            ShownPair(
                pair=pair,
                difference=difference(pair.chosen.text, pair.rejected.text),
                images=images,
                verdicts=tuple(
                    Verdict(model=model, style=styles.get(model), better=better, worse=worse)
                    for model, (better, worse) in pair.scores.items()
                ),
            )
        )
    return WrongPairs(name=name, shown=tuple(shown), left_out=left_out) if shown else None


def held_out_errors(runs: Sequence[Run], budget: PictureBudget) -> list[WrongPairs]:
    """Those of runs that measured themselves on held-out pairs."""
    views = [
        wrong_pairs(run.name, run.wrong_pairs, {}, budget) for run in runs if run.rewards is None
    ]
    return [view for view in views if view is not None]
