"""Generated tasks: right answers, no repetition, the same each time."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from palate.data.prompts import PolicyPrompt
from palate.data.prompts.tasks import TASKS
from palate.errors import RecipeError
from prompting import dropped, read


def generated(task: str, size: int = 50, **more: Any) -> dict[str, Any]:
    return {"type": "generated", "task": task, "size": size, "as_chat": False, **more}


def solved(task: str, question: str) -> str:
    """The answer by another way than the one that made it."""
    head, _, shown = question.rpartition(": ")
    letters = shown.split()
    if task == "sort_letters":
        ordered = []
        while letters:
            ordered.append(letters.pop(letters.index(min(letters))))
        return " ".join(ordered)
    if task == "reverse_letters":
        return shown[::-1]
    if task == "count_letters":
        match = re.fullmatch(r"Count how often (.) is among .* number alone", head)
        assert match is not None
        return str(len(re.findall(match[1], shown)))
    if task == "replace_letters":
        match = re.match(r"Copy these letters with (.) in place of every (.) and", head)
        assert match is not None and match[2] in letters and match[1] not in letters
        return re.sub(match[2], match[1], shown)
    total = 0
    for number in re.findall(r"\d+", shown):
        total += int(number)
    return str(total)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_answers_are_right(task: str) -> None:
    for prompt in read(generated(task)).train:
        assert isinstance(prompt.content, str)
        assert prompt.columns["answer"] == solved(task, prompt.content)
        assert prompt.columns["answer"] and prompt.columns["task"] == task


def test_a_larger_size_begins_with_a_smaller_one() -> None:
    def texts(**more: Any) -> list[Any]:
        return [p.content for p in read(generated("reverse_letters", **more)).train]

    assert texts(size=50)[:20] == texts(size=20)
    assert texts(size=20, seed=5) != texts(size=20, seed=6)


def test_training_and_held_out_tasks_are_drawn_apart() -> None:
    source = generated("add_numbers", parameters={"max_number": 9})
    prompts = read(source, eval=[source])
    held = {p.content for p in prompts.eval}
    assert len(held) == 50 and not held & {p.content for p in prompts.train}
    assert 0 < dropped(prompts)["also a held-out prompt"] < 50
    assert {p.source for p in prompts.eval} == {"add_numbers"}
    ids = {prompt.id for prompt in read(source).train}
    assert ids == {f"add_numbers:{i + 1}" for i in range(50)}
    chats = read({**source, "as_chat": True}, eval_fraction=0.2)
    assert (len(chats.train), len(chats.eval)) == (40, 10)
    assert chats.train[0].content[0]["role"] == "user"  # type: ignore[index]


def test_parameters_make_tasks_longer() -> None:
    def mean(**parameters: int) -> float:
        prompts = read(generated("sort_letters", parameters=parameters)).train
        return sum(len(str(p.columns["answer"]).split()) for p in prompts) / len(prompts)

    assert mean(min_letters=7, max_letters=7) == 7
    assert mean() < 5


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"task": "sort_leters"}, "no task 'sort_leters'; did you mean sort_letters?"),
        ({"parameters": {"letters": 3}}, "`parameters.letters`: sort_letters has none"),
        ({"parameters": {"max_letters": 3.5}}, "expected a whole number, got 3.5"),
        ({"parameters": {"max_letters": 2}}, "min_letters is above max_letters"),
        ({"parameters": {"max_letters": 30}}, "max_letters is above 26"),
        (
            {"size": 1000, "parameters": {"min_letters": 1, "max_letters": 1}},
            "has given 26 different tasks of these parameters, not 1000",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line(more: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read({**generated("sort_letters"), **more})
    assert line in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_reasoning_gym_tasks_keep_what_their_verifier_reads() -> None:
    gym = pytest.importorskip("reasoning_gym")
    source = generated(
        "letter_counting", size=20, library="reasoning_gym", parameters={"max_words": 6}, seed=3
    )
    prompts = read(source).train
    verify = gym.get_score_answer_fn("letter_counting")
    made = gym.create_dataset("letter_counting", seed=3, size=20, max_words=6)
    assert [p.content for p in prompts][:5] == [made[i]["question"] for i in range(5)]
    for prompt in prompts:
        entry = prompt.columns["entry"]
        assert entry["question"] == prompt.content
        assert verify(prompt.columns["answer"], entry) == 1.0
        assert verify("no number", entry) < 1.0
    with pytest.raises(RecipeError, match="did you mean letter_counting"):
        read({**source, "task": "leter_counting"})
    with pytest.raises(RecipeError, match=r"reasoning-gym refuses: .*max_words must be >="):
        read({**source, "parameters": {"max_words": 1}})
    with pytest.raises(RecipeError, match=r"reasoning-gym refuses: .*unexpected keyword"):
        read({**source, "parameters": {"max_word": 9}})


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(RecipeError, match=r"pip install 'palate\[tasks\]'"):
        read(generated("letter_counting", library="reasoning_gym"))


def test_two_sources_of_one_task_have_two_names() -> None:
    easy = generated("reverse_letters", size=10)
    hard = generated("reverse_letters", size=10, parameters={"min_letters": 8, "max_letters": 9})
    prompts = read(easy, hard)
    assert prompts.report["train"]["by_source"] == {"reverse_letters": 10, "reverse_letters 2": 10}

    def letters(prompt: PolicyPrompt) -> int:
        return len(prompt.columns["answer"])

    assert max(map(letters, prompts.train[:10])) < min(map(letters, prompts.train[10:]))
