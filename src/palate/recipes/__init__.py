"""Typed recipes: one YAML file, dotted overrides, one line for every mistake. Imports no torch."""

from palate.recipes.construct import BuildSource, DataBuildRecipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.help import help_for
from palate.recipes.judge import JudgeRecipe
from palate.recipes.load import load_recipe, resolve_yaml, shipped_recipes
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DemoRecipe, SftRecipe, TuneRecipe
from palate.recipes.serving import ScoreRecipe, ServeRecipe
from palate.recipes.study import StudyRecipe
from palate.recipes.tasks import TaskEvalRecipe

__all__ = [
    "BuildSource",
    "DataBuildRecipe",
    "DemoRecipe",
    "EvalRecipe",
    "JudgeRecipe",
    "RewardEvalRecipe",
    "RewardRecipe",
    "RlRecipe",
    "ScoreRecipe",
    "ServeRecipe",
    "SftRecipe",
    "StudyRecipe",
    "TaskEvalRecipe",
    "TuneRecipe",
    "help_for",
    "load_recipe",
    "resolve_yaml",
    "shipped_recipes",
]
