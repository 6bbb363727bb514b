"""`palate eval` on prompts alone: no pairs are asked for, and scorers read the prompts' columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from palate.evaluate import evaluate
from palate.recipes.evaluation import EvalRecipe
from tiny_runs import read, write_rows
from tiny_text import save_tiny


def recipe(folder: Path, **more: object) -> EvalRecipe:
    document = {
        "output_dir": str(folder / "eval"),
        "model": {"path": str(folder / "tiny"), "dtype": "float32"},
        "prompts": [{"path": str(folder / "prompts.jsonl"), "columns": ["answer"]}],
        "preference": False,
        "sampling": {"prompts": 6, "samples_per_prompt": 2, "max_new_tokens": 4},
        "reward": {"type": "rule", "answer_column": "answer"},
    }
    return EvalRecipe.model_validate(document | more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "tiny")
    rows = [{"prompt": f"{i} red: ", "answer": "blue"} for i in range(8)]
    write_rows(tmp_path / "prompts.jsonl", rows)
    return tmp_path


def test_prompts_are_sampled_and_scored_by_their_columns(folder: Path) -> None:
    evaluate(recipe(folder))
    document = read(folder / "eval" / "evaluation.json")
    (policy,) = document["policies"]
    assert "preference" not in policy
    lines = (folder / "eval" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 12
    data = read(folder / "eval" / "data.json")
    assert data["eval"]["prompts"] == 8 and data["train"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"preference": True}, "there are no pairs"),
        ({"data": [{"path": "pairs.jsonl"}]}, "only without `data`"),
    ],
)
def test_what_needs_pairs_is_refused(tmp_path: Path, more: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(tmp_path, **more)
