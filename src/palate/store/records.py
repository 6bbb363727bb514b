"""The JSON files of a run folder, each written and read by the same model.

A record that another version wrote, or a run that was stopped, still reads: all fields are
optional, and what a version does not know is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palate.errors import RunError
from palate.store.files import read_json, write_json

Interval = tuple[float | None, float | None]


class Record(BaseModel):
    """A JSON object on disk."""

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)

    @classmethod
    def of(cls, document: Any) -> Self:
        """The record of a JSON object.

        Raises:
            ValidationError: it is none of this kind.
        """
        return cls.model_validate(document)

    def document(self) -> dict[str, Any]:
        """As JSON: what was given, and nothing else."""
        return self.model_dump(mode="json", exclude_unset=True)


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """The record in a file.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    document = read_json(path)
    try:
        return kind.of(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{path}: {where}: {first['msg']}") from None


def write_record(path: Path, record: Record) -> None:
    """Writes a record's file, whole or not at all."""
    write_json(path, record.document())


@dataclass(frozen=True)
class Lines(Generic[R]):
    """The records of a file of lines.

    Attributes:
        cut_off: the last line is unfinished, as a killed run leaves it.
        unreadable: how many others are no record of the kind.
    """

    records: tuple[R, ...]
    cut_off: bool
    unreadable: int


def read_lines(
    path: Path, kind: type[R], clean: Callable[[Any], Any] = lambda row: row
) -> Lines[R]:
    """Reads a file of one record a line.

    Args:
        clean: changes each JSON value before it is made a record.

    Raises:
        OSError: the file cannot be read.
    """
    records: list[R] = []
    faults: list[int] = []
    number, closed = 0, True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            closed = line.endswith(b"\n")
            if line.strip():
                try:
                    records.append(kind.of(clean(json.loads(line.decode("utf-8")))))
                except ValueError:  # pydantic's errors are of this kind, too
                    faults.append(number)
    cut_off = not closed and faults[-1:] == [number]
    return Lines(tuple(records), cut_off, len(faults) - cut_off)


class SourceRecord(Record):
    """One data file: read = kept + rejected + dropped + merged + not selected; truncated rows are
    among the kept, and so are those that do without some responses."""

    name: str = "data"
    path: str | None = None
    format: str | None = None
    split_role: str = "train"
    sha256: str | None = None
    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    merged: int = 0
    not_selected: int = 0
    truncated: dict[str, int] = Field(default_factory=dict)
    responses_left_out: dict[str, int] = Field(default_factory=dict)
    quarantine: str | None = None

    @property
    def left_out(self) -> int:
        return sum(self.rejected.values()) + sum(self.dropped.values())

    @property
    def reconciles(self) -> bool:
        return self.read == self.kept + self.left_out + self.merged + self.not_selected


class LengthRecord(Record):
    """Tokens."""

    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None


class Split(Record):
    pairs: int | None = None
    examples: int | None = None
    prompts: int | None = None
    by_source: dict[str, int] = Field(default_factory=dict)
    tokens: dict[str, int | None] = Field(default_factory=dict)
    length: dict[str, LengthRecord] = Field(default_factory=dict)
    longer_is_chosen: float | None = None
    cut_even: int | None = None

    @property
    def rows(self) -> int | None:
        return self.pairs if self.pairs is not None else self.examples


class Data(Record):
    """data.json"""

    sources: tuple[SourceRecord, ...] = ()
    train: Split | None = None
    eval: Split | None = None


class StepCost(Record):
    """What an optimizer step takes, without evaluation and saving.

    Attributes:
        seconds: mean. memory_bytes: peak of the process; on CUDA of what torch allocates.
    """

    seconds: float
    memory_bytes: int


class Foresight(StepCost):
    """What a step is predicted to take, and what it consists of.

    Attributes:
        layout: of the batches. items: of a mean step. micro_batches: of a mean step.
        tokens: that a mean micro-batch puts through the backbone; 0 where that is frozen.
        most_tokens: of the largest micro-batch of an epoch.
        rows: drawn of each source; None where all were read.
        operations: floating-point operations of a mean step by part: backbone, attention, head.
        fixed_seconds: of a step besides its micro-batches: clipping and optimizer above all.
        start_seconds: up to the first step.
        total_steps: of the whole run. train_items, eval_items: that it has; with `rows`, of these.
    """

    layout: Literal["plain", "shared"]
    items: float
    micro_batches: float
    tokens: float
    most_tokens: int
    rows: int | None = None
    operations: dict[str, float] = Field(default_factory=dict)
    fixed_seconds: float = 0.0
    start_seconds: float = 0.0
    total_steps: int | None = None
    train_items: int | None = None
    eval_items: int | None = None


class Status(Record):
    """status.json"""

    state: str | None = None
    step: int | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    step_cost: StepCost | None = None
    """As measured."""
    foresight: Foresight | None = None
    """As `palate doctor` predicted of the same recipe."""


class Lineage(Record):
    """lineage.json"""

    palate: str | None = None
    code: dict[str, Any] | None = None
    verb: str | None = None
    base_model: dict[str, Any] | None = None
    models: tuple[dict[str, Any], ...] = ()
    tokenizer: dict[str, Any] | None = None
    data: tuple[dict[str, Any], ...] = ()
    reference: dict[str, Any] | str | None = None
    libraries: dict[str, str | None] = Field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    processes: int | None = None
    layout: dict[str, Any] | None = None


class MetricsLine(Record):
    """A line of metrics.jsonl; the metrics stand beside these fields, under their own names."""

    step: int
    epoch: float | None = None
    split: str = "train"
    time: str | None = None
    examples: int | None = None


class AlarmRecord(Record):
    """A line of alarms.jsonl: an alarm of online learning that begins, or is over.

    Attributes:
        seen: figures in words. advice: what to do. Both only where it begins.
        stops: whether it ends the run.
    """

    step: int
    alarm: str = ""
    state: Literal["begins", "ends"] = "begins"
    title: str = ""
    seen: str = ""
    advice: str = ""
    stops: bool = False


class PreferenceRecord(Record):
    """Held-out pairs of one source, or of all."""

    n: int | None = None
    prompts: int | None = None
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    margin: float | None = None
    margin_ci: Interval | None = None
    length_baseline: float | None = None
    over_length: float | None = None
    over_length_ci: Interval | None = None
    cut_even: int | None = None
    ties: int | None = None


class Diversity(Record):
    entropy: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    self_bleu_of: str | None = None


class Samples(Record):
    """Means over a policy's own samples; KL in nats, summed over the response."""

    n: int | None = None
    prompts: int | None = None
    reward: float | None = None
    reward_ci: Interval | None = None
    kl: float | None = None
    kl_ci: Interval | None = None
    forward_kl: float | None = None
    forward_kl_ci: Interval | None = None
    win_rate: float | None = None
    win_rate_ci: Interval | None = None
    length_controlled_win_rate: float | None = None
    length_controlled_win_rate_ci: Interval | None = None
    length_controlled_note: str | None = None
    unjudged: int | None = None
    tokens: float | None = None
    finished: float | None = None
    diversity: Diversity | None = None


class TaskMetric(Record):
    """A number of a public task, and its interval over items where it is their mean."""

    value: float | None = None
    n: int | None = None
    interval: Interval | None = None


class TaskRecord(Record):
    """A public task: its version, and its numbers by `metric,filter`."""

    version: Any = None
    metrics: dict[str, TaskMetric] = Field(default_factory=dict)


class TaskCategories(Record):
    """Means of public tasks by category, 0 to 100; `overall` of all categories or None."""

    categories: dict[str, float] = Field(default_factory=dict)
    overall: float | None = None
    missing: tuple[str, ...] = ()
    substitutes: dict[str, str] = Field(default_factory=dict)


class Policy(Record):
    name: str = "policy"
    label: str | None = None
    checkpoint: int | None = None
    run: str | None = None
    loss: str | None = None
    beta: float | None = None
    preference: dict[str, PreferenceRecord] = Field(default_factory=dict)
    samples: Samples | None = None
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    look: dict[str, Any] | None = None
    """What the images of held-out pairs are worth to it; see `palate.evaluate.reward.looking`."""

    @property
    def title(self) -> str:
        """What its checkpoints share."""
        return self.label or self.name


class Evaluation(Record):
    """evaluation.json"""

    kind: str | None = None
    confidence: float = 0.95
    policies: tuple[Policy, ...] = ()
    reference: Policy | None = None
    categories: TaskCategories | None = None


class JudgeEvaluation(Evaluation):
    """evaluation.json of a judge: one entry a stage that was measured."""

    stages: tuple[dict[str, Any], ...] = ()


class SampleRecord(Record):
    """A line of samples.jsonl."""

    prompt_id: str = ""
    index: int = 0
    prompt: str = ""
    policy: str = "policy"
    checkpoint: int | None = None
    response: str = ""
    reward: float | None = None
    kl: float | None = None
    tokens: int | None = None


class Conclusion(Record):
    """conclusion.json"""

    lines: tuple[str, ...] = ()
