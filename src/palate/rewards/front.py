"""One call for every kind of reward: a prompt and responses to it in, scores (and texts) out."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.data.schema import Content, text_in
from palate.errors import DataError
from palate.recipes import scorers as recipes
from palate.recipes.load import check_recipe, load_recipe
from palate.recipes.serving import ServeRecipe
from palate.rewards.base import Scorer
from palate.rewards.build import make_scorer
from palate.rewards.rows import Outcome, members_of, score_rows


@dataclass(frozen=True)
class Scores:
    """What became of the responses to one prompt, in the order given.

    Attributes:
        scores: higher is better; None where there is none.
        texts: what the scorer wrote about each: a critique, a judge's words. None of scorers that
            write nothing.
        reasons: why there is no score; None where there is one.
        members: of an ensemble the scores of each member, by its name; empty of other scorers.
    """

    scores: list[float | None]
    texts: list[str | None]
    reasons: list[str | None]
    members: dict[str, list[float | None]] = field(default_factory=dict)


class RewardScorer:
    """A reward model, judge, critic, ensemble or baseline behind one interface.

    Args:
        scorer: what scores batches.

    Attributes:
        name: short, for reports.
        relative: whether a score means something only beside those of the same call, as those of
            judges that compare do.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name = scorer.name
        self.relative = bool(getattr(scorer, "relative", False))

    def score(self, prompt: Content, responses: Sequence[Content | str]) -> Scores:
        """Scores several responses to one prompt.

        Args:
            prompt: text, or chat turns that end with the user's.
            responses: texts, or the assistant's turns that follow the prompt.

        Raises:
            TypeError: neither texts nor turns.
            PalateError: what such a scorer cannot read; a judge's server that does not answer.
        """
        (found,) = self.score_many([prompt], [responses])
        return found

    def score_many(
        self, prompts: Sequence[Content], responses: Sequence[Sequence[Content | str]]
    ) -> list[Scores]:
        """As `score`, of many prompts at once, those of like lengths together."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} lists of responses")
        for prompt, group in zip(prompts, responses, strict=True):
            if isinstance(group, str):
                raise TypeError("`responses` is a list: one response is [response]")
            _check(prompt, "prompt")
            for response in group:
                _check(response, "response")
        return [_scores(own) for own in score_rows(self.scorer, prompts, responses)]


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


def _scores(outcomes: Sequence[Outcome]) -> Scores:
    return Scores(
        [outcome.score for outcome in outcomes],
        [outcome.text for outcome in outcomes],
        [outcome.reason for outcome in outcomes],
        members_of(outcomes),
    )
