"""Outcomes of items, as they are in the files of evaluations, compared with sums by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from palate.errors import RunError
from palate.evaluate.length_control import length_controlled_win_rate
from palate.study.outcomes import Outcomes, Undetermined, checkpoints_of, mean, outcomes_of
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
    row = {"policy": "p", "checkpoint": 3, "id": item, "prompt_id": f"p{item}", "source": "test"}
    return row | {"margin": margin, "log_ratio_margin": log_ratio} | more


def test_accuracy_and_margin_of_pairs() -> None:
    write(
        "pairs.jsonl",
        [
            pair("1", 0.5, 5.0),
            pair("2", -0.5, -2.0, prompt_id="p1"),
            pair("3", 0.0, 0.0),
            pair("1", -1.0, 3.0, source="late"),
            pair("1", -1.0, 4.0),
            pair("9", 1.0, 9.0, checkpoint=2),
        ],
    )
    assert read("accuracy") == {
        ("p1", "test|1|1"): 1.0,
        ("p1", "test|2|1"): 0.0,
        ("p3", "test|3|1"): 0.5,
        ("p1", "late|1|1"): 0.0,
        ("p1", "test|1|2"): 0.0,
    }
    assert read("margin") == {
        ("p1", "test|1|1"): 5.0,
        ("p1", "test|2|1"): -2.0,
        ("p3", "test|3|1"): 0.0,
        ("p1", "late|1|1"): 3.0,
        ("p1", "test|1|2"): 4.0,
    }
    assert read("accuracy", "late") == {("p1", "late|1|1"): 0.0}
    assert mean(read("margin")) == 2.0


def sample(prompt: str, policy: str, index: int = 0, **more: Any) -> dict[str, Any]:
    row = {"prompt_id": prompt, "index": index, "policy": policy, "checkpoint": 3}
    values = {"reward": 0.0, "won": None, "kl": 0.0, "forward_kl": 0.0, "entropy": 0.0, "tokens": 1}
    return row | {"response": "a text"} | values | more


def by_prompt(**values: float) -> Outcomes:
    return {(prompt, prompt): value for prompt, value in values.items()}


def test_samples_are_averaged_by_prompt() -> None:
    write(
        "samples.jsonl",
        [
            sample("x", "reference", reward=1.0, checkpoint=None),
            sample("x", "reference", 1, reward=2.0, checkpoint=None),
            sample("y", "reference", reward=None, checkpoint=None),
            sample("x", "p", reward=3.0, won=1.0, tokens=4, kl=1.0),
            sample("x", "p", 1, reward=2.0, won=0.5, tokens=6, kl=2.0),
            sample("y", "p", reward=5.0, tokens=8, kl=None),
            sample("y", "p", reward=99.0, checkpoint=1),
        ],
    )
    assert read("reward") == by_prompt(x=2.5, y=5.0)
    assert read("best_of_n") == by_prompt(x=3.0, y=5.0)
    assert read("tokens") == by_prompt(x=5.0, y=8.0)
    assert read("kl") == by_prompt(x=1.5)
    # Nothing was compared with the only sample of y.
    assert read("win_rate") == by_prompt(x=0.75)


def test_samples_that_are_alike_have_a_high_self_bleu() -> None:
    text = "one two three four five six"
    rows = [
        sample("same", "p", response=text),
        sample("same", "p", 1, response=text),
        sample("other", "p", response=text),
        sample("other", "p", 1, response="seven eight nine ten eleven twelve"),
        # A prompt with one text has nobody to be like.
        sample("alone", "p", response=text),
        sample("alone", "p", 1, response=" "),
    ]
    write("samples.jsonl", rows)
    found = read("self_bleu")
    assert found.keys() == {("same", "same"), ("other", "other")}
    assert found["same", "same"] == pytest.approx(1.0)
    assert found["other", "other"] < 0.1


def answered(n: int) -> list[dict[str, Any]]:
    """Samples of n prompts: longer ones win mostly, with and against the reference's."""
    rng = random.Random(0)
    rows = []
    for i in range(n):
        lengths = rng.randint(20, 200), rng.randint(20, 200)
        chance = 0.75 if lengths[0] > lengths[1] else 0.35
        rows.append(sample(str(i), "reference", response="r" * lengths[1], checkpoint=None))
        won = float(rng.random() < chance)
        rows.append(sample(str(i), "p", response="p" * lengths[0], won=won))
    return rows


def test_the_mean_over_items_is_the_length_controlled_win_rate() -> None:
    rows = answered(80)
    write("samples.jsonl", rows)
    own, reference = rows[1::2], rows[::2]
    expected = length_controlled_win_rate(
        [row["won"] for row in own],
        [len(row["response"]) for row in own],
        [len(row["response"]) for row in reference],
    )
    found = read("length_controlled_win_rate")
    assert len(found) == 80
    assert mean(found) == pytest.approx(expected.controlled)
    # The spread of the items' values is the standard error that the fit has.
    error = np.std(list(found.values())) / np.sqrt(80)
    low, high = expected.controlled_interval
    assert 2 * stats.t.ppf(0.975, 79) * error == pytest.approx(high - low, rel=0.05)


def test_a_win_rate_that_length_explains_wholly_is_undetermined() -> None:
    write("samples.jsonl", [row | {"won": 1.0} for row in answered(30)])
    with pytest.raises(Undetermined, match="no length-controlled win rate of 30 preferences"):
        read("length_controlled_win_rate")


def test_checkpoints_begin_at_the_reference() -> None:
    rows = [sample("x", "reference", reward=1.0, checkpoint=None, kl=0.0)]
    for step, kl, reward in ((10, 2.0, 4.0), (5, 0.5, 3.0)):
        rows.append(sample("x", "p", checkpoint=step, kl=kl, reward=reward, won=1.0))
    write("samples.jsonl", rows)
    recipe_of = study_of(recipe(measures=[{"name": "m", "step": "evaluation", "value": "reward"}]))
    found = checkpoints_of(FOLDER, recipe_of.recipe.measures[0])
    assert found == [
        (0.0, by_prompt(x=1.0)),
        (0.5, by_prompt(x=3.0)),
        (2.0, by_prompt(x=4.0)),
    ]
    won = {"name": "m", "step": "evaluation", "value": "win_rate"}
    recipe_of = study_of(recipe(measures=[won]))
    found = checkpoints_of(FOLDER, recipe_of.recipe.measures[0])
    # Against itself the reference wins half.
    assert [o for _, o in found] == [by_prompt(x=0.5), by_prompt(x=1.0), by_prompt(x=1.0)]


def scores(item: str, values: list[float | None], correct: int = 1, **more: Any) -> dict[str, Any]:
    row = {"benchmark": "hard", "source": "test", "id": item, "prompt_id": item, "tie": False}
    return row | {"scores": {"m": values}, "correct": correct} | more


def test_accuracy_of_a_reward_model() -> None:
    write(
        "scores.jsonl",
        [
            scores("1", [2.0, 1.0, 3.0, 0.0]),
            scores("2", [2.0, 1.0, 0.0], correct=2, prompt_id="1"),
            scores("3", [1.0, 1.0]),
            scores("4", [1.0, None]),
            scores("5", [0.0, 9.0], tie=True),
            scores("6", [0.0, 9.0], benchmark=None),
            scores("7", [1.0, 0.0], benchmark="easy"),
        ],
    )
    hard = {
        ("hard|1", "hard|test|1"): 2 / 3,
        ("hard|1", "hard|test|2"): 1.0,
        ("hard|3", "hard|test|3"): 0.0,
        ("hard|4", "hard|test|4"): 0.0,
    }
    easy = {("easy|7", "easy|test|7"): 1.0}
    assert read("accuracy", step="judged") == hard | easy
    assert read("accuracy", "easy", step="judged") == easy


def test_best_of_n_is_the_gold_score_of_the_choice() -> None:
    def candidates(item: str, gold: list[float | None], values: list[float]) -> dict[str, Any]:
        return scores(item, values, benchmark=None) | {"gold": gold}  # type: ignore[arg-type]

    write(
        "scores.jsonl",
        [
            scores("0", [1.0, 0.0]),
            candidates("1", [5.0, 1.0, 2.0], [0.1, 0.9, 0.5]),
            # Of two of three, each as likely: 9 where the second is there, else 4.
            candidates("2", [4.0, 9.0, 3.0], [0.5, 0.9, 0.1]),
            candidates("3", [4.0, None], [0.5, 0.9]),
        ],
    )
    curve = {"largest": 2, "smallest": 2}
    (FOLDER / "evaluation.json").write_text(json.dumps({"best_of_n": {"models": {"m": curve}}}))
    assert read("best_of_n", step="judged") == {
        ("test|1", "test|1"): pytest.approx((1 + 1 + 2) / 3),
        ("test|2", "test|2"): pytest.approx((9 + 9 + 4) / 3),
    }


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
