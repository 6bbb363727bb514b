"""What scorers are called in reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.recipes import scorers as recipes
from palate.store.names import unique_names


def names_of(given: Sequence[recipes.Scorer]) -> list[str]:
    """Their names, numbered where two would be alike."""
    return unique_names(map(name_of, given))


def name_of(recipe: recipes.Scorer) -> str:
    """The name in the recipe, or one made from what it is."""
    if recipe.name is not None:
        return recipe.name
    if isinstance(recipe, (recipes.ModelScorer, recipes.ClassifierScorer)):
        suffix = ""
        if isinstance(recipe, recipes.ModelScorer):
            suffix = "" if recipe.head is None else f" head {recipe.head}"
            suffix += " (normalised)" if recipe.normalised else ""
        elif isinstance(recipe, recipes.ClassifierScorer) and recipe.label is not None:
            suffix = f" P({recipe.label})"
        return short_name(recipe.path) + suffix
    if isinstance(recipe, recipes.LexiconScorer):
        return "VADER compound"
    if isinstance(recipe, recipes.LengthScorer):
        return f"{recipe.prefer} wins"
    if isinstance(recipe, recipes.RuleScorer):
        return recipe.described
    if isinstance(recipe, recipes.FunctionScorer):
        return recipe.function
    if isinstance(recipe, recipes.VerifierScorer):
        return f"verified ({recipe.task})"
    if isinstance(recipe, recipes.RemoteScorer):
        return recipe.url.partition("://")[2].rstrip("/") or recipe.url
    if isinstance(recipe, recipes.HeadsScorer):
        return f"{recipe.combine} of the heads of {short_name(recipe.path)}"
    if isinstance(recipe, recipes.EnsembleScorer):
        members = ", ".join(name_of(member.scorer) for member in recipe.members)
        return f"{recipe.combine} of {members}"
    if isinstance(recipe, recipes.MixtureScorer):
        names = [name_of(member.scorer) for member in recipe.members]
        gate = recipe.combine == "gate"
        return f"{names[1]} behind {names[0]}" if gate else f"weighted sum of {', '.join(names)}"
    if isinstance(recipe, recipes.HybridScorer):
        return f"{name_of(recipe.rule)}, else {name_of(recipe.model)}"
    if isinstance(recipe, recipes.JudgeVerdictScorer):
        return "judge's verdict"
    if isinstance(recipe, recipes.CriticScorer):
        writer = "the data" if recipe.chat is None else _chat_name(recipe.chat)
        return f"{name_of(recipe.scorer)} given critiques of {writer}"
    thought = ", reasoning" if recipe.reasoning else ""
    ranks = isinstance(recipe, recipes.PairwiseJudge) and recipe.group == "rank"
    return f"{_chat_name(recipe.chat)} ({'ranking' if ranks else recipe.type}{thought})"


def _chat_name(chat: recipes.LocalChat | recipes.ServerChat) -> str:
    return short_name(chat.path if isinstance(chat, recipes.LocalChat) else chat.model)


def short_name(path: str) -> str:
    """What a model's path is called: its run's folder, or its own."""
    folder = Path(path)
    name = folder.parent.name if folder.name == "model" else folder.name
    return name or path
