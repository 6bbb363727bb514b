"""Scorers for use from Python: a prompt and responses to it in, scores out."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.data.schema import Content, ImageRef, map_images, text_in
from palate.data.scorer import Group, Score, Scorer
from palate.errors import DataError
from palate.recipes import scorers as recipes
from palate.recipes.load import check_recipe, load_recipe
from palate.recipes.serving import ServeRecipe
from palate.rewards.build import make_scorer
from palate.rewards.groups import score_groups


class RewardScorer:
    """Anything that scores, opened for use from Python.

    Args:
        scorer: what scores groups.

    Attributes:
        name: short, for reports.
        traits: what a caller must know of it; where `relative`, a score means something only
            beside those of the same call.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name = scorer.name
        self.traits = scorer.traits

    def score(self, prompt: Content, responses: Sequence[Content]) -> list[Score]:
        """Scores several responses to one prompt, in the order given.

        Args:
            prompt: text, or chat turns that end with the user's.
            responses: texts, or the assistant's turns that follow the prompt.

        Raises:
            TypeError: neither texts nor turns.
            PalateError: what such a scorer cannot read; a judge's server that does not answer.
        """
        (scores,) = self.score_many([prompt], [responses])
        return scores

    def score_many(
        self, prompts: Sequence[Content], responses: Sequence[Sequence[Content]]
    ) -> list[list[Score]]:
        """As `score`, of many prompts at once, those of like lengths together."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} lists of responses")
        groups = []
        for prompt, answers in zip(prompts, responses, strict=True):
            if isinstance(answers, str):
                raise TypeError("`responses` is a list: one response is [response]")
            _check(prompt, "prompt")
            for response in answers:
                _check(response, "response")
            groups.append(Group(_placed(prompt), tuple(map(_placed, answers))))
        return score_groups(self.scorer, groups)


def load_scorer(
    source: str | Path | Mapping[str, Any] | recipes.ScorerBase, *, seed: int = 0
) -> RewardScorer:
    """Opens anything that scores.

    Args:
        source: a reward model (the `model` folder of a run, or a hub name); a recipe file with a
            `scorer`, such as the judge.yaml of `palate judge`; or a scorer as recipes describe
            them: {"type": "pairwise", "chat": {...}}.
        seed: of drawing the validation rows of an ensemble.

    Raises:
        PalateError: unreadable, or no such scorer.
    """
    if isinstance(source, recipes.ScorerBase):
        return RewardScorer(make_scorer(source, seed=seed))  # type: ignore[arg-type]
    if isinstance(source, Mapping):
        loaded = check_recipe(ServeRecipe, {"scorer": dict(source)}, "load_scorer")
    elif Path(source).suffix in (".yaml", ".yml"):
        loaded = load_recipe(ServeRecipe, source)
    else:
        model = {"type": "model", "path": str(source)}
        loaded = check_recipe(ServeRecipe, {"scorer": model}, "load_scorer")
    return RewardScorer(make_scorer(loaded.scorer, seed=seed))


def _check(content: Any, name: str) -> None:
    """Refuses what is neither a text nor chat turns, and text that no tokenizer takes."""
    if isinstance(content, str):
        texts = [content]
    elif isinstance(content, list) and content and all(map(_is_turn, content)):
        texts = [text_in(turn["content"]) for turn in content]
    else:
        raise TypeError(
            f"a {name} is a text or turns like {{'role': 'user', 'content': 'Why?'}}, not "
            f"{reprlib.repr(content)}"
        )
    if any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        raise DataError(f"a {name} holds half of a surrogate pair: no Unicode text")


def _placed(content: Content) -> Content:
    """The content, paths of whose images start where they say, or from the working directory."""

    def placed(image: ImageRef) -> ImageRef:
        if image.path is None or image.root is not None:
            return image
        file = Path(image.path).expanduser().absolute()
        return ImageRef(path=file.name, digest=image.digest, root=file.parent)

    return map_images(content, placed)


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return False
    content = turn.get("content")
    return isinstance(content, str) or (isinstance(content, list) and all(map(_is_part, content)))


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return kind == "image" or (kind == "text" and isinstance(part.get("text"), str))
