"""Curation steps of `palate data build`: which pairs go, and by what rule. None alters a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.schema import Dtype, LengthUnit, Limits
from palate.recipes.scorers import ClassifierScorer, LexiconScorer

Side = Literal["prompt", "chosen", "rejected"]
Normalise = Literal["none", "whitespace", "words"]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_ALL: tuple[Side, ...] = ("prompt", "chosen", "rejected")


class ColumnScores(Strict):
    """Numbers that the data brings along: fields that a reader keeps with the row, or of a response
    its rating, votes or aspects (`chosen.rating`, `rejected.aspects.helpfulness`)."""

    type: Literal["columns"] = "columns"
    chosen: str
    """Field with the chosen response's score; dotted for a field within a field."""
    rejected: str
    """Field with the rejected response's score."""


class LogRatioScores(Strict):
    """beta times the log-ratio of two models, DPO's implicit reward (arXiv:2305.18290)."""

    type: Literal["log_ratio"] = "log_ratio"
    policy: str
    """Hub name or local folder."""
    reference: str | None = None
    """The model that is divided by; default: none, so that log-probabilities are the scores."""
    dtype: Dtype = "bfloat16"
    """Of both models."""
    chat_template: Path | Literal["model", "plain"] = "model"
    """As in `model.chat_template`; for chats alone."""
    beta: Positive = 0.1
    average: bool = False
    """Divide by the number of tokens of the response."""
    max_tokens: Annotated[int, Field(ge=2)] = 2048
    """A prompt and response of more tokens have no score."""


Scores = Annotated[
    LexiconScorer | ClassifierScorer | LogRatioScores | ColumnScores,
    Field(discriminator="type"),
]


class ExactDuplicates(Strict):
    """Drops all but one of the pairs that are equal, images included."""

    step: Literal["exact_duplicates"] = "exact_duplicates"
    of: Literal["pair", "prompt"] = "pair"
    """What must be equal: prompt, chosen and rejected; or the prompt alone, for a pair a prompt."""
    keep: Literal["first", "best_margin"] = "first"
    """Which one stays: the first, or the one with the largest margin (the first of equals)."""
    normalise: Normalise = "whitespace"
    """Compared as they are; with white space evened out (and NFC); or as case-folded words."""


class NearDuplicates(Strict):
    """Drops pairs that are similar to an earlier one that stays: the Jaccard index of their
    shingles, of prompt, chosen and rejected each, is `threshold` or more. Candidates come from
    MinHash, and each is verified; images must be the same."""

    step: Literal["near_duplicates"] = "near_duplicates"
    of: Literal["pair", "prompt"] = "pair"
    threshold: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.8
    shingles: Literal["characters", "words"] = "characters"
    """What texts are compared by: runs of characters, for any language, or of words. Case and white
    space do not count."""
    shingle_size: _Count | None = None
    """Characters or words of a shingle; default: 5 characters, 3 words. A shorter text is one."""
    num_perm: Annotated[int, Field(ge=96, le=384)] = 126
    """Numbers in the MinHash of a pair. More costs time and memory; at the default 99.5% or more of
    the duplicates at the threshold itself are found, and of those above it nearly all."""


class Contradictions(Strict):
    """Drops pairs of one prompt and the same two responses with opposite labels. Ties are left
    alone."""

    step: Literal["contradictions"] = "contradictions"
    keep: Literal["none", "majority"] = "none"
    """none: all of them go; majority: those with the more frequent label stay, all go on a draw."""
    normalise: Normalise = "whitespace"
    """As for exact_duplicates."""


class Length(Strict):
    """Drops pairs with a part that is too short or too long."""

    step: Literal["length"] = "length"
    unit: LengthUnit = "characters"
    """Words are separated by white space."""
    prompt: Limits | None = None
    chosen: Limits | None = None
    rejected: Limits | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.prompt is None and self.chosen is None and self.rejected is None:
            yield "prompt", "no limit: give one for `prompt`, `chosen` or `rejected`"


class Language(Strict):
    """Drops pairs with a part in another language than those wanted (by py3langid)."""

    step: Literal["language"] = "language"
    keep: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes: en, de, zh ..."""
    of: Annotated[tuple[Side, ...], Field(min_length=1)] = _ALL
    """Parts that are looked at; of a chat prompt the last user turn."""
    min_confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """The languages of `keep` must have this probability together. A text in another language gives
    them less than 0.01 as a rule, a short text in the right one often only 0.1."""
    min_letters: Annotated[int, Field(ge=0)] = 20
    """Shorter parts are let through: a few letters do not tell a language."""


class LengthBalance(Strict):
    """Drops pairs whose chosen response is the longer one until length tells less: among
    pairs of about the same difference in length, at most `max_share` have the longer one chosen.
    Which of them go is drawn with the recipe's seed. Ties and equal lengths stay."""

    step: Literal["length_balance"] = "length_balance"
    max_share: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.5
    unit: Literal["characters", "words"] = "characters"
    edges: Annotated[tuple[_Count, ...], Field(min_length=1)] = (10, 25, 50, 100, 200, 400, 800)
    """Bounds of the groups of pairs: differences below the first, from the first up to below the
    second ... in `unit`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            yield "edges", "must rise"


class Margin(Strict):
    """Drops pairs whose margin (chosen score minus rejected score) is too small or too large."""

    step: Literal["margin"] = "margin"
    min: float | None = None
    max: float | None = None
    missing: Literal["keep", "drop"] = "keep"
    """Pairs without a margin."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min is None and self.max is None and self.missing == "keep":
            yield "min", "nothing to do: give `min`, `max` or `missing: drop`"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"above max ({self.max:g}): nothing would be left"


class Empty(Strict):
    """Drops pairs with a part that holds nothing but white space, or with two equal responses."""

    step: Literal["empty"] = "empty"
    of: Annotated[tuple[Side, ...], Field(min_length=1)] = _ALL
    """Parts that are looked at. A prompt with an image is not empty."""
    equal_responses: bool = True
    """Drop pairs whose two responses are the same, too (ties as well)."""


class Refusals(Strict):
    """Drops pairs in which a response begins by refusing, by a list of phrases."""

    step: Literal["refusals"] = "refusals"
    of: Literal["chosen", "rejected", "either", "both"] = "either"
    """Which response must refuse for the pair to go."""
    language: Literal["en"] | None = "en"
    """Whose list of phrases is used, beside `phrases`; null: none."""
    phrases: tuple[str, ...] = ()
    """Further phrases; case, kinds of apostrophe and white space do not count."""
    within_characters: _Count | None = 160
    """How far from the beginning of a response a phrase counts; null: anywhere."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.language is None and not self.phrases:
            yield "phrases", "no phrase to look for: give some, or `language: en`"
        if any(not phrase.strip() for phrase in self.phrases):
            yield "phrases", "an empty phrase is in every response"


class Templates(Strict):
    """Drops pairs with traces of a chat template in the text: they end a turn or open another."""

    step: Literal["templates"] = "templates"
    of: Annotated[tuple[Side, ...], Field(min_length=1)] = ("chosen", "rejected")
    """Parts that are looked at. In a text prompt role markers are the dialogue: only special tokens
    count there."""
    special_tokens: bool = True
    """<|im_start|>, <|eot_id|>, [INST], <start_of_turn> ... anywhere."""
    role_markers: bool = True
    """`Human:`, `Assistant:`, `### Response:` ... at the beginning of a line, after another one."""
    phrases: tuple[str, ...] = ()
    """Further strings, as they are written."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not (self.special_tokens or self.role_markers or self.phrases):
            yield "special_tokens", "nothing to look for"
        if self.of == ("prompt",) and not (self.special_tokens or self.phrases):
            yield "role_markers", "has no effect on prompts"
        if "" in self.phrases:
            yield "phrases", "an empty string is in every text"


class ScoreFilter(Strict):
    """Drops pairs by what a reward thinks of them: keep those that it gets wrong or is unsure of,
    or those that it agrees with. Difference = chosen score minus rejected score; ties stay."""

    step: Literal["score_filter"] = "score_filter"
    scores: Scores
    """A reward, the log-ratio of two models, or columns of the data."""
    keep: Literal["wrong", "unsure", "wrong_or_unsure", "right"]
    """wrong: difference 0 or less; right: above 0; unsure: at most `within` from 0."""
    within: Annotated[float, Field(ge=0.0)] | None = None
    """What counts as unsure."""
    missing: Literal["drop", "keep"] = "drop"
    """Pairs without a score."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if ("unsure" in self.keep) is not (self.within is not None):
            yield "within", "goes with `keep: unsure` and `wrong_or_unsure`, which need it"


class LossFilter(Strict):
    """Drops pairs by their preference loss, log(1 + exp(-difference)), under a model or reward: a
    low loss teaches nothing any more, a very high one is often a wrong label. Ties stay."""

    step: Literal["loss_filter"] = "loss_filter"
    scores: Scores
    """With `type: log_ratio` this is the loss of DPO."""
    min: Annotated[float, Field(ge=0.0)] | None = None
    """In nats; a pair told by a coin has 0.69."""
    max: Annotated[float, Field(ge=0.0)] | None = None
    missing: Literal["drop", "keep"] = "drop"
    """Pairs without a score."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.min is None and self.max is None:
            yield "min", "give `min`, `max` or both"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"above max ({self.max:g}): nothing would be left"


class Difficulty(Strict):
    """Writes a difficulty bucket into each pair's further fields; drops nothing. Bucket 0 has the
    smallest differences between chosen and rejected: the hardest pairs."""

    step: Literal["difficulty"] = "difficulty"
    scores: Scores | None = None
    """Where the difference comes from; default: the pair's own margin."""
    edges: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """Bounds of the buckets, rising: below the first, from the first up to below the second ..."""
    buckets: Annotated[int, Field(ge=2, le=100)] | None = None
    """Instead: this many buckets of equal numbers of pairs; equal differences stay together."""
    field: str = "difficulty"
    """Name of the field; a pair without a difference gets null."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.edges is None) is (self.buckets is None):
            yield "edges", "give either `edges` or `buckets`"
        if self.edges and any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            yield "edges", "must rise"


class EvaluationFile(Strict):
    """A file that will be evaluated on: any that can be trained on, or JSON, JSONL, CSV or Parquet
    with a field for the prompt, as RewardBench, RM-Bench and VL-RewardBench have."""

    path: str
    """File, folder or hub name, as for a data source."""
    name: str | None = None
    """For reports; default: the file's stem."""
    format: str | None = None
    """Reader; default: recognised from the columns. Not with `prompt`."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a `datasets` folder or hub data set."""
    prompt: str | None = None
    """Field with the prompt, text or chat turns, dotted for a field within a field; default: what
    the reader says, or the first there is of prompt, question, instruction, query, input, problem,
    messages, conversations, text."""
    image: str | None = None
    """Field with the image or images: paths, bytes, or data URIs; default: what the reader says,
    or the first there is of images, image. Not with `format`."""
    image_root: Path | None = None
    """Folder that image paths start from; default: the folder of the file."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.format is not None:
            for key in ("prompt", "image"):
                if getattr(self, key) is not None:
                    yield key, "only without `format`: the reader knows the fields"


class Decontaminate(Strict):
    """Drops pairs whose prompt is in an evaluation set. Where both have images, one must be the
    same file; where only one of the two has any, they do not match."""

    step: Literal["decontaminate"] = "decontaminate"
    against: Annotated[tuple[EvaluationFile, ...], Field(min_length=1)]
    exact: bool = True
    """Equal prompts, or a user turn equal to an evaluation prompt; by case-folded words."""
    ngram: Annotated[int, Field(ge=2, le=50)] | None = 8
    """Words of an n-gram; null: no n-grams are compared. Evaluation prompts of fewer words are
    found by equality alone."""
    overlap: _Share | None = None
    """Share of the evaluation prompt's n-grams that the row must hold; default: 0.5."""
    texts: Literal["prompt", "all"] = "prompt"
    """Where n-grams are looked for: the prompt, or prompt, chosen and rejected."""
    images: Literal["with_prompt", "alone"] = "with_prompt"
    """with_prompt: image and prompt must match; alone: an image in common is enough."""
    missing_images: Literal["error", "text"] = "error"
    """Evaluation images that cannot be read: stop, or go by the text alone."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.exact and self.ngram is None and self.images == "with_prompt":
            yield "exact", "nothing to compare: use `exact`, `ngram` or `images: alone`"
        if self.ngram is None:
            if self.overlap is not None:
                yield "overlap", "only with `ngram`"
            if self.texts == "all":
                yield "texts", "only with `ngram`"


Step = Annotated[
    ExactDuplicates
    | NearDuplicates
    | Contradictions
    | Length
    | Language
    | LengthBalance
    | Margin
    | Empty
    | Refusals
    | Templates
    | ScoreFilter
    | LossFilter
    | Difficulty
    | Decontaminate,
    Field(discriminator="step"),
]
