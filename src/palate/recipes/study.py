"""The recipe of `palate study`: steps, the aspects that vary in them, and what is measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Count

Verb = Literal["data build", "sft", "tune", "reward", "rl", "eval", "eval reward", "eval tasks"]
"""Commands that a step can be, each with its recipe."""
TRAINING: tuple[Verb, ...] = ("sft", "tune", "reward", "rl")
EVALUATING: tuple[Verb, ...] = ("eval", "eval reward", "eval tasks")

STEP_PREFIX = "step:"
"""`step:NAME` in a recipe stands for that step's folder, `step:NAME/FILE` for what is in it."""

OWN_KEYS: dict[str, tuple[str, ...]] = {
    "data": ("pairs.sources", "pairs.pairing", "pairs.curate", "pairs.mixture", "policy.data"),
    "algorithm": (
        *("policy.loss", "policy.token_weights", "policy.algorithm"),
        *("policy.kl", "policy.value", "policy.fidelity"),
    ),
    "prompts": ("policy.prompts",),
    "reward_model": ("reward", "policy.reward.scorer"),
    "head": ("reward.head", "reward.ensemble", "reward.pooling"),
    "regulariser": ("reward.regularise",),
    "mixture": ("reward.data.mixture", "pairs.mixture"),
    "backbone": ("reward.model",),
}
"""What aspects of these names vary where `varies` does not say, of the steps that the study has."""

SET_BY_STUDY = ("output_dir", "seed", "resume")
"""Keys of a step's recipe that are not written in it."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE)


class StudyStep(Strict):
    """One command of a run, with its recipe."""

    name: str
    """What aspects, measures and other steps call it: `policy.loss.beta` is a key of `policy`."""
    verb: Verb
    """The command: data build, sft, tune, reward, rl, eval, eval reward or eval tasks."""
    recipe: dict[str, Any]
    """Its recipe, without output_dir, seed and resume. `step:NAME/...` is a file of another step's
    folder: `step:policy` a run, `step:reward/model` a model."""
    seeds: Literal["vary", "fixed"] | None = None
    """vary: once for each of `seeds`; fixed: once, with the recipe's default seed. Default: what
    trains varies, and what follows from it; the rest is fixed."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not _NAME.fullmatch(self.name):
            yield "name", "letters, digits, `_` and `-`, at most 64, as in a file name"
        for key in SET_BY_STUDY:
            if key in self.recipe:
                yield f"recipe.{key}", "is set by the study: delete the key"


Fact = Literal[
    "tokenizer", "template", "length", "precision", "reference", "evaluation", "decoding"
]
"""What runs that are compared share, unless a variant owns up to it."""


class Variant(Strict):
    """One choice of an aspect."""

    name: str
    set: dict[str, Any] | None = None
    """Keys and values, dotted from the step's name: `policy.loss.type: tdpo2`. Only below what the
    aspect varies."""
    coupled: dict[str, Any] | None = None
    """Keys outside of it that this choice brings with it, as a rate of its own. They are told in a
    footnote of every table, since a difference may be theirs."""
    also_changes: tuple[Fact, ...] = ()
    """What else is not as in the other runs with this choice, as the tokenizer of another backbone:
    refused where it is not named here, and told in a footnote."""
    tune: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] | None = None
    """Values that its tuning trials try besides those of `tuning.keys`, or in their place."""

    @property
    def changes(self) -> dict[str, Any]:
        """All keys that it writes, dotted."""
        return {**(self.set or {}), **(self.coupled or {})}

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in sorted((self.set or {}).keys() & (self.coupled or {}).keys()):
            yield f"coupled.{key}", "is in `set` too: choose one"


class Aspect(Strict):
    """One of the things that vary, and its choices."""

    name: str
    """Those named data, algorithm, prompts, reward_model, head, regulariser, mixture or backbone
    know what they vary."""
    varies: tuple[str, ...] = ()
    """Sections of the steps' recipes that its variants may set, dotted: `policy.loss`."""
    baseline: str | None = None
    """The variant that others are compared with; default: the first."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=2)]

    @property
    def sections(self) -> tuple[str, ...]:
        """What its variants may set."""
        return self.varies or OWN_KEYS.get(self.name, ())

    @property
    def base(self) -> Variant:
        """The baseline's variant."""
        return next((v for v in self.variants if v.name == self.baseline), self.variants[0])

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _repeated("variants", [variant.name for variant in self.variants])
        if self.baseline is not None and self.baseline not in {v.name for v in self.variants}:
            yield "baseline", f"no variant is named {self.baseline}"
        if not self.sections:
            yield "varies", f"{self.name} is no aspect known by name: say which sections it varies"


class OneAtATime(Strict):
    """The baselines together, and each other variant beside the baselines of the other aspects."""

    type: Literal["one_at_a_time"] = "one_at_a_time"


class Pairwise(Strict):
    """Every two aspects crossed, the rest at their baselines."""

    type: Literal["pairwise"] = "pairwise"


class Grid(Strict):
    """All variants of all aspects crossed."""

    type: Literal["grid"] = "grid"


class RandomCells(Strict):
    """Cells of the grid drawn with the study's seed; that of the baselines is always among them."""

    type: Literal["random"] = "random"
    cells: Count
    """How many."""


class Halving(Strict):
    """The grid with few optimizer steps; the best go on with more, until `budget.updates`."""

    type: Literal["halving"] = "halving"
    measure: str
    """Which of `measures` says what is best; of a step that the study's own comparisons do not
    use."""
    first_updates: Count
    """Optimizer steps of the first round; each next one has 1 / keep times as many."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the cells that goes on, rounded up."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1_000_003
    """Of the runs of the rounds; none of `seeds`."""


Design = Annotated[
    OneAtATime | Pairwise | Grid | RandomCells | Halving, Field(discriminator="type")
]


class BudgetRecipe(Strict):
    """What every run spends, whatever it chose; set in each step that trains."""

    pairs: Count | None = None
    """Training pairs (sft: examples), drawn with the run's seed, equally from all sources where
    there are several and the recipe's mixture has no weights."""
    tokens: Count | None = None
    """Tokens of the training pairs, instead of `pairs`."""
    updates: Count | None = None
    """Optimizer steps."""
    seconds: Positive | None = None
    """Seconds of training, instead of `updates`: as many optimizer steps as fit, by the time that a
    step was measured to take on this machine."""
    unmatched: bool = False
    """Compare runs that do not spend the same; told in a footnote of every table."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.pairs is not None and self.tokens is not None:
            yield "tokens", "only without `pairs`"
        if self.updates is not None and self.seconds is not None:
            yield "seconds", "only without `updates`"
        limited = self.pairs or self.tokens or self.updates or self.seconds
        if not limited and not self.unmatched:
            yield "pairs", "give pairs, tokens, updates or seconds, or `unmatched: true`"
        if limited and self.unmatched:
            yield "unmatched", "only without a budget"


class TuningRecipe(Strict):
    """Trials that choose settings for every compared cell, as many for each."""

    keys: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
    """Dotted keys and the values that are tried: `policy.train.learning_rate: [1e-5, 1e-4]`."""
    trials: Annotated[int, Field(ge=2)]
    """Of each cell: combinations of the values, drawn with the study's seed; the same for all cells
    that try the same keys."""
    measure: str
    """Which of `measures` chooses; of a step on a validation split, which no comparison uses."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1_000_003
    """Of the trial runs; none of `seeds`, so that no run is chosen for its own luck."""


Value = Literal[
    "accuracy",
    "log_ratio_accuracy",
    "margin",
    "reward",
    "win_rate",
    "length_controlled_win_rate",
    "best_of_n",
    "self_bleu",
    "kl",
    "forward_kl",
    "entropy",
    "tokens",
    "score",
]


OF_PAIRS: tuple[Value, ...] = ("accuracy", "log_ratio_accuracy", "margin")
"""Measures of pairs; of pairs and tasks alone a source can be named."""
OF_REWARD_MODELS: tuple[Value, ...] = ("accuracy", "best_of_n")
COMPARED: tuple[Value, ...] = ("win_rate", "length_controlled_win_rate")
"""Measures of samples beside the reference's."""
GAINS: tuple[Value, ...] = ("reward", "win_rate")
"""Measures that are read from frontiers at matched KL, where an evaluation has checkpoints."""


class MeasureRecipe(Strict):
    """A number of each run, made of one outcome an item."""

    name: str
    step: str
    """An `eval`, `eval reward` or `eval tasks` step."""
    value: Value
    """Of pairs: accuracy (by the reward of the run's own loss), log_ratio_accuracy (by log-ratios
    to the reference, alike for all losses), margin (of log-ratios, nats). Of samples: reward,
    win_rate over the reference's sample for the prompt (by the evaluation's `judge`, else by its
    `reward`), length_controlled_win_rate (the same at equal length, as AlpacaEval 2 has it),
    best_of_n (highest reward of a prompt's samples), self_bleu (of a prompt's samples: low is
    diverse), kl, forward_kl, entropy, tokens. Of `eval reward`: accuracy, best_of_n (gold score of
    the model's choice). Of `eval tasks`: score."""
    source: str | None = None
    """Pairs of this source, items of this benchmark or of this task; default: all."""
    better: Literal["higher", "lower"] | None = None
    """Which is better; default: neither, it is only told."""
    smallest: Positive | None = None
    """Smallest difference that would matter; smaller ones are called so."""


class ExpectationRecipe(Strict):
    """What is expected of a comparison, written before its runs and printed beside the result."""

    aspect: str
    variant: str
    against: str | None = None
    """Variant of the same aspect; default: its baseline."""
    measure: str
    direction: Literal["higher", "lower", "none"]
    """Of the variant's number compared with the other's; none: no difference that matters."""
    smallest: Positive
    """Smallest difference of interest."""
    disagreement: str
    """What would count as disagreement, in a sentence."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.variant == self.against:
            yield "against", "is the variant itself"


class StatisticsRecipe(Strict):
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    estimand: Literal["new_items", "these_items"] = "new_items"
    """Which difference comes first: what to expect of new items like these, or on these very items.
    Both are told."""
    correction: Literal["holm", "benjamini_hochberg", "none"] = "holm"
    """Of the p-values of one measure's comparisons."""


class LocalExecutor(Strict):
    """Processes on this machine, as many at once as its cores and memory hold."""

    type: Literal["local"] = "local"
    cores: Count | None = None
    """Cores to use; default: all."""
    memory_gb: Positive | None = None
    """Memory to use, GB; default: what is available."""
    cores_per_stage: Count | None = None
    """Cores of each process; default: all that there are, so that stages follow one another."""


class RayExecutor(Strict):
    """Jobs of a Ray cluster (extra `ray`), each the command line of a stage. The study's folder,
    models and data must lie where every node finds them under the same path."""

    type: Literal["ray"] = "ray"
    address: str
    """Of the cluster's dashboard: http://HOST:8265."""
    cores_per_stage: Count
    """Cores that a job is given; Ray would start all at once without a number."""
    gpus_per_stage: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs that a job is given."""
    memory_gb_per_stage: Positive | None = None
    """Memory that a job is given, GB; default: none is asked for."""
    most_jobs: Count = 64
    """At once; more wait here."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """How often a stage is begun whose job was lost with a node or failed."""


Executor = Annotated[LocalExecutor | RayExecutor, Field(discriminator="type")]


class StudyRecipe(Strict):
    """Which choice mattered: the same steps under varied aspects, and what came of it."""

    output_dir: Path
    """Folder of the study: stages by their content, tables and the report. The same study, or one
    that was changed, goes on in it: what is there is not computed again."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Draws random cells and tuning trials."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...], Field(min_length=1)] = (
        0,
        1,
        2,
    )
    """Of the training runs of every compared cell."""
    steps: Annotated[tuple[StudyStep, ...], Field(min_length=1)]
    """What one run consists of: data build, sft, tune, reward, rl, eval, eval reward, eval tasks,
    linked by `step:NAME`. The recipes of the baselines, as far as variants leave them."""
    aspects: Annotated[tuple[Aspect, ...], Field(min_length=1)]
    design: Design = OneAtATime()
    """Which cells are run, by `type`: one_at_a_time, pairwise, grid, random or halving."""
    budget: BudgetRecipe | None = None
    """Required where variants train on other data."""
    tuning: TuningRecipe | None = None
    measures: Annotated[tuple[MeasureRecipe, ...], Field(min_length=1)]
    """The first is the main one."""
    expectations: tuple[ExpectationRecipe, ...] = ()
    statistics: StatisticsRecipe = StatisticsRecipe()
    executor: Executor = LocalExecutor()
    """Where stages run, by `type`: local or ray."""
    artifacts: str | None = None
    """Address (of fsspec: s3://..., gs://..., a folder) where finished stages are kept besides, for
    machines that share no disk: what is there is fetched and not computed again."""

    def problems(self) -> Iterator[tuple[str, str]]:
        names = {step.name: step for step in self.steps}
        yield from _repeated("steps", [step.name for step in self.steps])
        yield from _repeated("aspects", [aspect.name for aspect in self.aspects])
        yield from _repeated("measures", [measure.name for measure in self.measures])
        yield from _repeated("seeds", self.seeds)
        for number, measure in enumerate(self.measures):
            step = names.get(measure.step)
            if step is None or step.verb not in EVALUATING:
                yield f"measures.{number}.step", f"no step of `eval` is named {measure.step}"
            elif (measure.value == "score") is not (step.verb == "eval tasks") or (
                step.verb == "eval reward" and measure.value not in OF_REWARD_MODELS
            ):
                text = f"{measure.value} is no measure of `{step.verb}`"
                yield f"measures.{number}.value", text
            if measure.source is not None and measure.value not in (*OF_PAIRS, "score"):
                text = f"only of pairs and tasks, not of {measure.value}"
                yield f"measures.{number}.source", text
        measures = {measure.name: measure for measure in self.measures}
        chosen = {"tuning": self.tuning, "design": self.design}
        for key, part in chosen.items():
            if isinstance(part, TuningRecipe | Halving):
                by = measures.get(part.measure)
                if by is None:
                    yield f"{key}.measure", f"no measure is named {part.measure}"
                elif by.better is None:
                    yield f"{key}.measure", f"say which is `better` of {part.measure}"
        for key, part in chosen.items():
            if isinstance(part, TuningRecipe | Halving) and part.seed in self.seeds:
                yield f"{key}.seed", "is one of `seeds`: a run would be chosen for its own luck"
        if self.tuning is not None:
            for tuned, values in self.tuning.keys.items():
                yield from _repeated(f"tuning.keys.{tuned}", values)
        if self.tuning is not None and isinstance(self.design, Halving):
            yield "tuning", "only without halving, which chooses cells in another way"
        if isinstance(self.design, Halving) and (self.budget is None or not self.budget.updates):
            yield "design", "halving ends at `budget.updates`: give it"
        yield from self._expectation_problems(measures)

    def _expectation_problems(
        self, measures: Mapping[str, MeasureRecipe]
    ) -> Iterator[tuple[str, str]]:
        aspects = {aspect.name: aspect for aspect in self.aspects}
        for number, expected in enumerate(self.expectations):
            where = f"expectations.{number}"
            if expected.measure not in measures:
                yield f"{where}.measure", f"no measure is named {expected.measure}"
            aspect = aspects.get(expected.aspect)
            if aspect is None:
                yield f"{where}.aspect", f"no aspect is named {expected.aspect}"
                continue
            names = {variant.name for variant in aspect.variants}
            against = expected.against or aspect.base.name
            for key, name in (("variant", expected.variant), ("against", against)):
                if name not in names:
                    yield f"{where}.{key}", f"{aspect.name} has no variant {name}"
            if expected.variant == against:
                yield f"{where}.variant", "is the baseline: nothing to compare it with"


def _repeated(key: str, names: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield key, f"{name} is there twice"
