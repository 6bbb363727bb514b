"""The recipe of `palate eval`: policies on held-out pairs and on their own samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Positive, Strict
from palate.recipes.pairing import PairingRecipe
from palate.recipes.prompts import Source
from palate.recipes.schema import Count, DataSource, LengthRecipe, ModelRecipe, RunRecipe
from palate.recipes.scorers import Scorer, compares


class SamplingRecipe(Strict):
    """Sampling from a policy. Temperature 1, no top-k, no top-p: the policy itself."""

    prompts: Count = 64
    """Prompts drawn from the evaluation data with the recipe's seed."""
    samples_per_prompt: Count = 1
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    batch_size: Count = 32


class EvalRecipe(RunRecipe):
    """Evaluation of one or more policies on held-out pairs and on their own samples."""

    runs: tuple[Path, ...] = ()
    """Run folders of `tune`, `sft` or `rl`: their model, reference and checkpoints are
    evaluated."""
    checkpoints: Literal["last", "all"] = "last"
    model: ModelRecipe | None = None
    """A model without a run folder."""
    reference: str | None = None
    """Reference model; default: the base model of each run. Needed for KL and for rewards."""
    data: tuple[DataSource, ...] = ()
    """Held-out pairs; default: the evaluation data of each run."""
    prompts: tuple[Source, ...] = ()
    """Prompts to sample from, in place of those of pairs (docs/policy-prompts.md); only with
    `preference: false`."""
    pairing: PairingRecipe | None = None
    length: LengthRecipe = LengthRecipe()
    preference: bool = True
    """Preference accuracy and margin on the pairs."""
    sampling: SamplingRecipe | None = None
    """Sample, and report sequence KL in both directions, diversity and side-by-side samples."""
    reward: Scorer | None = None
    """What scores the samples (the frontier needs it), by its `type`: model, heads, classifier,
    lexicon, length, rule, remote, pointwise, critic, ensemble or mixture; only with sampling."""
    judge: Scorer | None = None
    """What compares each sample with the reference's to the same prompt: `pairwise`, in both
    orders, or a scorer, of whose scores the higher wins; only with sampling. Gives win rates, raw
    and at equal length. Default: `reward`, where there is one."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    results_dir: Path | None = None
    """Folder where what is measured of each policy is kept under its content, for this and other
    evaluations; default: the run folder."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.runs and self.model is None:
            yield "runs", "nothing to evaluate: give `runs` or `model`"
        if not self.runs and self.checkpoints == "all":
            yield "checkpoints", "only with `runs`"
        if not self.runs and not self.data and not self.prompts:
            yield "data", "needed with `model` alone: there is no run to take it from"
        if self.prompts:
            if self.data:
                yield "prompts", "only without `data`, whose prompts are sampled"
            if self.preference:
                yield "prompts", "there are no pairs: set `preference: false`"
            if self.pairing is not None:
                yield "pairing", "there are no pairs to make"
        if self.reward is not None and self.sampling is None:
            yield "reward", "needs `sampling`: it scores samples"
        if self.judge is not None and self.sampling is None:
            yield "judge", "needs `sampling`: it compares samples"
        if self.reward is not None and compares(self.reward):
            yield (
                "reward",
                "compares the responses to one prompt: its mean over a policy's own samples says "
                "nothing of the policy: give it as `judge`, which compares with the reference",
            )
        if not self.preference and self.sampling is None:
            yield "preference", "nothing to do: neither preference accuracy nor sampling"
