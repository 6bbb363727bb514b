"""The scorers of an evaluation: named, told apart by content, each loaded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.evaluate.reward.scoring import Book, Booked, EnsembleBook, ScoreBook
from palate.evaluate.targets import weights_identity
from palate.io import append_jsonl, sha256_file, sha256_tree
from palate.recipes import scorers as recipes
from palate.rewards.base import Scorer, short_name
from palate.rewards.build import make_scorer, members_of
from palate.rewards.ensemble import Ensemble

VERSION = 4
"""Of stored scores: raised whenever the same scorer would give others."""
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""Endings of what a model's folder holds beside weights: tokenizer, template, configuration."""


class Library:
    """Books of all scorers, shared where two recipes describe one scorer.

    Args:
        folder: of the stored scores; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None = None, *, seed: int = 0, chunk: int = 256) -> None:
        self.folder = folder
        self.seed = seed
        self.chunk = chunk
        self._books: dict[str, ScoreBook] = {}

    def book(self, recipe: recipes.Scorer, name: str | None = None) -> Book:
        """The book of a recipe, under its name or the one given."""
        name = name or name_of(recipe)
        if isinstance(recipe, recipes.HeadsScorer):
            recipe = members_of(recipe)
        if not isinstance(recipe, recipes.EnsembleScorer):
            return self._single(recipe, name)
        members = [self._single(m.scorer, name_of(m.scorer)) for m in recipe.members]
        by_key = {key_of(m.scorer): b for m, b in zip(recipe.members, members, strict=True)}

        def booked(member: Any) -> Scorer:
            return Booked(by_key[key_of(member)])

        ensemble = make_scorer(recipe, seed=self.seed, make=booked)
        assert isinstance(ensemble, Ensemble)
        return EnsembleBook(ensemble, members, name=name)

    def _single(self, recipe: recipes.Member, name: str) -> ScoreBook:
        key = key_of(recipe)
        if key not in self._books:
            self._books[key] = ScoreBook(
                lambda: self._load(recipe, key),
                None if self.folder is None else self.folder / f"scores-{key}.jsonl",
                name=name,
                relative=isinstance(recipe, recipes.PairwiseJudge),
                chunk=self.chunk,
            )
        return self._books[key]

    def _load(self, recipe: recipes.Member, key: str) -> Scorer:
        scorer: Any = make_scorer(recipe, seed=self.seed)
        if self.folder is not None and hasattr(scorer, "transcript"):
            # What a judge was asked and said is the evidence for its scores.
            file = self.folder / f"verdicts-{key}.jsonl"
            scorer.transcript = lambda line: append_jsonl(file, line)
        found: Scorer = scorer
        return found


def names_of(given: Sequence[recipes.Scorer]) -> list[str]:
    """Their names, numbered where two would be alike."""
    found: list[str] = []
    for recipe in given:
        name, n = name_of(recipe), 1
        while name in found:
            n += 1
            name = f"{name_of(recipe)} ({n})"
        found.append(name)
    return found


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
    if isinstance(recipe, recipes.HeadsScorer):
        return f"{recipe.combine} of the heads of {short_name(recipe.path)}"
    if isinstance(recipe, recipes.EnsembleScorer):
        members = ", ".join(name_of(member.scorer) for member in recipe.members)
        return f"{recipe.combine} of {members}"
    chat = recipe.chat
    model = chat.path if isinstance(chat, recipes.LocalChat) else chat.model
    if isinstance(recipe, recipes.CriticScorer):
        return f"{name_of(recipe.scorer)} given critiques of {short_name(model)}"
    thought = ", reasoning" if recipe.reasoning else ""
    return f"{short_name(model)} ({recipe.type}{thought})"


def key_of(recipe: recipes.Scorer) -> str:
    """Changes with whatever changes scores: the recipe but for its name, the weights, and what a
    local model reads with (tokenizer, chat template)."""
    document = recipe.model_dump(mode="json")
    paths = sorted(set(_paths(document)))
    parts = {
        "version": VERSION,
        "recipe": _nameless(document),
        "weights": {path: weights_identity(path) for path in paths},
        "texts": {path: _texts_identity(path) for path in [*paths, *_templates(document)]},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def identities(recipe: recipes.Scorer) -> dict[str, str]:
    """Path -> identity of the weights of every model in a recipe."""
    return {path: weights_identity(path) for path in sorted(set(_paths(recipe.model_dump())))}


def _nameless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nameless(inner) for key, inner in value.items() if key != "name"}
    if isinstance(value, list):
        return [_nameless(inner) for inner in value]
    return value


def _texts_identity(path: str) -> str | None:
    """Content of a template file, or of the files of a folder that are no weights."""
    place = Path(path)
    if place.is_file():
        return sha256_file(place)
    if not place.is_dir():
        return None
    return sha256_tree([file for file in place.iterdir() if file.suffix in _TEXTS])


def _templates(value: Any) -> list[str]:
    """Paths of chat templates."""
    if isinstance(value, dict):
        own = value.get("chat_template")
        inner = [path for item in value.values() for path in _templates(item)]
        return [own, *inner] if isinstance(own, str) else inner
    if isinstance(value, (list, tuple)):
        return [path for item in value for path in _templates(item)]
    return []


def _paths(value: Any) -> list[str]:
    """Paths of models; data that an ensemble is validated on has paths of its own, under
    `validation`."""
    if isinstance(value, dict):
        own = [value["path"]] if isinstance(value.get("path"), str) else []
        inner = [value[key] for key in value if key != "validation"]
        return own + [path for item in inner for path in _paths(item)]
    if isinstance(value, (list, tuple)):
        return [path for item in value for path in _paths(item)]
    return []
