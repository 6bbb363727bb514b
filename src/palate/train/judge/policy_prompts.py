"""Preference data as prompts for a policy that learns to judge by its rewards: the questions that
`palate judge` trains on, each with its right verdict in a column that the scorer `judge_verdict`
reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.data.content import bare
from palate.data.images import ImageStore
from palate.data.schema import Message, images_in
from palate.errors import RecipeError
from palate.recipes.judge import CriticKind, JudgeRecipe, PairwiseKind, PointwiseKind
from palate.store.files import write_text
from palate.train.judge.ask import Question, pair_questions, rating_questions
from palate.train.judge.rows import Rows, mapped, read_rows

IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """One prompt of a policy.

    Attributes:
        content: the judge's question. columns: `right` and `options`, verdicts as they are read.
    """

    id: str
    source: str
    content: list[Message]
    columns: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class JudgePrompts:
    """Those to train on, and those held out."""

    train: list[JudgePrompt]
    eval: list[JudgePrompt]


def judge_prompts(recipe: JudgeRecipe, images: ImageStore | None = None) -> JudgePrompts:
    """The questions of a judge's recipe: its data paired and split, sides in the order that its
    seed draws, as `palate judge` asks them.

    Args:
        images: takes the images of rows; default: rows with images are dropped.

    Raises:
        RecipeError: a critic, which has no verdict.
        DataError: as `read_rows`.
    """
    if isinstance(recipe.judge, CriticKind):
        raise RecipeError("`judge.type`: a critic gives no verdict that could be right")
    rows = read_rows(recipe, images)
    asked = _asked(rows, recipe.judge, recipe.seed)
    train, held = (list(map(_prompt, questions)) for questions in asked)
    return JudgePrompts(train=train, eval=held)


def write_judge_prompts(recipe: JudgeRecipe, folder: Path) -> dict[str, Path]:
    """Writes the prompts as train.jsonl and, where some are held out, eval.jsonl, a line each with
    id, prompt, images, right and options; images go beside them.

    Returns:
        "train" and "eval" -> their files.
    """
    prompts = judge_prompts(recipe, ImageStore(folder / IMAGES))
    files = {}
    for part in ("train", "eval"):
        if lines := list(_lines(getattr(prompts, part))):
            files[part] = folder / f"{part}.jsonl"
            write_text(files[part], "".join(lines))
    return files


def _asked(
    rows: Rows, kind: PairwiseKind | PointwiseKind, seed: int
) -> tuple[list[Question], list[Question]]:
    """Questions of the training and of the held-out rows."""
    if isinstance(kind, PairwiseKind):
        return pair_questions(rows.train, kind, seed), pair_questions(rows.eval, kind, seed)
    cuts, _, _ = mapped([row.rating for row in rows.train], kind)
    return rating_questions(rows.train, kind, cuts), rating_questions(rows.eval, kind, cuts)


def _prompt(question: Question) -> JudgePrompt:
    columns = {"right": question.right, "options": list(question.options)}
    return JudgePrompt(
        id=question.id, source=question.source, content=question.asked, columns=columns
    )


def _lines(prompts: Sequence[JudgePrompt]) -> Iterator[str]:
    for prompt in prompts:
        line = {"id": prompt.id, "prompt": bare(prompt.content)}
        if images := images_in(prompt.content):
            line["images"] = [f"{IMAGES}/{image.path}" for image in images]
        yield json.dumps({**line, **prompt.columns}, ensure_ascii=False) + "\n"
