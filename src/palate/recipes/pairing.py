"""How rated answers become pairs: which number is the score, who is chosen, who is rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from palate.recipes.losses import Strict

Score = Literal["auto", "overall", "mean", "aspects", "votes", "rank"]
Preset = Literal[
    "ultrafeedback_fine_grained",
    "ultrafeedback_overall",
    "ultrafeedback_all",
    "ultrafeedback_largest_gap",
    "helpsteer",
    "nectar",
    "best_vs_random",
]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Best mean of the aspects against a random lower one: Argilla's binarisation, 60,908 pairs.
    "ultrafeedback_fine_grained": {
        "score": "mean",
        "chosen": "best",
        "rejected": "random_lower",
    },
    # The same by the one overall score, whose published values turn some 1s into 10s.
    "ultrafeedback_overall": {
        "score": "overall",
        "chosen": "best",
        "rejected": "random_lower",
    },
    "ultrafeedback_all": {"score": "mean", "chosen": "every", "rejected": "every"},
    "ultrafeedback_largest_gap": {"score": "mean", "chosen": "best", "rejected": "worst"},
    # Verbosity is rated too, and is no merit.
    "helpsteer": {
        "score": "aspects",
        "aspects": {"helpfulness": 1.0, "correctness": 1.0, "coherence": 1.0, "complexity": 1.0},
        "chosen": "best",
        "rejected": "random_lower",
    },
    "nectar": {"score": "rank", "chosen": "best", "rejected": "random_lower"},
    "best_vs_random": {"score": "auto", "chosen": "best", "rejected": "random_lower"},
}
"""The field's standard constructions, as the keys that they stand for."""

_Count = Annotated[int, Field(ge=1)]


class PairingRecipe(Strict):
    """How rated rows become pairs, and what is done with ties and contradicted labels."""

    preset: Preset | None = None
    """A standard construction by name (docs/data.md lists its keys); keys beside it override."""
    score: Score = "auto"
    """What responses are compared by. overall: their one rating; mean: of their aspects; aspects:
    weighted; votes; rank: 1 is best. auto: the first of mean, overall, votes and rank that the row
    has; data.json says how often which."""
    aspects: dict[str, float] | None = None
    """Weights by aspect (score: aspects), negative for what counts against a response; the score
    is divided by the sum of their absolute values."""
    chosen: Literal["best", "top_k", "every"] = "best"
    """top_k: one of the `top_k` best, by chance. every: each response against those below it."""
    top_k: _Count | None = None
    """How many best responses chance may choose from (chosen: top_k)."""
    rejected: Literal["random_lower", "worst", "second", "every"] = "random_lower"
    """Of the responses that are lower by the gap: a random one, the lowest, the highest, or all."""
    min_gap: Annotated[float, Field(ge=0.0)] = 0.0
    """The chosen score must exceed the rejected one by more than this (of ranks: places)."""
    min_margin: Annotated[float, Field(gt=0.0)] | None = None
    """Instead of min_gap: it must exceed it by this or more."""
    ties: Literal["drop", "keep", "as_ties"] = "drop"
    """Equal scores, and pairs that the source calls ties. drop: no pair; keep: a pair like any
    other, its order drawn by chance; as_ties: a pair marked as a tie (reward models, judges,
    palate data build)."""
    flips: Literal["error", "drop", "keep"] = "keep"
    """Pairs whose label another number of the row contradicts (a negative margin, a lower rating,
    a worse rank ...): stop, drop or keep them. They are counted in any case."""
    pairs_per_prompt: _Count | None = None
    """At most this many pairs of one prompt, drawn by chance; default: 1, and no limit where
    chosen or rejected is `every`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, value: Any) -> Any:
        name = value.get("preset") if isinstance(value, dict) else None
        keys = PRESETS.get(name) if isinstance(name, str) else None
        return value if keys is None else {**keys, **value}

    @property
    def cap(self) -> int | None:
        """The most pairs of one prompt; None for no limit."""
        if self.pairs_per_prompt is None and "every" not in (self.chosen, self.rejected):
            return 1
        return self.pairs_per_prompt

    @property
    def of_ratings(self) -> list[str]:
        """Keys that are set and mean something for ratings alone, not for ready-made pairs."""
        fields = type(self).model_fields
        names = (name for name in fields if name not in ("flips", "ties"))
        return [name for name in names if getattr(self, name) != fields[name].default]

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.score == "aspects" and not self.aspects:
            yield "aspects", "`score: aspects` needs weights, such as {helpfulness: 1.0}"
        if self.score != "aspects" and self.aspects is not None:
            yield "aspects", f"only with `score: aspects`, not with {self.score}"
        for name, weight in (self.aspects or {}).items():
            if weight == 0:
                yield f"aspects.{name}", "a weight of 0 counts for nothing: delete the aspect"
        if (self.chosen == "top_k") is not (self.top_k is not None):
            yield "top_k", "goes with `chosen: top_k`, and the one needs the other"
        if self.min_margin is not None and self.min_gap:
            yield "min_margin", "only without min_gap: it is `this or more`, min_gap `more than`"
        single = self.rejected in ("worst", "second") and self.chosen != "every"
        if single and self.pairs_per_prompt is not None and self.pairs_per_prompt > 1:
            yield (
                "pairs_per_prompt",
                f"a prompt has one {self.rejected} response: use `rejected: random_lower`",
            )
