"""Learn from preference feedback: typed recipes, exact token-level KL, evaluation and reports.

Every name below is loaded when it is first used, so that `import palate` is quick and needs no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from palate.store.versions import __version__

if TYPE_CHECKING:
    from palate.data.items import Item
    from palate.data.schema import Preference, Response
    from palate.data_verbs import build_data, inspect_data
    from palate.demo import demo as run_demo
    from palate.errors import DataError, ModelError, PalateError, RecipeError, RunError
    from palate.evaluate import evaluate as run_evaluation
    from palate.evaluate.reward import evaluate_rewards, score_files
    from palate.kernels import Head, RefHidden, RefLogps, RefSummary, TokenStats, token_stats
    from palate.models.reward_files import load_reward_model
    from palate.recipes import (
        BuildSource,
        DataBuildRecipe,
        DemoRecipe,
        EvalRecipe,
        JudgeRecipe,
        RewardEvalRecipe,
        RewardRecipe,
        RlRecipe,
        ScoreRecipe,
        ServeRecipe,
        SftRecipe,
        TuneRecipe,
        load_recipe,
        resolve_yaml,
    )
    from palate.report import write_report
    from palate.rewards.api import RewardScorer, load_scorer
    from palate.serve import serve as run_server
    from palate.train import reward as train_reward
    from palate.train import sft, tune
    from palate.train.judge import train_judge
    from palate.train.merge import merge_adapters
    from palate.train.rl_run import rl

# Where each name lives. The functions of `palate.demo` and `palate.evaluate` have other names here:
# importing a submodule sets the package's attribute of that name, and would hide them.
_HOMES = {
    "BuildSource": "palate.recipes",
    "DataBuildRecipe": "palate.recipes",
    "DataError": "palate.errors",
    "DemoRecipe": "palate.recipes",
    "EvalRecipe": "palate.recipes",
    "Head": "palate.kernels",
    "Item": "palate.data.items",
    "JudgeRecipe": "palate.recipes",
    "ModelError": "palate.errors",
    "PalateError": "palate.errors",
    "Preference": "palate.data.schema",
    "RecipeError": "palate.errors",
    "RefHidden": "palate.kernels",
    "RefLogps": "palate.kernels",
    "RefSummary": "palate.kernels",
    "Response": "palate.data.schema",
    "RewardEvalRecipe": "palate.recipes",
    "RewardRecipe": "palate.recipes",
    "RewardScorer": "palate.rewards.api",
    "RlRecipe": "palate.recipes",
    "RunError": "palate.errors",
    "ScoreRecipe": "palate.recipes",
    "ServeRecipe": "palate.recipes",
    "SftRecipe": "palate.recipes",
    "TokenStats": "palate.kernels",
    "TuneRecipe": "palate.recipes",
    "build_data": "palate.data_verbs",
    "evaluate_rewards": "palate.evaluate.reward",
    "inspect_data": "palate.data_verbs",
    "load_recipe": "palate.recipes",
    "load_reward_model": "palate.models.reward_files",
    "load_scorer": "palate.rewards.api",
    "merge_adapters": "palate.train.merge",
    "resolve_yaml": "palate.recipes",
    "rl": "palate.train.rl_run",
    "run_demo": "palate.demo:demo",
    "run_evaluation": "palate.evaluate:evaluate",
    "run_server": "palate.serve:serve",
    "score_files": "palate.evaluate.reward",
    "sft": "palate.train",
    "token_stats": "palate.kernels",
    "train_judge": "palate.train.judge",
    "train_reward": "palate.train:reward",
    "tune": "palate.train",
    "write_report": "palate.report",
}

__all__ = [
    "BuildSource",
    "DataBuildRecipe",
    "DataError",
    "DemoRecipe",
    "EvalRecipe",
    "Head",
    "Item",
    "JudgeRecipe",
    "ModelError",
    "PalateError",
    "Preference",
    "RecipeError",
    "RefHidden",
    "RefLogps",
    "RefSummary",
    "Response",
    "RewardEvalRecipe",
    "RewardRecipe",
    "RewardScorer",
    "RlRecipe",
    "RunError",
    "ScoreRecipe",
    "ServeRecipe",
    "SftRecipe",
    "TokenStats",
    "TuneRecipe",
    "__version__",
    "build_data",
    "evaluate_rewards",
    "inspect_data",
    "load_recipe",
    "load_reward_model",
    "load_scorer",
    "merge_adapters",
    "resolve_yaml",
    "rl",
    "run_demo",
    "run_evaluation",
    "run_server",
    "score_files",
    "sft",
    "token_stats",
    "train_judge",
    "train_reward",
    "tune",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
