"""What images do in a set of pairs, counted again the long way."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import pytest

from curating import pair
from palate.data.audit import Audit, warnings
from palate.data.curation import Block
from palate.data.schema import ImageRef, Preference


def drawn(seed: int, n: int = 300, source: str = "s") -> list[Preference]:
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        images = [ImageRef(path=f"{min(int(draw.expovariate(0.2)), 30)}.png")] * (i % 7 != 0)
        question = draw.choice(["How many?", "Which colour?", f"What is {draw.randrange(40)}?"])
        answers = draw.sample(["one", "two", "red", "blue", f"{draw.randrange(9)} of them"], 2)
        rows.append(pair(question, *answers, images=images, source=source, tie=i % 11 == 0))
    return rows


def result(rows: list[Preference], size: int = 300) -> dict[str, Any]:
    audits = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        audit = Audit(0)
        audit.add(Block(first, list(range(first, first + len(part))), part), source="s")
        audits.append(audit)
    for audit in audits[1:]:
        audits[0].merge(audit)
    return audits[0].result()


def image_of(row: Preference) -> str | None:
    return str(row.images[0].path) if row.images else None


def question_of(row: Preference) -> str:
    return " ".join(
        part["text"]
        for turn in row.prompt
        for part in turn["content"]  # type: ignore[index]
        if part["type"] == "text"  # type: ignore[index]
    )


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_plain_counting(seed: int) -> None:
    rows = drawn(seed)
    images = result(rows)["overall"]["images"]
    times = Counter(image for row in rows if (image := image_of(row)) is not None)
    assert (images["seen"], images["distinct"]) == (times.total(), len(times))
    assert images["repeated"] == sum(n > 1 for n in times.values())
    assert images["most"] == max(times.values())

    prompts = defaultdict(set)
    for row in rows:
        if row.images:
            prompts[image_of(row)].add(question_of(row))
    several = sum(len(asked) > 1 for asked in prompts.values())
    assert images["prompts"]["several"] == several
    assert images["prompts"]["share"] == pytest.approx(several / len(prompts), abs=1e-6)
    assert images["prompts"]["most"] == max(map(len, prompts.values()))

    seen = [row for row in rows if row.images and not row.tie]
    of_question = defaultdict(list)
    for row in seen:
        of_question[question_of(row)].append(row)
    asked = {q: r for q, r in of_question.items() if len(set(map(image_of, r))) > 1}
    same = decided = right = 0
    for of_one in asked.values():
        for row in of_one:
            others = [other for other in of_one if image_of(other) != image_of(row)]
            chosen, rejected = (response.content for response in row.responses)

            def prior(answer: Any, others: list[Preference] = others) -> int:
                wins = sum(other.chosen.content == answer for other in others)
                return wins - sum(other.rejected.content == answer for other in others)

            same += any(other.chosen.content == chosen for other in others)
            decided += prior(chosen) != prior(rejected)
            right += prior(chosen) > prior(rejected)
    blind = images["blind"]
    assert 0 < right < decided < len(seen)
    assert blind["pairs"] == len(seen) and blind["questions"] == len(asked)
    assert blind["pairs_of_questions"] == sum(map(len, asked.values()))
    assert (blind["same"], blind["decided"], blind["right"]) == (same, decided, right)


def test_it_does_not_depend_on_how_pairs_are_cut() -> None:
    rows = drawn(5)
    assert result(rows)["overall"]["images"] == result(rows, 37)["overall"]["images"]


def test_answers_that_need_no_look_and_a_placeholder_are_named() -> None:
    rows = [
        pair(f"Question {i % 50}?", "yes", "no", images=[ImageRef(path=f"{i}.png")])
        for i in range(200)
    ]
    found = result(rows)
    assert found["overall"]["images"]["blind"]["right_share"] == 1.0
    assert any("a model that sees nothing gets that far" in text for text in warnings(found))
    one = [pair(f"{i}?", f"a{i}", "b", images=[ImageRef(path="grey.png")]) for i in range(40)]
    assert any("ne image is there 40 times" in text for text in warnings(result(one)))
    looked = result(drawn(1))
    assert not [text for text in warnings(looked) if "sees nothing" in text]


def test_sources_that_share_images() -> None:
    audit = Audit(0)
    sets = {"a": range(0, 10), "b": range(6, 20), "c": range(30, 33)}
    first = 0
    for name, numbers in sets.items():
        rows = [
            pair(f"{name} {i}?", "x", "y", images=[ImageRef(path="", digest=f"{i:064x}")])
            for i in numbers
        ]
        audit.add(Block(first, list(range(first, first + len(rows))), rows), source=name)
        first += len(rows)
    across = audit.result()["across"]
    assert across["shared_images"] == [{"a": "a", "b": "b", "images": 4}]
    assert across["shared_prompts"] == []
    assert any("4 images in common" in text for text in warnings(audit.result()))
