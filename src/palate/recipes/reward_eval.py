"""The recipe of `palate eval reward`: reward models, judges and ensembles on benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from palate.recipes.losses import Strict
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import Count, DataSource, RunRecipe
from palate.recipes.scorers import Scorer

Change = Literal[
    "trailing_space",
    "trailing_newlines",
    "leading_newline",
    "double_spaces",
    "lower_case",
    "upper_case",
    "appended",
]


class BenchmarkBase(Strict):
    name: str | None = None
    """In reports; default: the benchmark's own."""
    data: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    """Its files, folders or hub names."""


class PublishedBenchmark(BenchmarkBase):
    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _format_problems("data", self.data)


def _format_problems(key: str, sources: Sequence[DataSource]) -> Iterator[tuple[str, str]]:
    for number, source in enumerate(sources):
        if source.format is not None:
            yield f"{key}.{number}.format", "a benchmark reads its own format: delete the key"


class RewardBenchRecipe(PublishedBenchmark):
    """RewardBench 1 (arXiv:2403.13787): allenai/reward-bench, split filtered."""

    type: Literal["rewardbench"] = "rewardbench"
    prior: tuple[DataSource, ...] = ()
    """Prior sets of allenai/preference-test-sets, told by `name` or `split`: anthropic_helpful,
    anthropic_hhh, shp, summarize."""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from _format_problems("prior", self.prior)


class RewardBench2Recipe(PublishedBenchmark):
    """RewardBench 2 (arXiv:2506.01937): allenai/reward-bench-2, split test."""

    type: Literal["rewardbench2"] = "rewardbench2"


class RmBenchRecipe(PublishedBenchmark):
    """RM-Bench (arXiv:2410.16184): the JSON files of THU-KEG/RM-Bench."""

    type: Literal["rm_bench"] = "rm_bench"


class ImageBenchmark(PublishedBenchmark):
    image_root: Path | None = None
    """Folder that paths of images start from; default: the folder of the file. No path leads out of
    it."""


class VlRewardBenchRecipe(ImageBenchmark):
    """VL-RewardBench (arXiv:2411.17451): MMInstruction/VL-RewardBench, split test."""

    type: Literal["vl_rewardbench"] = "vl_rewardbench"


class MmRlhfRewardBenchRecipe(ImageBenchmark):
    """MM-RLHF-RewardBench (arXiv:2502.10391): mm_reward_bench.jsonl with images and frames."""

    type: Literal["mm_rlhf_rewardbench"] = "mm_rlhf_rewardbench"


class MultimodalRewardBenchRecipe(ImageBenchmark):
    """Multimodal RewardBench (arXiv:2502.14191): the all_data.json that its script makes."""

    type: Literal["multimodal_rewardbench"] = "multimodal_rewardbench"


class PairsRecipe(BenchmarkBase):
    """Pairs of any format that palate reads."""

    type: Literal["pairs"] = "pairs"
    image_root: Path | None = None
    """Folder that paths of images start from; default: the folder of each source's files. No path
    leads out of it."""
    pairing: PairingRecipe | None = None
    """How rated rows become pairs; required where a source holds ratings."""


Benchmark = Annotated[
    RewardBenchRecipe
    | RewardBench2Recipe
    | RmBenchRecipe
    | VlRewardBenchRecipe
    | MmRlhfRewardBenchRecipe
    | MultimodalRewardBenchRecipe
    | PairsRecipe,
    Field(discriminator="type"),
]


class RobustnessRecipe(Strict):
    """Verdicts again with responses changed in ways that should not matter."""

    changes: Annotated[tuple[Change, ...], Field(min_length=1)] = (
        "trailing_space",
        "trailing_newlines",
        "leading_newline",
        "double_spaces",
        "lower_case",
        "upper_case",
        "appended",
    )
    """Of both responses. Case does matter to some questions: read it as sensitivity."""
    rejected_only: tuple[Change, ...] = ("appended",)
    """Of the worse response alone: does the change buy a verdict?"""
    items: Count = 200
    """Of each benchmark, drawn with the recipe's seed."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for key, given in (("changes", self.changes), ("rejected_only", self.rejected_only)):
            for change in sorted({name for name in given if given.count(name) > 1}):
                yield key, f"{change} is there twice"


class LookRecipe(Strict):
    """Verdicts again without the images of prompts, and with those of other prompts."""

    items: Count | None = 500
    """Of each benchmark's items with images, drawn with the recipe's seed; null: all."""


class BestOfNRecipe(Strict):
    """What choosing the best of n by each model is worth under a gold scorer."""

    candidates: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    """Many responses to each prompt: rated data, samples.jsonl of a `palate eval` folder, or rows
    of `prompt` and `responses`."""
    image_root: Path | None = None
    """Folder that paths of images start from; default: the folder of each source's files. No path
    leads out of it."""
    gold: Scorer | None = None
    """The gold scorer; default: the ratings of the data."""
    pairing: PairingRecipe | None = None
    """Which number of rated data is the gold score (keys `score` and `aspects`); only without
    `gold`."""
    largest: Annotated[int, Field(ge=2, le=64)] = 64
    """Largest n; no more than the fewest candidates of a prompt."""
    min_candidates: Annotated[int, Field(ge=2)] = 2
    """Prompts with fewer candidates that have a score and a gold score are left out, and counted:
    the curve ends at the fewest candidates of those that are left."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.pairing is not None:
            if self.gold is not None:
                yield "pairing", "only without `gold`"
            unread = sorted(set(self.pairing.of_ratings) - {"score", "aspects"})
            if unread:
                yield "pairing", f"only `score` and `aspects` count here: delete {unread[0]}"


class RewardEvalRecipe(RunRecipe):
    """Evaluation of reward models, judges and ensembles."""

    resume: bool = False
    """Go on with an interrupted evaluation of the same recipe: scores that are there are kept."""
    models: Annotated[tuple[Scorer, ...], Field(min_length=1)]
    """What is evaluated, each by its `type`: model, heads, classifier, lexicon, length, rule,
    function, verifier, remote, pointwise, pairwise, rubric, critic, ensemble, mixture or hybrid.
    Several are compared."""
    benchmarks: tuple[Benchmark, ...] = ()
    """On what, each by its `type`: rewardbench, rewardbench2, rm_bench, vl_rewardbench,
    mm_rlhf_rewardbench, multimodal_rewardbench or pairs."""
    robustness: RobustnessRecipe | None = None
    look: LookRecipe | None = LookRecipe()
    """Whether models look at the images of prompts, where there are any; null: not asked."""
    best_of_n: BestOfNRecipe | None = None
    chunk_items: Count = 256
    """Prompts scored between two writes to the disk."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.benchmarks and self.best_of_n is None:
            yield "benchmarks", "nothing to do: give `benchmarks` or `best_of_n`"
        if self.robustness is not None and not self.benchmarks:
            yield "robustness", "needs `benchmarks`"
        for key, given in (("models", self.models), ("benchmarks", self.benchmarks)):
            names = [section.name for section in given if section.name is not None]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield key, f"two are named {name}"
