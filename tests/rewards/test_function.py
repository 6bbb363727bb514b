"""Python functions as scorers, with the arguments of TRL's `reward_funcs`."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from palate.data.schema import ImageRef
from palate.data.scorer import Group
from palate.errors import DataError, ModelError, RecipeError
from palate.evaluate.reward import score_files
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.score_cache import ScoreCache
from palate.recipes.load import check_recipe
from palate.recipes.scorers import FunctionScorer as Recipe
from palate.recipes.serving import ScoreRecipe
from palate.rewards import FunctionScorer, make_scorer
from palate.rewards.columns import columns_read
from palate.rewards.function import NONE_GIVEN
from palate.rewards.identity import identities, key_of
from palate.rewards.isolated import CRASHED, TIMED_OUT


def kept_call(calls: list[dict[str, Any]]) -> Any:
    def length(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        calls.append(
            {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
            | columns
        )
        return [float(len(str(c))) for c in completions]

    return length


def user(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_it_gets_what_trl_gives_its_functions() -> None:
    """One entry a completion in every list, as in GRPOTrainer._calculate_rewards."""
    calls: list[dict[str, Any]] = []
    scorer = FunctionScorer(kept_call(calls))
    groups = [
        Group("p", ("a", "bb"), columns={"answer": "1", "prompt": "not passed on"}),
        Group("q", ("ccc",), columns={"answer": "2", "more": 5}, response_ids=((7, 8),)),
    ]
    scored = scorer.score(groups)
    assert [[s.value for s in scores] for scores in scored] == [[1.0, 2.0], [3.0]]
    (call,) = calls
    assert call.pop("log_extra") and call.pop("log_metric")
    assert call == {
        "prompts": ["p", "p", "q"],
        "completions": ["a", "bb", "ccc"],
        "completion_ids": [None, None, [7, 8]],
        "answer": ["1", "1", "2"],
        "more": [None, None, 5],
    }
    assert scorer.name == "length"


def test_completions_have_the_form_of_their_prompts() -> None:
    calls: list[dict[str, Any]] = []
    scorer = FunctionScorer(kept_call(calls))
    said = [{"role": "assistant", "content": "b"}]
    groups = [Group(user("p"), ("a", said)), Group("q", ("c", said))]
    (first, _), (second, _) = scorer.score(groups)
    texts, chats = calls
    assert texts["completions"] == ["c", "b"] and texts["prompts"] == ["q", "q"]
    assert chats["completions"] == [[{"role": "assistant", "content": "a"}], said]
    assert second.value == 1.0 and first.value and first.value > 1.0


def test_images_reach_it_as_images(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    part = {"type": "image", "image": ImageRef(path="a.png", root=tmp_path)}
    missing = {"type": "image", "image": ImageRef(path="b.png", root=tmp_path)}
    asked = [user([part, {"type": "text", "text": "what?"}]), user([missing])]
    scorer = FunctionScorer(kept_call(calls))
    (seen,), (unseen,) = scorer.score([Group(p, ("a",)) for p in asked])
    (image, text) = calls[0]["prompts"][0][0]["content"]
    assert image["image"].size == (3, 2) and text == {"type": "text", "text": "what?"}
    assert seen.value is not None and unseen.reason == "no such file"


async def slow(completions: list[str], **_: Any) -> list[float | None]:
    await asyncio.sleep(0.01)
    return [None if c == "?" else len(c) for c in completions]


def test_async_functions_and_none() -> None:
    scorer = FunctionScorer(slow)
    ((a, b),) = scorer.score([Group("p", ("aa", "?"))])
    assert a.value == 2.0 and (b.value, b.reason) == (None, NONE_GIVEN)

    async def inside() -> Any:
        return scorer.score([Group("p", ("aaa",))])

    assert asyncio.run(inside())[0][0].value == 3.0


def test_what_it_logs_is_in_the_scores() -> None:
    def logs(completions: Any, log_extra: Any, log_metric: Any, **_: Any) -> Any:
        log_extra("words", [len(c.split()) for c in completions])
        log_extra("answer", ["x", None])
        log_metric("rate", 0.5)
        return [1, True]

    ((first, second),) = FunctionScorer(logs).score([Group("p", ("a b", "c"))])
    assert {n: s.value for n, s in first.parts.items()} == {"words": 2.0, "rate": 0.5}
    assert first.text == "answer: x" and second.text is None and second.value == 1.0


def fails(completions: Any, **_: Any) -> Any:
    raise KeyError("answer")


def test_faults_are_one_line_that_names_file_and_function() -> None:
    def told(function: Any, *responses: str, **columns: Any) -> str:
        with pytest.raises((ModelError, DataError)) as caught:
            FunctionScorer(function).score([Group("p", responses or ("a",), columns=columns)])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "test_function.py:fails: KeyError: 'answer' (line" in told(fails)
    assert "gives 1 rewards for 2 completions" in told(lambda **_: [1.0], "a", "b")
    assert "gives 'x' for completion 1: no number" in told(lambda **_: ["x"])
    assert "take **kwargs" in told(lambda prompts, completions: [1.0])
    assert "has the name of an argument" in told(fails, prompts=[1])
    with pytest.raises(ModelError, match="requires `trainer_state`, which there is not"):
        FunctionScorer(lambda completions, trainer_state, **_: [])
    ((nan, inf),) = FunctionScorer(lambda **_: [math.nan, math.inf]).score([Group("p", ("a", "b"))])
    assert nan.value is None and inf.value is None and nan.reason


SOURCE = """
import os, time, subprocess, sys
from dataclasses import dataclass
from helper import twice

@dataclass
class Unused:
    x: int = 0

def right(prompts, completions, answer, **kwargs):
    print("not part of any answer")
    return [float(twice(c) == 2 * a) for c, a in zip(completions, answer)]

def dangerous(completions, **kwargs):
    (completion,) = completions
    if completion == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        while True:
            pass
    if completion == "crash":
        os._exit(3)
    if completion == "memory":
        return [float(len(bytearray(2 ** 33)))]
    if completion == "error":
        raise ValueError("odd")
    return [float(os.getpid())]
"""


def write(folder: Path) -> Path:
    (folder / "helper.py").write_text("def twice(text):\n    return 2 * text\n")
    file = folder / "rewards.py"
    file.write_text(SOURCE)
    return file


def test_a_file_that_the_recipe_names(tmp_path: Path) -> None:
    file = write(tmp_path)
    recipe = Recipe(path=f"{file}:right")
    assert columns_read(recipe) == ("answer",) and identities(recipe) == {}
    scorer = make_scorer(recipe)
    group = Group("p", ("a", "b"), columns={"answer": "a"})
    assert [s.value for s in scorer.score([group])[0]] == [1.0, 0.0]
    assert scorer.name == "right"
    key = key_of(recipe)
    file.write_text(SOURCE.replace("2 * a)", "2 * a + 1)"))
    assert key_of(recipe) != key
    for path, message in ((f"{file}:none", "no function none"), (f"{file}x.py:f", "no file")):
        with pytest.raises(ModelError, match=message):
            make_scorer(Recipe(path=path))
    file.write_text("1 / 0")
    with pytest.raises(ModelError, match=r"rewards.py:right: ZeroDivisionError.*line 1 of rew"):
        make_scorer(recipe)
    with pytest.raises(ModelError, match="no file"):
        check_scorers([Recipe(path="none.py:f")])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "rewards:f"}, "write a Python file"),
        ({"path": "rewards.py:"}, "write a Python file"),
        ({"path": "r.py:f", "timeout_seconds": 1.0}, "only with `isolated`"),
        ({"path": "r.py:f", "workers": 1}, "only with `isolated`"),
    ],
)
def test_recipes_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    document = {"output_dir": "o", "data": [{"path": "d"}], "scorer": {"type": "function"} | keys}
    with pytest.raises(RecipeError, match=message):
        check_recipe(ScoreRecipe, document, "test")


def test_palate_score_gives_it_the_columns_of_its_rows(tmp_path: Path) -> None:
    file = write(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", "answer": "b"}))
    scorer = {"type": "function", "path": f"{file}:right"}
    document = {"output_dir": tmp_path / "out", "data": [{"path": str(rows)}], "scorer": scorer}
    result = score_files(check_recipe(ScoreRecipe, document, "test"))
    lines = [json.loads(line) for line in result.scores.read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.0, 1.0]


def test_scores_are_kept_by_the_columns_that_are_read(tmp_path: Path) -> None:
    file = write(tmp_path)
    scorer = ScoreCache().scorer(Recipe(path=f"{file}:right"))
    groups = [Group("p", ("a",), columns={"answer": a, "unread": object()}) for a in ("a", "b")]
    assert [scores[0].value for scores in scorer.score(groups)] == [1.0, 0.0]


def test_what_hangs_or_crashes_in_a_process_of_its_own_takes_nobody_along(tmp_path: Path) -> None:
    path = f"{write(tmp_path)}:dangerous"
    scorer = make_scorer(Recipe(path=path, isolated=True, timeout_seconds=1.0, workers=1))
    began = time.monotonic()
    ((one, hang, crash, two),) = scorer.score([Group("p", ("a", "hang", "crash", "b"))])
    assert time.monotonic() - began < 20
    assert one.value and two.value and one.value != two.value != os.getpid()
    assert (hang.value, hang.reason) == (None, "its check took longer than 1 s")
    assert (crash.value, crash.reason) == (None, "its process ended (exit status 3)")
    assert scorer.counts == {TIMED_OUT: 1, CRASHED: 1}
    with pytest.raises(ModelError, match=r"rewards.py:dangerous: ValueError: odd \(line"):
        scorer.score([Group("p", ("error",))])
    # The process that failed goes on.
    ((again,),) = scorer.score([Group("p", ("c",))])
    assert again.value == two.value


def test_memory_of_a_process_is_limited(tmp_path: Path) -> None:
    path = f"{write(tmp_path)}:dangerous"
    scorer = make_scorer(Recipe(path=path, isolated=True, memory_mb=4096, workers=1))
    with pytest.raises(ModelError, match="MemoryError"):
        scorer.score([Group("p", ("memory",))])


def test_a_file_that_does_not_load_in_its_process(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import nothing_of_that_name")
    scorer = make_scorer(Recipe(path=f"{file}:f", isolated=True))
    with pytest.raises(ModelError, match=r"bad.py:f: ModuleNotFoundError"):
        scorer.score([Group("p", ("a",))])
