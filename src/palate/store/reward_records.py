"""evaluation.json of `palate eval reward`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from palate.store.records import Evaluation, Interval, Record

KIND = "reward-evaluation"


class Column(Record):
    name: str = ""
    value: float | None = None
    n: int | None = None
    ci: Interval | None = None
    ties: int | None = None


class Official(Record):
    """A benchmark's own score."""

    value: float | None = None
    columns: tuple[Column, ...] = ()
    detail: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Accuracy(Record):
    """Pairs of one source, or of all."""

    n: int = 0
    prompts: int | None = None
    ties: int = 0
    unscored: int = 0
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    length_baseline: float | None = None
    length_baseline_ci: Interval | None = None
    shorter_baseline: float | None = None
    over_length: float | None = None
    over_length_ci: Interval | None = None


class Bin(Record):
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    confidence: float | None = None
    n: int = 0
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    length_baseline: float | None = None


class Calibration(Record):
    n: int = 0
    ece: float | None = None
    ece_tempered: float | None = None
    temperature: float | None = None
    reason: str | None = None
    bins: tuple[Bin, ...] = ()
    bins_tempered: tuple[Bin, ...] = ()


class ByLength(Record):
    bins: tuple[Bin, ...] = ()
    longer: Accuracy = Accuracy()
    shorter: Accuracy = Accuracy()
    gap: float | None = None


class ByMargin(Record):
    model: tuple[Bin, ...] = ()
    data: tuple[Bin, ...] = ()


class Robust(Record):
    change: str = ""
    words: str = ""
    rejected_only: bool = False
    n: int = 0
    lost: int = 0
    flips: float | None = None
    flips_ci: Interval | None = None
    accuracy_change: float | None = None
    accuracy_change_ci: Interval | None = None
    shift: float | None = None


class Side(Record):
    """Pairs as they are, without images or with those of others."""

    n: int = 0
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    ties: int = 0


class Shortcut(Record):
    """By whether the text alone gives the right verdict."""

    blind_right: Side = Side()
    blind_wrong: Side = Side()
    degradation: float | None = None
    degradation_ci: Interval | None = None


class Look(Record):
    """What the images of prompts are worth to a model."""

    items: int = 0
    items_with_images: int = 0
    n: int = 0
    lost: int = 0
    real: Side = Side()
    blind: Side = Side()
    others: Side = Side()
    difference: float | None = None
    difference_ci: Interval | None = None
    difference_others: float | None = None
    difference_others_ci: Interval | None = None
    as_good_without: bool | None = None
    shortcut: Shortcut = Shortcut()
    sentence: str = ""


class Result(Record):
    """One model on one benchmark."""

    official: Official = Official()
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    calibration: Calibration = Calibration()
    by_length: ByLength = ByLength()
    by_margin: ByMargin = ByMargin()
    robustness: tuple[Robust, ...] = ()
    look: Look | None = None


class Agreement(Record):
    a: str = ""
    b: str = ""
    n: int = 0
    verdicts: float | None = None
    both_wrong: float | None = None
    kendall: float | None = None
    spearman: float | None = None
    kendall_within: float | None = None


class Benchmark(Record):
    name: str = "benchmark"
    title: str = ""
    definition: str = ""
    items: int = 0
    pairs: int = 0
    ties: int = 0
    baselines: dict[str, Official] = Field(default_factory=dict)
    results: dict[str, Result] = Field(default_factory=dict)
    agreement: tuple[Agreement, ...] = ()


class Spread(Record):
    name: str = ""
    mean: float | None = None
    deviation: float | None = None
    within: float | None = None
    share: float | None = None
    unscored: int = 0


class Members(Record):
    rule: str = ""
    standardised: bool = False
    raw: tuple[Spread, ...] = ()
    entering: tuple[Spread, ...] = ()
    weights: tuple[float | None, ...] = ()
    warning: str | None = None


class ScoresRecord(Record):
    n: int = 0
    unscored: int = 0
    mean: float | None = None
    deviation: float | None = None


class Model(Record):
    name: str = "model"
    type: str = ""
    scores: ScoresRecord = ScoresRecord()
    members: Members | None = None
    account: dict[str, int] = Field(default_factory=dict)


class Point(Record):
    n: int = 1
    kl: float = 0.0
    gold: float | None = None
    gold_ci: Interval | None = None
    proxy: float | None = None
    ceiling: float | None = None


class Choice(Record):
    """Best-of-n by one model."""

    prompts: int = 0
    candidates: int = 0
    left_out: int = 0
    prompts_left_out: int = 0
    smallest: int = 2
    fewest: int | None = None
    most: int | None = None
    largest: int | None = None
    peak: int | None = None
    fall: float | None = None
    fall_ci: Interval | None = None
    gain: float | None = None
    gain_ci: Interval | None = None
    share_of_ceiling: float | None = None
    over_optimised: bool = False
    points: tuple[Point, ...] = ()


class BestOfN(Record):
    gold: str = ""
    models: dict[str, Choice] = Field(default_factory=dict)


class RewardEvaluation(Evaluation):
    """evaluation.json"""

    confidence: float = 0.95
    models: tuple[Model, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    best_of_n: BestOfN | None = None
