"""Outcomes of items, as they are in the files of evaluations, compared with sums by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RunError
from palate.study.outcomes import Outcomes, mean, outcomes_of
from study_cases import evaluation_step, policy_step, recipe, study_of

FOLDER = Path("evaluation")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(value: str, source: str | None = None, *, step: str = "evaluation") -> Outcomes:
    judged = {
        "models": [{"type": "length"}],
        "benchmarks": [{"type": "pairs", "data": [{"path": "test.jsonl"}]}],
    }
    steps = [
        policy_step(),
        evaluation_step(),
        {"name": "judged", "verb": "eval reward", "recipe": judged},
    ]
    measure = {"name": "m", "step": step, "value": value, "source": source}
    study = study_of(recipe(steps=steps, measures=[measure])).recipe
    return outcomes_of(FOLDER, study, study.measures[0])


def pair(item: str, margin: float, log_ratio: float | None = 0.0, **more: Any) -> dict[str, Any]:
    row = {"policy": "p", "checkpoint": 3, "id": item, "source": "test"}
    return row | {"margin": margin, "log_ratio_margin": log_ratio} | more


def test_accuracy_and_margin_of_pairs() -> None:
    write(
        "pairs.jsonl",
        [
            pair("1", 0.5, 5.0),
            pair("2", -0.5, -2.0),
            pair("3", 0.0, 0.0),
            pair("1", -1.0, 3.0, source="late"),
            pair("1", -1.0, 4.0),
            pair("9", 1.0, 9.0, checkpoint=2),
        ],
    )
    assert read("accuracy") == {
        "test|1|1": 1.0,
        "test|2|1": 0.0,
        "test|3|1": 0.5,
        "late|1|1": 0.0,
        "test|1|2": 0.0,
    }
    assert read("margin") == {
        "test|1|1": 5.0,
        "test|2|1": -2.0,
        "test|3|1": 0.0,
        "late|1|1": 3.0,
        "test|1|2": 4.0,
    }
    assert read("accuracy", "late") == {"late|1|1": 0.0}
    assert mean(read("margin")) == 2.0


def sample(prompt: str, policy: str, index: int = 0, **more: Any) -> dict[str, Any]:
    row = {"prompt_id": prompt, "index": index, "policy": policy, "checkpoint": 3}
    values = {"reward": 0.0, "kl": 0.0, "forward_kl": 0.0, "entropy": 0.0, "tokens": 1}
    return row | values | more


def test_samples_are_averaged_by_prompt() -> None:
    write(
        "samples.jsonl",
        [
            sample("x", "reference", reward=1.0, checkpoint=None),
            sample("x", "reference", 1, reward=2.0, checkpoint=None),
            sample("y", "reference", reward=None, checkpoint=None),
            sample("x", "p", reward=3.0, tokens=4, kl=1.0),
            sample("x", "p", 1, reward=2.0, tokens=6, kl=2.0),
            sample("y", "p", reward=5.0, tokens=8, kl=None),
            sample("y", "p", reward=99.0, checkpoint=1),
        ],
    )
    assert read("reward") == {"x": 2.5, "y": 5.0}
    assert read("tokens") == {"x": 5.0, "y": 8.0}
    assert read("kl") == {"x": 1.5}
    # 3 beats 1 and 2 ties with 2; there is nothing that 5 could be compared with.
    assert read("win_rate") == {"x": 0.75}


def scores(item: str, values: list[float | None], correct: int = 1, **more: Any) -> dict[str, Any]:
    row = {"benchmark": "hard", "source": "test", "id": item, "tie": False}
    return row | {"scores": {"m": values}, "correct": correct} | more


def test_accuracy_of_a_reward_model() -> None:
    write(
        "scores.jsonl",
        [
            scores("1", [2.0, 1.0, 3.0, 0.0]),
            scores("2", [2.0, 1.0, 0.0], correct=2),
            scores("3", [1.0, 1.0]),
            scores("4", [1.0, None]),
            scores("5", [0.0, 9.0], tie=True),
            scores("6", [0.0, 9.0], benchmark=None),
            scores("7", [1.0, 0.0], benchmark="easy"),
        ],
    )
    hard = {"hard|test|1": 2 / 3, "hard|test|2": 1.0, "hard|test|3": 0.0, "hard|test|4": 0.0}
    assert read("accuracy", step="judged") == hard | {"easy|test|7": 1.0}
    assert read("accuracy", "easy", step="judged") == {"easy|test|7": 1.0}


@pytest.mark.parametrize(
    ("rows", "value", "source", "line"),
    [
        ([pair("1", 1.0)], "accuracy", "nowhere", "evaluation: holds no accuracy of nowhere"),
        ([pair("1", 1.0, None)], "margin", None, "evaluation: holds no margin"),
        ([], "accuracy", None, "evaluation: holds no accuracy"),
        (
            [pair("1", 1.0), pair("1", 1.0, policy="q")],
            "accuracy",
            None,
            "an evaluation of a study is of one run, and this one is of p, q",
        ),
    ],
)
def test_what_is_not_there_is_told(
    rows: list[dict[str, Any]], value: str, source: str | None, line: str
) -> None:
    write("pairs.jsonl", rows)
    with pytest.raises(RunError) as caught:
        read(value, source)
    assert str(caught.value) == line


def test_a_file_that_is_not_there_or_broken_is_told() -> None:
    FOLDER.mkdir()
    with pytest.raises(RunError, match=r"evaluation/pairs\.jsonl: No such file"):
        read("accuracy")
    (FOLDER / "pairs.jsonl").write_text(json.dumps(pair("1", 1.0)) + "\nhalf a li")
    with pytest.raises(RunError, match=r"evaluation/pairs\.jsonl, line 2: no JSON"):
        read("accuracy")
