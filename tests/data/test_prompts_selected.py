"""Which prompts a scorer or their likeness to given ones takes."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from palate.data.prompts.similar import nearest
from palate.errors import PalateError, RecipeError
from palate.recipes.load import check_recipe
from palate.recipes.prompts import PromptsRecipe
from prompting import dropped, read, write
from scored import Numbers


class Digits(Numbers):
    """The number of digits of a response; none is no score."""

    name = "digits"
    why = "no digit"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def numbers(self, prompts: list[Any], responses: list[Any]) -> list[float]:
        self.asked += zip(prompts, responses, strict=True)
        texts = [r if isinstance(r, str) else r[0]["content"] for r in responses]
        counts = [sum(c.isdigit() for c in text) for text in texts]
        return [count or math.nan for count in counts]


TEXTS = ["none", "1", "22", "333", "4444", "22 again"]


def taken(tmp_path: Path, select: dict[str, Any], scorer: Any = None, **more: Any) -> Any:
    path = write(tmp_path / "p.jsonl", [{"prompt": text} for text in TEXTS])
    source = {"path": path, "select": select, **more}
    prompts = read(source, make_scorer=None if scorer is None else lambda recipe: scorer)
    return prompts, [p.content for p in prompts.train]


def test_the_best_by_a_scorer(tmp_path: Path) -> None:
    scorer = Digits()
    prompts, texts = taken(tmp_path, {"scorer": {"type": "lexicon"}, "keep": 2}, scorer)
    assert texts == ["333", "4444"]
    assert scorer.asked[1] == ("", "1")
    assert dropped(prompts) == {"no score: no digit": 1}
    (entry,) = prompts.report["sources"]
    assert entry["not_selected"] == 3
    assert entry["select"] == {
        "by": "digits",
        "scored": 5,
        "without_score": 1,
        "taken": 2,
        "scores": {"min": 1.0, "mean": 2.4, "max": 4.0},
        "scores_taken": {"min": 3.0, "mean": 3.5, "max": 4.0},
    }
    # Of equal scores the first; a fraction is of those with a score.
    assert taken(tmp_path, {"scorer": {"type": "lexicon"}, "keep": 3}, Digits())[1] == [
        *("22", "333", "4444")
    ]
    assert taken(tmp_path, {"scorer": {"type": "lexicon"}, "keep": 0.4}, Digits())[1] == [
        *("333", "4444")
    ]
    assert taken(tmp_path, {"scorer": {"type": "lexicon"}, "above": 2}, Digits())[1] == [
        *("333", "4444")
    ]
    assert len(taken(tmp_path, {"scorer": {"type": "lexicon"}, "keep": 99}, Digits())[1]) == 5


def test_prompts_are_scored_as_they_are_in_the_data_to_a_question(tmp_path: Path) -> None:
    scorer = Digits()
    select = {"scorer": {"type": "lexicon"}, "keep": 1, "question": "Is it about numbers?"}
    _, texts = taken(tmp_path, select, scorer, prefix="Q ")
    assert texts == ["Q 4444"]
    asked, shown = scorer.asked[1]
    assert asked == [{"role": "user", "content": "Is it about numbers?"}]
    assert shown == [{"role": "assistant", "content": "1"}]


def test_what_cannot_select(tmp_path: Path) -> None:
    with pytest.raises(PalateError, match=r"`select\.scorer` of type lexicon needs a model"):
        taken(tmp_path, {"scorer": {"type": "lexicon"}, "keep": 2})
    judge = {"type": "pairwise", "chat": {"type": "local", "path": "x"}}
    value = {"train": [{"path": "a", "select": {"scorer": judge, "keep": 2}}]}
    with pytest.raises(RecipeError, match=r"train\.0\.select\.scorer`: compares the responses"):
        check_recipe(PromptsRecipe, value, "recipe")


def test_a_scorer_of_the_library_selects(tmp_path: Path) -> None:
    from palate.rewards import make_scorer

    path = write(tmp_path / "p.jsonl", [{"prompt": text} for text in TEXTS])
    select = {"scorer": {"type": "rule", "pattern": r"\d\d"}, "above": 0.5}
    prompts = read({"path": path, "select": select}, make_scorer=make_scorer)
    assert [p.content for p in prompts.train] == ["22", "333", "4444", "22 again"]


def test_the_most_alike(tmp_path: Path) -> None:
    sums = ["What is 3 plus 4?", "What is 12 plus 30 plus 5?"]
    others = ["Write a poem about rain.", "Who was the first king of Spain?"]
    rows = [{"prompt": text} for text in [others[0], *sums, others[1]]]
    path = write(tmp_path / "p.jsonl", rows)
    seeds = write(tmp_path / "seeds.jsonl", [{"prompt": "WHAT is 7  plus 8?", "note": "any"}])
    prompts = read({"path": path, "select": {"like": {"path": seeds}, "keep": 2}})
    assert [p.content for p in prompts.train] == sums
    account = prompts.report["sources"][0]["select"]
    assert account["by"] == f"like {seeds}"
    assert account["scores"]["min"] < account["scores_taken"]["min"]


def shingles(text: str) -> set[str]:
    text = " ".join(text.split()).casefold()
    return {text[i : i + 5] for i in range(max(len(text) - 4, min(1, len(text))))}


def test_nearness_is_the_largest_jaccard_index() -> None:
    draw = random.Random(0)

    def text() -> str:
        return "".join(draw.choice("abA b") for _ in range(draw.randrange(30)))

    texts, given = [text() for _ in range(60)], [text() for _ in range(9)]
    expected = [
        max(
            (len(shingles(a) & shingles(b)) / len(union) if (union := shingles(a) | shingles(b))
             else 0.0)
            for b in given
        )
        for a in texts
    ]  # fmt: skip
    assert nearest(texts, given).tolist() == pytest.approx(expected, abs=1e-12)
    assert nearest(texts, []).tolist() == [0.0] * 60
    assert nearest([], given).tolist() == []
