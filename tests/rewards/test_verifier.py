"""Verifiers of mathematics, instructions and generated tasks, in processes that can be ended."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from palate.data.scorer import Group
from palate.errors import ModelError, RecipeError
from palate.evaluate.reward import score_files
from palate.evaluate.reward.check import check_scorers
from palate.recipes.load import check_recipe
from palate.recipes.scorers import VerifierScorer
from palate.recipes.serving import ScoreRecipe
from palate.rewards import checks, make_scorer
from palate.rewards.isolated import TIMED_OUT
from palate.rewards.processes import ProcessPool
from palate.rewards.verifier import FAILED


def needs(module: str) -> None:
    pytest.importorskip(module, reason="extra tasks is not installed")


def recipe(**keys: Any) -> VerifierScorer:
    document = {"output_dir": "out", "data": [{"path": "rows.jsonl"}]}
    scorer = {"type": "verifier", "workers": 1} | keys
    made = check_recipe(ScoreRecipe, document | {"scorer": scorer}, "test").scorer
    assert isinstance(made, VerifierScorer)
    return made


def test_mathematics() -> None:
    needs("math_verify")
    scorer = make_scorer(recipe(task="math"))
    groups = [
        Group("p", ("It is $0.5$.", r"So \boxed{\frac{2}{4}}", "3/4", ""), columns={"answer": c})
        for c in (r"\frac{1}{2}", "0.5", r"$\frac12$")
    ]
    for scores in scorer.score(groups):
        assert [score.value for score in scores] == [1.0, 1.0, 0.0, 0.0]
    unread, missing = Group("p", ("1",), columns={"answer": " "}), Group("p", ("1",))
    (blank,), (absent,) = scorer.score([unread, missing])
    assert blank.value is None and "nothing that math-verify reads" in str(blank.reason)
    assert absent.reason == "nothing in column answer of its prompt"


def test_what_mathematics_hangs_on_is_ended_in_any_thread() -> None:
    """Its own alarm works in the main thread alone, and interrupts no power of powers."""
    needs("math_verify")
    hangs = "$9^{9^{9^{9}}}$ = \\boxed{9^{9^{9^{9}}} + 1}"
    group = Group("p", ("$3$", hangs), columns={"answer": "3"})
    late = make_scorer(recipe(task="math", timeout_seconds=1.0))
    wrong = make_scorer(recipe(task="math", timeout_seconds=1.0, timed_out=0.0))
    scored: list[Any] = []
    thread = threading.Thread(target=lambda: scored.append(late.score([group])))
    thread.start()
    thread.join()
    ((right, slow),) = scored[0]
    assert (slow.value, slow.reason) == (None, "its check took longer than 1 s")
    assert right.value == 1.0 and late.counts == {TIMED_OUT: 1}
    ((zero,),) = wrong.score([group.part([1])])
    assert zero.value == 0.0 and wrong.counts == {TIMED_OUT: 1}


def test_instructions() -> None:
    needs("if_verifiable")
    names = ["punctuation:no_comma", "keywords:existence"]
    columns = {
        "instruction_id_list": names,
        "kwargs": json.dumps([None, {"keywords": ["moon"], "num_words": None}]),
    }
    group = Group("p", ("The moon", "The moon, the sun", "A, b"), columns=columns)
    scorer = make_scorer(recipe(task="if", measure="partial_strict"))
    ((*scores,),) = scorer.score([group])
    assert [score.value for score in scores] == [1.0, 0.5, 0.0]
    parts = {name: part.value for name, part in scores[1].parts.items()}
    assert parts == {names[0]: 0.0, names[1]: 1.0}
    others = [
        Group("p", ("a",), columns={"instruction_id_list": ["none:such"]}),
        Group("p", ("a",), columns={"instruction_id_list": names, "kwargs": [{}]}),
        Group("p", ("a",)),
        # Arguments that the instruction does not take: its check fails.
        Group("p", ("a",), columns={"instruction_id_list": names[:1], "kwargs": [{"x": 1}]}),
    ]
    reasons = [str(score.reason) for (score,) in scorer.score(others)]
    assert reasons[0] == "if-verifiable has no instruction none:such"
    assert "not one entry of kwargs" in reasons[1] and "nothing in column" in reasons[2]
    assert reasons[3].startswith("its check failed: TypeError") and scorer.counts[FAILED] == 1


def test_generated_tasks_by_their_own_scorer(tmp_path: Path) -> None:
    needs("reasoning_gym")
    import reasoning_gym

    entries = list(reasoning_gym.create_dataset("countdown", size=2, seed=3))
    rows = tmp_path / "rows.jsonl"
    document = [
        {
            "prompt": entry["question"],
            "responses": [f"I think <answer> {entry['answer']} </answer>", "<answer>1</answer>"],
            "answer": entry["answer"],
            "metadata": json.dumps(entry["metadata"]),
        }
        for entry in entries
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in document))
    score = {
        "output_dir": tmp_path / "out",
        "data": [{"path": str(rows)}],
        "scorer": {"type": "verifier", "task": "reasoning_gym", "workers": 1},
    }
    result = score_files(check_recipe(ScoreRecipe, score, "test"))
    lines = [json.loads(line) for line in result.scores.read_text().splitlines()]
    assert [line["score"] for line in lines][::2] == [1.0, 1.0]
    assert all(line["score"] < 0.5 for line in lines[1::2])
    check = checks.reasoning_check(r"it is (.*)")
    columns = {"prompt": "", "answer": entries[0]["answer"], "metadata": entries[0]["metadata"]}
    assert check({**columns, "response": f"it is {entries[0]['answer']}"}) == (1.0, None, {})
    del columns["metadata"]
    scorer = make_scorer(recipe(task="reasoning_gym"))
    reason = scorer.score([Group("p", ("a",), columns=columns)])[0][0].reason
    assert reason == "nothing in column metadata of its prompt"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "math", "measure": "partial_loose"}, "not with `task: math`"),
        ({"task": "math", "extract": "a"}, "not with `task: math`"),
        ({"task": "if", "answer_column": "a"}, "not with `task: if`"),
        ({"task": "reasoning_gym", "extract": "("}, "no regular expression"),
    ],
)
def test_keys_of_another_task_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**keys)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.evaluate.reward.check.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs math_verify: pip install 'palate\[tasks\]'"):
        check_scorers([recipe(task="math")])
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(ModelError, match=r"task: math needs math_verify"):
        checks.math_check()


def test_the_deadline_begins_when_work_begins() -> None:
    """With one process and four checks of 0.4 s none is late at a deadline of 1 s."""
    pool = ProcessPool("slow_check", "sleeper", workers=1, timeout_seconds=1.0)
    outcomes = pool.map([0.4] * 4)
    pool.close()
    assert [outcome.value for outcome in outcomes] == [0.4] * 4
