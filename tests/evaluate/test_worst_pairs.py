"""The pairs that are shown are the worst ones, once a prompt, each model in turn."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from PIL import Image

from palate.data.schema import ImageRef
from palate.evaluate.worst_pairs import FEWEST, IN_ALL, MOST, Judged, worst_pairs
from palate.store.examples import WrongPair
from palate.store.pictures import LEFT_OUT


def judged(number: int, correct: int = 1, prompt: object = None, **scores: list[float]) -> Judged:
    answers = [f"answer {i} of {number}" for i in range(len(next(iter(scores.values()))))]
    return Judged(
        id=f"p{number}",
        source="set",
        prompt=prompt or f"question {number}",  # type: ignore[arg-type]
        responses=answers,
        scores=scores,
        correct=correct,
    )


def test_the_worst_comparison_of_every_prompt_that_is_wrong_worst_first():
    draw = random.Random(3)
    prompts = [
        judged(
            n, correct=1 + n % 3, m=[draw.choice([math.nan, draw.gauss(0, 1)]) for _ in range(4)]
        )
        for n in range(60)
    ]
    worst = []
    for prompt in prompts:
        values = prompt.scores["m"]
        margins = [
            (values[i] - values[j], i, j)
            for i in range(prompt.correct)
            for j in range(prompt.correct, 4)
            if not math.isnan(values[i] - values[j])
        ]
        if margins and min(margins)[0] <= 0:
            margin, i, j = min(margins)
            worst.append((margin, prompt.id, prompt.responses[i], prompt.responses[j]))
    assert len(worst) > MOST
    lines = worst_pairs({"b": prompts}, ["m"])
    shown = [
        (
            line["scores"]["m"][0] - line["scores"]["m"][1],
            line["id"],
            line["chosen"]["text"],
            line["rejected"]["text"],
        )
        for line in lines
    ]
    assert shown == sorted(worst)[:MOST]


def test_what_is_right_or_has_no_score_is_no_error_and_equal_is_one():
    prompts = [
        judged(0, m=[1.0, 0.0]),
        judged(1, m=[math.nan, 0.0]),
        judged(2, m=[0.5, 0.5]),
        judged(3, m=[0.0, 0.25]),
    ]
    lines = worst_pairs({"b": prompts}, ["m"])
    assert [line["id"] for line in lines] == ["p3", "p2"]
    assert lines[1]["wrong"] == ["m"]
    assert worst_pairs({"b": prompts[:2]}, ["m"]) == []


def test_models_take_turns_and_no_prompt_comes_twice():
    prompts = [
        judged(0, a=[0.0, 9.0], b=[0.0, 9.0]),
        judged(1, a=[0.0, 8.0], b=[1.0, 0.0]),
        judged(2, a=[0.0, 7.0], b=[1.0, 0.0]),
        judged(3, a=[1.0, 0.0], b=[0.0, 1.0]),
    ]
    lines = worst_pairs({"b": prompts}, ["a", "b"])
    assert [line["id"] for line in lines] == ["p0", "p3", "p1", "p2"]
    assert [line["wrong"] for line in lines] == [["a", "b"], ["b"], ["a"], ["a"]]


@pytest.mark.parametrize("benchmarks", [1, 2, 5, 20])
def test_many_benchmarks_share_the_page(benchmarks):
    prompts = [judged(n, m=[0.0, float(n)]) for n in range(1, 30)]
    lines = worst_pairs({f"b{k}": prompts for k in range(benchmarks)}, ["m"])
    each = max(FEWEST, min(MOST, IN_ALL // benchmarks))
    assert [line["benchmark"] for line in lines] == [
        f"b{k}" for k in range(benchmarks) for _ in range(each)
    ]


def test_pictures_are_of_the_worst_pairs_of_every_benchmark_first(tmp_path: Path):
    Image.new("RGB", (50, 40), (200, 0, 0)).save(tmp_path / "a.png")
    image = ImageRef(path="a.png", root=tmp_path)
    asked = [
        {"role": "user", "content": [{"type": "image", "image": image}] * 6},
    ]
    asked[0]["content"] = [*asked[0]["content"], {"type": "text", "text": "what?"}]  # type: ignore[operator]
    prompts = [judged(n, prompt=asked, m=[0.0, float(n)]) for n in range(1, 20)]
    lines = worst_pairs({"x": prompts, "y": prompts}, ["m"])
    shown = [[picture["problem"] for picture in line["images"]].count(LEFT_OUT) for line in lines]
    # Four a pair and 48 in all: twelve pairs, six of each benchmark.
    assert shown == ([0] * 6 + [4] * 6) * 2
    assert {line["more_images"] for line in lines} == {2}
    assert lines[0]["prompt"]["text"] == "what?"


def test_lines_are_records_whatever_the_text():
    prompts = [judged(0, m=[0.0, 1.0], prompt="half \ud800 a pair")]
    prompts[0] = Judged(**(vars(prompts[0]) | {"responses": ["x" * 5000, "y" * 10]}))
    (line,) = worst_pairs({None: prompts}, ["m"])
    pair = WrongPair.of(line)
    assert pair.prompt.text == "half \ufffd a pair" and pair.benchmark is None
    assert len(pair.chosen.text) + pair.chosen.after == 5000 and len(pair.chosen.text) == 1200
