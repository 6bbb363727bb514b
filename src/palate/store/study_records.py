"""analysis.json of a study folder, as its report reads it: all fields optional."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from palate.store.records import Interval, Record

NAME = "analysis.json"
Choices = dict[str, str]
"""Aspect -> variant."""


class StudyStatistics(Record):
    confidence: float = 0.95
    estimand: str = "new_items"
    correction: str = "none"


class StudyVariant(Record):
    name: str
    set: dict[str, Any] = Field(default_factory=dict)


class StudyAspect(Record):
    name: str
    varies: tuple[str, ...] = ()
    baseline: str
    variants: tuple[StudyVariant, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of its variants, the baseline first."""
        names = [variant.name for variant in self.variants]
        return sorted(names, key=lambda name: name != self.baseline)


class StudyMeasure(Record):
    name: str
    step: str = ""
    value: str = ""
    source: str | None = None
    better: str | None = None
    smallest: float | None = None
    items: int | None = None


class StudyRun(Record):
    """A run of a cell with a seed: its stages by step, and its measures where it is finished."""

    cell: Choices = Field(default_factory=dict)
    seed: int = 0
    stages: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float | None] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    values: dict[str, float | None] = Field(default_factory=dict)


class StudyEstimate(Record):
    """A difference of two variants, under one of the estimands."""

    names: tuple[str, str]
    means: tuple[float, float]
    difference: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    confidence: float = 0.95
    items: int | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    distinguished: bool | None = None
    verdict: str = ""


class CorrectedEstimate(Record):
    """What a correction for the number of comparisons makes of the main estimand."""

    p_value: float | None = None
    distinguished: bool | None = None
    verdict: str = ""
    comparisons: int = 1


class StudyComparison(Record):
    """A variant with its aspect's baseline.

    Attributes:
        at: the other aspects' variants; None of a mean over `settings` of them, of which
            `settings_finished` have a run on each side.
        why: there is no estimate, or only one.
        span: range of KL, nats, at which variants were compared; None of runs as they ended.
    """

    measure: str
    aspect: str
    variant: str
    against: str
    at: Choices | None = None
    settings: int = 1
    settings_finished: int = 1
    seeds: tuple[int, ...] = ()
    missing_seeds: tuple[int, ...] = ()
    items_left_out: int = 0
    why: str | None = None
    span: tuple[float, float] | None = None
    estimands: dict[str, StudyEstimate] = Field(default_factory=dict)
    corrected: CorrectedEstimate | None = None


class StudyExpectation(Record):
    """What was expected of a comparison; `before`: it was written before there was any result."""

    aspect: str
    variant: str
    against: str | None = None
    measure: str = ""
    direction: str = "none"
    smallest: float = 0.0
    disagreement: str = ""
    written: str | None = None
    before: bool | None = None
    outcome: str = "no result yet"
    difference: float | None = None
    interval: tuple[float, float] | None = None


class VarianceShare(Record):
    term: str
    share: float | None = None
    interval: Interval | None = None
    clipped: bool = False


class StudyVariance(Record):
    measure: str
    shares: tuple[VarianceShare, ...] = ()
    runs: int = 0
    confidence: float = 0.95
    notes: tuple[str, ...] = ()


class RatedCell(Record):
    """Elo points above the reference."""

    cell: Choices = Field(default_factory=dict)
    points: float
    interval: Interval | None = None


class StudyRatings(Record):
    """Cells rated by what the scorer or judge of an evaluation says of their samples.

    Attributes:
        regularised: half a win each way was added, since nothing bounds a rating otherwise.
        why: there is none.
    """

    step: str = ""
    by: str = "reward"
    rows: tuple[RatedCell, ...] = ()
    outcomes: int = 0
    ties: int = 0
    prompts: int = 0
    confidence: float = 0.95
    regularised: bool = False
    why: str | None = None


class StudyCorrelation(Record):
    names: tuple[str, str]
    words: str = ""


class StudyCost(Record):
    """Seconds: by step, of all stages together, and of all runs had each made its own; tokens that
    the steps trained on or sampled; the most that a process of theirs held, bytes."""

    steps: dict[str, float] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    memory: dict[str, int] = Field(default_factory=dict)
    together: float = 0.0
    apart: float = 0.0


class StepLineage(Record):
    base: str | None = None
    base_digest: str | None = None
    scorers: tuple[dict[str, Any], ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    pairs: int | None = None
    longer_is_chosen: float | None = None
    longer_wins: dict[str, float] = Field(default_factory=dict)
    mean_tokens: dict[str, float | None] = Field(default_factory=dict)
    commit: str | None = None


class CellLineage(Record):
    cell: Choices = Field(default_factory=dict)
    steps: dict[str, StepLineage] = Field(default_factory=dict)


class CellSample(Record):
    cell: Choices = Field(default_factory=dict)
    seed: int | None = None
    response: str = ""
    reward: float | None = None
    kl: float | None = None
    tokens: int | None = None


class StudySample(Record):
    prompt: str = ""
    reference: str | None = None
    cells: tuple[CellSample, ...] = ()


class TunedCell(Record):
    cell: Choices = Field(default_factory=dict)
    values: dict[str, Any] = Field(default_factory=dict)


class StudyAnalysis(Record):
    """The whole file.

    Attributes:
        failures: stage -> why its last attempt failed.
        later: what is run only when what it depends on is known.
    """

    kind: str | None = None
    written: str | None = None
    folder: str | None = None
    design: str = ""
    seeds: tuple[int, ...] = ()
    statistics: StudyStatistics = StudyStatistics()
    budget: dict[str, Any] | None = None
    aspects: tuple[StudyAspect, ...] = ()
    measures: tuple[StudyMeasure, ...] = ()
    runs: tuple[StudyRun, ...] = ()
    comparisons: tuple[StudyComparison, ...] = ()
    matched_kl: tuple[StudyComparison, ...] = ()
    ratings: tuple[StudyRatings, ...] = ()
    expectations: tuple[StudyExpectation, ...] = ()
    variance: tuple[StudyVariance, ...] = ()
    correlations: tuple[StudyCorrelation, ...] = ()
    footnotes: tuple[str, ...] = ()
    cost: StudyCost = StudyCost()
    lineage: tuple[CellLineage, ...] = ()
    samples: tuple[StudySample, ...] = ()
    tuned: tuple[TunedCell, ...] = ()
    later: tuple[str, ...] = ()
    failures: dict[str, str] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether any run has a number."""
        return any(value is not None for run in self.runs for value in run.values.values())
