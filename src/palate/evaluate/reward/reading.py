"""The benchmarks of a recipe, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palate.data.images import ImageStore
from palate.evaluate.reward.benchmark import Benchmark, Read
from palate.evaluate.reward.images import EvalImages
from palate.evaluate.reward.items import BenchmarkItem
from palate.evaluate.reward.mm_rlhf_rewardbench import MmRlhfRewardBench
from palate.evaluate.reward.multimodal_rewardbench import MultimodalRewardBench
from palate.evaluate.reward.pairs import Pairs
from palate.evaluate.reward.rewardbench import RewardBench
from palate.evaluate.reward.rewardbench2 import RewardBench2
from palate.evaluate.reward.rm_bench import RmBench
from palate.evaluate.reward.vl_rewardbench import VlRewardBench
from palate.recipes import reward_eval as recipes
from palate.rewards.columns import columns_read
from palate.store.names import unique_names


@dataclass(frozen=True)
class ReadBenchmark:
    """One benchmark of the recipe, read."""

    name: str
    type: str
    rules: Benchmark
    read: Read

    @property
    def items(self) -> list[BenchmarkItem]:
        return self.read.items


def benchmark_of(
    recipe: recipes.Benchmark, store: ImageStore | None = None, columns: Sequence[str] = ()
) -> Benchmark:
    """What a recipe's benchmark is read and scored by.

    Args:
        store: takes images that come as bytes; default: they stay in memory.
        columns: of the user's own pairs, which a scorer reads.
    """
    if isinstance(recipe, recipes.RewardBenchRecipe):
        return RewardBench(recipe.prior)
    if isinstance(recipe, recipes.RewardBench2Recipe):
        return RewardBench2()
    if isinstance(recipe, recipes.RmBenchRecipe):
        return RmBench()
    images = EvalImages(root=recipe.image_root, store=store)
    if isinstance(recipe, recipes.VlRewardBenchRecipe):
        return VlRewardBench(images)
    if isinstance(recipe, recipes.MmRlhfRewardBenchRecipe):
        return MmRlhfRewardBench(images)
    if isinstance(recipe, recipes.MultimodalRewardBenchRecipe):
        return MultimodalRewardBench(images)
    return Pairs(recipe.pairing, images, columns)


def read_benchmarks(recipe: recipes.RewardEvalRecipe, store: ImageStore) -> list[ReadBenchmark]:
    """All of a recipe, named apart.

    Args:
        store: takes images that come as bytes.

    Raises:
        DataError: one that cannot be read. RecipeError: as its `read`.
    """
    columns = dict.fromkeys(name for model in recipe.models for name in columns_read(model))
    made = [benchmark_of(chosen, store, tuple(columns)) for chosen in recipe.benchmarks]
    given = zip(recipe.benchmarks, made, strict=True)
    names = unique_names(chosen.name or benchmark.title for chosen, benchmark in given)
    return [
        ReadBenchmark(name, chosen.type, benchmark, benchmark.read(chosen.data, recipe.seed))
        for chosen, benchmark, name in zip(recipe.benchmarks, made, names, strict=True)
    ]
