"""Policy prompts: files, preference data and generated tasks; which are taken, which come next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.schema import Count, DataSource
from palate.recipes.scorers import Scorer, compares

Rate = Annotated[float, Field(ge=0.0, le=1.0)]


class SelectRecipe(Strict):
    """Which prompts of a source are taken: the best by a scorer, or those most like given ones."""

    scorer: Scorer | None = None
    """Scores each prompt as a text: it is the response to `question`."""
    question: str | None = None
    """What the prompts are shown as an answer to, for scorers that read one; default: nothing, the
    text alone. A judge has its criteria in `scorer.instructions`. Only with `scorer`."""
    like: DataSource | None = None
    """Prompts to look for, in any format, in place of `scorer`. The score is the similarity to the
    nearest of them, 0 to 1: the Jaccard index of runs of 5 characters."""
    keep: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(strict=True)] | None = (
        None
    )
    """The best so many, or the best fraction between 0 and 1; of equal scores the first."""
    above: float | None = None
    """In place of `keep`: those with a higher score than this."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.scorer is None) is (self.like is None):
            yield "scorer", "give either `scorer` or `like`"
        if (self.keep is None) is (self.above is None):
            yield "keep", "give either `keep` or `above`"
        if isinstance(self.keep, float) and not 0.0 < self.keep < 1.0:
            yield "keep", "a fraction is between 0 and 1"
        if self.question is not None and self.scorer is None:
            yield "question", "only with `scorer`"
        if self.scorer is not None and compares(self.scorer):
            yield "scorer", "compares the responses to one prompt, and a prompt stands alone"


class _Presented(Strict):
    """How a prompt is put to the policy."""

    prefix: str | None = None
    """Text before each text prompt, such as examples; chats are refused."""
    suffix: str | None = None
    """Text after each text prompt; chats are refused."""
    as_chat: bool = False
    """A text prompt becomes the user's turn of a chat, `prefix` and `suffix` included."""
    system: str | None = None
    """A system turn before each chat; one that has its own is dropped."""
    select: SelectRecipe | None = None
    """Take some of this source's prompts; default: all."""


class PromptSource(DataSource, _Presented):
    """Prompts of a file: `prompt` (text, or turns that end with the user's), `messages`, or a
    question in a column of its own; or preference data of any format, of which the prompts are
    taken alone."""

    type: Literal["file"] = "file"
    format: str | None = None
    """Reader, or `prompts`; default: recognised from the columns."""
    columns: Literal["all"] | tuple[str, ...] = ()
    """Columns that rewards read: answer, ground_truth, rubric ... Of a file of prompts a column
    that is neither named here nor in `ignore` is an error. all: whatever else the file has."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.ignore:
            if self.columns != "all" and name in self.columns:
                yield "columns", f"{name} is also in `ignore`"


class GeneratedSource(_Presented):
    """Tasks made by a program, each with its right answer in the column `answer`."""

    type: Literal["generated"]
    task: str
    """Name of the task. palate: sort_letters, reverse_letters, count_letters, replace_letters,
    add_numbers."""
    library: Literal["palate", "reasoning_gym"] = "palate"
    """reasoning_gym: one of its data sets (extra `tasks`); the column `entry` is what its verifier
    reads."""
    size: Count
    """How many tasks, all different."""
    parameters: dict[str, Any] | None = None
    """Of the task: its difficulty ..., see docs/policy-prompts.md."""
    name: str | None = None
    """Source name in metrics and reports; default: the task's."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    """Default: made of the run's, another one for `train` than for `eval`."""
    as_chat: bool = True
    """The task is the user's turn of a chat, `prefix` and `suffix` included; otherwise a text."""


def _typed(value: Any) -> Any:
    """A source without `type` is a file."""
    return {"type": "file", **value} if isinstance(value, dict) and "type" not in value else value


Source = Annotated[
    Annotated[PromptSource | GeneratedSource, Field(discriminator="type")], BeforeValidator(_typed)
]


class CurriculumRecipe(Strict):
    """Prompts that the policy always or never solves are drawn less: a group of equal scores
    teaches nothing. Prompts not drawn yet come first, in an order drawn with the seed; then each
    draw takes prompts without repetition, by weights: 1 where the pass rate is within the bounds or
    unknown, `outside` elsewhere."""

    min: Rate = 0.1
    """Least pass rate at full weight."""
    max: Rate = 0.9
    """Highest pass rate at full weight."""
    outside: Positive = 0.1
    """Weight of a prompt beyond the bounds, at most 1. Above 0: it is drawn now and then, and its
    rate measured again."""
    memory: Count = 4
    """The pass rate is the mean over so many of a prompt's latest groups."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min > self.max:
            yield "min", f"above max ({self.max:g})"
        if self.outside > 1.0:
            yield "outside", "above 1: such prompts would be drawn more"


class PromptsRecipe(Strict):
    """Prompts that the policy answers. Equal ones count once."""

    train: Annotated[tuple[Source, ...], Field(min_length=1)]
    eval: tuple[Source, ...] = ()
    """Held-out prompts; never trained on: those of `train` that equal one are dropped."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hold out this share of `train`; only without `eval`."""
    mixture: MixtureRecipe | None = None
    """How much of each source of `train`, of what is left after holding out; default: all."""
    order: Literal["random", "file"] = "random"
    """random: each prompt once an epoch, in another order each time, drawn with the seed; file: in
    the order of the sources. Not with `curriculum`."""
    curriculum: CurriculumRecipe | None = None
    """Draw by measured pass rates instead."""

    @property
    def holds_out(self) -> bool:
        return bool(self.eval) or self.eval_fraction is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.eval and self.eval_fraction is not None:
            yield "eval_fraction", "only without `eval`: the held-out prompts come from one of them"
        if self.mixture is not None and self.mixture.tokenizer is not None:
            yield "mixture.tokenizer", "the model's own tokenizer counts: delete the key"
        # A recipe with every key written out has the default.
        if self.curriculum is not None and self.order != "random":
            yield "order", "only without `curriculum`"
