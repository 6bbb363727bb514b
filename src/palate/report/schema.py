"""The files of a run folder as the report reads them: all fields optional, others ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float | None, float | None]


class Loose(BaseModel):
    """A record written by another version, or by a run that was stopped, still reads."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class Source(Loose):
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


class Length(Loose):
    """Tokens."""

    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None


class Split(Loose):
    pairs: int | None = None
    examples: int | None = None
    tokens: dict[str, int | None] = Field(default_factory=dict)
    length: dict[str, Length] = Field(default_factory=dict)
    longer_is_chosen: float | None = None
    cut_even: int | None = None

    @property
    def rows(self) -> int | None:
        return self.pairs if self.pairs is not None else self.examples


class Data(Loose):
    """data.json"""

    sources: tuple[Source, ...] = ()
    train: Split | None = None
    eval: Split | None = None


class Status(Loose):
    """status.json"""

    state: str | None = None
    step: int | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None


class Lineage(Loose):
    """lineage.json"""

    palate: str | None = None
    code: dict[str, Any] | None = None
    verb: str | None = None
    base_model: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    data: tuple[dict[str, Any], ...] = ()
    reference: dict[str, Any] | str | None = None
    libraries: dict[str, str | None] = Field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    layout: dict[str, Any] | None = None


class Preference(Loose):
    """Held-out pairs of one source, or of all."""

    n: int | None = None
    accuracy: float | None = None
    accuracy_ci: Interval | None = None
    margin: float | None = None
    margin_ci: Interval | None = None
    length_baseline: float | None = None
    cut_even: int | None = None
    ties: int | None = None


class Diversity(Loose):
    entropy: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    self_bleu_of: str | None = None


class Samples(Loose):
    """Means over a policy's own samples; KL in nats, summed over the response."""

    n: int | None = None
    prompts: int | None = None
    reward: float | None = None
    reward_ci: Interval | None = None
    kl: float | None = None
    kl_ci: Interval | None = None
    forward_kl: float | None = None
    forward_kl_ci: Interval | None = None
    tokens: float | None = None
    finished: float | None = None
    diversity: Diversity | None = None


class Policy(Loose):
    name: str = "policy"
    label: str | None = None
    checkpoint: int | None = None
    run: str | None = None
    loss: str | None = None
    beta: float | None = None
    preference: dict[str, Preference] = Field(default_factory=dict)
    samples: Samples | None = None

    @property
    def title(self) -> str:
        """What its checkpoints share."""
        return self.label or self.name


class Evaluation(Loose):
    """evaluation.json"""

    confidence: float = 0.95
    policies: tuple[Policy, ...] = ()
    reference: Policy | None = None


class Sample(Loose):
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


class Conclusion(Loose):
    """conclusion.json"""

    lines: tuple[str, ...] = ()
