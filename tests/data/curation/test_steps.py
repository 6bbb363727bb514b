"""Each step's rule, on pairs that are just on either side of it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter, ValidationError

from curating import clean, curate, pair, sentence
from palate.data.curation.bands import bands_for
from palate.data.curation.loss_filter import preference_loss
from palate.data.curation.shingles import of_characters, of_words
from palate.data.curation.text import as_text, normalised, words_of
from palate.data.schema import ImageRef, Response
from palate.data.scorer import Score, Traits
from palate.errors import DataError, PalateError, RecipeError
from palate.recipes.curation import Step


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def said(text: str) -> Any:
    return [{"role": "assistant", "content": text}]


class Fixed:
    """Scores pairs as it is told."""

    name = "fixed"
    traits = Traits()
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self, pairs: list[tuple[float, float]]) -> None:
        self.pairs = iter(pairs)

    def score(self, groups: Any) -> list[list[Score]]:
        return [[Score.of(number) for number in next(self.pairs)] for _ in groups]


def test_one_text_of_chats() -> None:
    assert as_text("as it is ") == as_text(user("as it is ")) == "as it is "
    assert as_text([*user("a"), *said("b"), *user("c")]) == "user: a\n\nassistant: b\n\nuser: c"


def test_normal_forms() -> None:
    assert normalised(" A\n b ", "none") == " A\n b "
    assert normalised(" A\u00a0\n b ", "whitespace") == "A b"
    assert normalised("e\u0301", "whitespace") == "\u00e9"
    assert normalised("Don\u2019t PANIC, 42\uff01", "words") == "don t panic 42"
    assert words_of("\u65e5\u672c go_now") == ["\u65e5", "\u672c", "go", "now"]


def test_exact_duplicates_know_images_ties_and_chats() -> None:
    rows = [
        pair("q", "a", "b"),
        pair(user("q"), said("a"), said("b")),
        pair("q", "a", "b", images=[ImageRef(digest="0" * 64)]),
        pair("q", "a", "b", tie=True),
        pair("q", "b", "a", tie=True),
        pair("q", "b", "a"),
        pair("Q", "a", "b"),
    ]
    assert set(curate(rows, {"step": "exact_duplicates"}).dropped) == {1, 4}
    loose = curate(rows, {"step": "exact_duplicates", "normalise": "words"})
    assert set(loose.dropped) == {1, 4, 6}
    by_prompt = curate(rows, {"step": "exact_duplicates", "of": "prompt"})
    assert set(by_prompt.dropped) == {1, 3, 4, 5}


def test_the_best_margin_stays() -> None:
    rows = [pair(chosen=str(i), margin=m) for i, m in enumerate([None, 0.5, 2.0, 2.0, -1.0])]
    found = curate(rows, {"step": "exact_duplicates", "of": "prompt", "keep": "best_margin"})
    assert set(found.dropped) == {0, 1, 3, 4}


def test_majority_of_contradictions() -> None:
    rows = [
        *(pair("q", "a", "b"), pair("q", "b", "a"), pair("q", "a", "b")),
        *(pair("r", "a", "b"), pair("r", "b", "a")),
        pair("r", "a", "b", tie=True),
        pair("s", "a", "a"),
    ]
    found = curate(rows, {"step": "contradictions", "keep": "majority"})
    assert found.dropped == {
        1: "more pairs have the opposite label",
        3: "as many pairs have the opposite label",
        4: "as many pairs have the opposite label",
    }
    assert set(curate(rows, {"step": "contradictions"}).dropped) == {0, 1, 2, 3, 4}


def test_length() -> None:
    rows = [pair("abc", "a b", "a"), pair("abcd", "a b", "a"), pair("abc", "a", "a")]
    limits = {"prompt": {"max": 3}, "chosen": {"min": 2}}
    assert curate(rows, {"step": "length", **limits}).dropped == {
        1: "prompt over 3 characters",
        2: "chosen under 2 characters",
    }
    words = curate(rows, {"step": "length", "unit": "words", "chosen": {"min": 2}})
    assert words.dropped == {2: "chosen under 2 words"}


def test_margin() -> None:
    rows = [pair(margin=m) for m in (None, 0.1, 0.5, 3.0)]
    found = curate(rows, {"step": "margin", "min": 0.5, "max": 2})
    assert found.dropped == {1: "margin under 0.5", 3: "margin over 2"}
    assert found.account == {"without_margin": 1}
    assert curate(rows, {"step": "margin", "missing": "drop"}).dropped == {0: "no margin"}


def test_empty() -> None:
    rows = [
        pair(" \n", "a", "b"),
        pair("q", "", "b"),
        pair("q", "a", "\u00a0"),
        pair("q", "a", "a"),
        pair("q", "a", "a "),
        pair("", "a", "b", images=[ImageRef(path="x.png")]),
    ]
    assert curate(rows, {"step": "empty"}).dropped == {
        0: "empty prompt",
        1: "empty chosen",
        2: "empty rejected",
        3: "equal responses",
    }
    some = {"step": "empty", "of": ["chosen"], "equal_responses": False}
    assert set(curate(rows, some).dropped) == {1}


def test_refusals() -> None:
    no = "I\u2019m sorry, but I can\u2019t  help with that."
    late = f"{'Well. ' * 40}{no}"
    rows = [
        pair("q", no, "Yes."),
        pair("q", "Yes.", no),
        pair("q", no, no),
        pair("q", late, "Yes."),
    ]
    of = {
        "chosen": {0, 2},
        "rejected": {1, 2},
        "either": {0, 1, 2},
        "both": {2},
    }
    for side, places in of.items():
        assert set(curate(rows, {"step": "refusals", "of": side}).dropped) == places
    anywhere = curate(rows, {"step": "refusals", "within_characters": None})
    assert set(anywhere.dropped) == {0, 1, 2, 3}
    assert anywhere.account["refusals"] == {"chosen": 2, "rejected": 1, "both": 1}
    own = {"step": "refusals", "language": None, "phrases": ["Je ne peux pas"]}
    assert set(curate([pair("q", "  je ne  peux pas.", "b")], own).dropped) == {0}
    assert not curate(rows, own).dropped
    # Someone who was sorry, and a story about it.
    fine = pair("q", "I'm sorry for your loss.", "He said he was unable to come.")
    assert not curate([fine], {"step": "refusals"}).dropped


def test_templates() -> None:
    rows = [
        pair("q", "So.<|im_end|>", "b"),
        pair("q", "a", "So.\n\nHuman: And then?\n\nAssistant: Then"),
        pair("q", "a", "[INST] go [/INST]"),
        pair("q", "a", "b</s>"),
        # Dialogue in a text prompt, struck-out HTML, and words that only look alike.
        pair("\n\nHuman: Why?\n\nAssistant:", "a", "b"),
        pair("q", "<p><s>old</s> new</p>", "Is the user: happy? The Human: a history."),
        pair("q", "Q: why?\nA: so.", "Human: hello"),
    ]
    assert curate(rows, {"step": "templates"}).dropped == {
        0: "special token in chosen",
        1: "role marker in rejected",
        2: "special token in rejected",
        3: "special token in rejected",
    }
    tokens = {"step": "templates", "role_markers": False, "phrases": ["<p>"]}
    found = curate(rows, tokens)
    assert set(found.dropped) == {0, 2, 3, 5}
    assert found.account["found"] == {"<|im_end|>": 1, "[INST]": 1, "</s>": 1, "<p>": 1}


def test_language() -> None:
    english = "The weather is lovely today and we are going for a walk."
    german = "Das Wetter ist heute sehr schön und wir gehen spazieren."
    rows = [
        pair(english, english, english),
        pair(english, english, german),
        pair(german, english, english),
        pair([*user(german), *said(german), *user(english)], said(english), said(english)),
        pair("Oui ?", "Non.", "Si !"),
    ]
    found = curate(rows, {"step": "language", "keep": ["en"]})
    assert found.dropped == {1: "rejected in another language", 2: "prompt in another language"}
    assert found.account["languages"] == {"en": 8, "de": 2}
    assert found.account["too_short"] == 3
    both = curate(rows, {"step": "language", "keep": ["en", "de"], "min_confidence": 0.9})
    assert not both.dropped
    with pytest.raises(RecipeError, match="no language english"):
        curate(rows, {"step": "language", "keep": ["english"]})


def test_length_balance_reaches_the_share_in_every_group() -> None:
    rows = [pair(f"{i}", "long enough", "short") for i in range(80)]
    rows += [pair(f"s{i}", "short", "long enough") for i in range(20)]
    rows += [pair(f"w{i}", "x" * 500, "y") for i in range(30)]
    rows += [pair(f"v{i}", "x", "y" * 500) for i in range(40)]
    rows += [pair(f"e{i}", "same", "size") for i in range(5)]
    rows += [pair(f"t{i}", "long enough", "short", tie=True) for i in range(5)]
    for share, kept in ((0.5, 20), (0.6, 30), (0.75, 60)):
        found = curate(rows, {"step": "length_balance", "max_share": share})
        assert len(found.dropped) == 80 - kept
        assert set(found.dropped) <= set(range(80))
        first = found.account["groups"][0]
        assert (first["longer_chosen"], first["shorter_chosen"]) == (80, 20)
        assert first["longer_chosen_kept"] == kept
    # Nothing to balance against: all longer-chosen ones go.
    assert len(curate(rows[:80], {"step": "length_balance"}).dropped) == 80


PAIRS = [(1.0, 0.0), (0.0, 1.0), (0.05, 0.0), (0.0, 0.05), (0.0, 0.0), (math.nan, 0.0), (0.0, 9.0)]


@pytest.mark.parametrize(
    ("keep", "within", "kept"),
    [
        ("right", None, {0, 2, 6}),
        ("wrong", None, {1, 3, 4, 6}),
        ("unsure", 0.1, {2, 3, 4, 6}),
        ("wrong_or_unsure", 0.1, {1, 2, 3, 4, 6}),
    ],
)
def test_score_filter(keep: str, within: float | None, kept: set[int]) -> None:
    rows = [pair(str(i), tie=i == 6) for i in range(len(PAIRS))]
    recipe = {"step": "score_filter", "scores": {"type": "lexicon"}, "keep": keep}
    recipe |= {} if within is None else {"within": within}
    found = curate(rows, recipe, make_scorer=lambda _: Fixed(PAIRS))
    assert set(range(len(PAIRS))) - set(found.dropped) == kept
    assert found.dropped[5] == "no score"
    counts = {"right": 2, "wrong": 3, "ties": 1, "without_score": 1}
    assert found.account == {"scores": "fixed", "pairs": counts}
    stays = curate(rows, recipe | {"missing": "keep"}, make_scorer=lambda _: Fixed(PAIRS))
    assert 5 not in stays.dropped


def test_loss_filter_is_the_logistic_loss() -> None:
    assert preference_loss(0.0) == pytest.approx(math.log(2))
    assert preference_loss(1.5) == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert preference_loss(-800.0) == pytest.approx(800.0)
    rows = [pair(str(i)) for i in range(3)]
    recipe = {"step": "loss_filter", "scores": {"type": "lexicon"}, "min": 0.1, "max": 2.0}
    scores = [(5.0, 0.0), (0.0, 0.0), (0.0, 4.0)]
    found = curate(rows, recipe, make_scorer=lambda _: Fixed(scores))
    assert found.dropped == {0: "loss under 0.1", 2: "loss over 2"}


def test_scores_need_something_that_scores() -> None:
    recipe = {"step": "score_filter", "scores": {"type": "lexicon"}, "keep": "wrong"}
    with pytest.raises(PalateError, match="type lexicon need a model or reward"):
        curate([pair()], recipe)
    columns = {"type": "columns", "chosen": "a", "rejected": "b"}
    rows = [pair(extra={"a": 1, "b": 2.0}), pair(extra={"a": 1}), pair()]
    found = curate(rows, recipe | {"scores": columns})
    assert set(found.dropped) == {1, 2}
    with pytest.raises(DataError, match="field 'a': holds no number: str"):
        curate([pair(extra={"a": "1", "b": 2})], recipe | {"scores": columns})


def test_scores_of_the_responses_themselves() -> None:
    rated = [(2.0, 1.0, 0.1, 0.9), (1.0, 2.0, 0.9, 0.1)]
    rows = [
        dataclasses.replace(
            pair(str(i)),
            responses=(
                Response(content="a", rating=a, aspects={"depth": c}),
                Response(content="b", rating=b, aspects={"depth": d}),
            ),
        )
        for i, (a, b, c, d) in enumerate(rated)
    ]
    for field, dropped in (("rating", {1}), ("aspects.depth", {0}), ("votes", {0, 1})):
        scores = {"type": "columns", "chosen": f"chosen.{field}", "rejected": f"rejected.{field}"}
        found = curate(rows, {"step": "score_filter", "scores": scores, "keep": "right"})
        assert set(found.dropped) == dropped


def test_difficulty_buckets_of_equal_size_and_by_edges() -> None:
    margins = [None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    rows = [pair(str(i), margin=m, extra={"kept": i}) for i, m in enumerate(margins)]
    found = curate(rows, {"step": "difficulty", "buckets": 4})
    buckets = [found.changed[i].extra for i in range(len(rows))]
    assert buckets == [
        {"kept": i, "difficulty": b} for i, b in enumerate([None, 0, 0, 1, 1, 2, 2, 3, 3])
    ]
    assert found.account["pairs"] == [2, 2, 2, 2]
    assert found.account["without_difference"] == 1
    edges = curate(rows, {"step": "difficulty", "edges": [0.3, 0.7], "field": "d"})
    assert edges.account["pairs"] == [2, 4, 2]
    equal = curate([pair(margin=1.0)] * 5, {"step": "difficulty", "buckets": 3})
    assert sum(equal.account["pairs"]) == 5


def test_shingles_are_those_of_plain_sets() -> None:
    texts = ["abcabcd", "abc", "", "ab", "abcd"]
    found = of_characters(texts, 3)
    assert [len(found.of(i)) for i in range(5)] == [5, 1, 0, 1, 2]
    plain = [[t[k : k + 3] for k in range(max(1, len(t) - 2))] if t else [] for t in texts]
    seen = {s: h for i, p in enumerate(plain) for s, h in zip(p, found.of(i), strict=True)}
    assert len(set(seen.values())) == len(seen)
    for i, p in enumerate(plain):
        assert [seen[s] for s in p] == found.of(i).tolist()
    words = of_words(["a b c a b", "", "b", "a b"], 2)
    assert [len(words.of(i)) for i in range(4)] == [4, 0, 1, 1]
    assert words.of(0)[0] == words.of(0)[3] == words.of(3)[0]
    assert [len(of_words(["a b", "a"], 2, whole=False).of(i)) for i in range(2)] == [1, 0]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("parts", [1, 3])
def test_bands_find_the_threshold_and_fit_in_memory(threshold: float, parts: int) -> None:
    shape = bands_for(threshold, 126, parts)
    assert shape.recall(threshold) >= 0.995
    assert shape.rows * shape.bands <= 126
    # 12 bytes a band for all, and up to 12 more where every pair is a candidate.
    for num_perm in (96, 126, 384):
        assert bands_for(threshold, num_perm, parts).bands * 24 <= 1500


def test_crowds_of_candidates_are_cut_and_said() -> None:
    """Many pairs that are alike without being duplicates are not compared all with all."""
    stem = sentence(random.Random(0), 30)
    rows = [
        pair(f"{stem} {sentence(random.Random(i), 6)}", "a", "b", id=str(i)) for i in range(600)
    ]
    found = curate(rows, {"step": "near_duplicates", "threshold": 0.95, "of": "prompt"})
    assert not found.dropped
    crowded = curate(rows, {"step": "near_duplicates", "threshold": 0.85, "of": "prompt"})
    assert crowded.account["not_compared"] > 0
    assert crowded.account["compared"] <= 600 * 64


def test_evaluation_files(tmp_path: Path) -> None:
    def against(**keys: Any) -> dict[str, Any]:
        return {"step": "decontaminate", "against": [{"path": str(tmp_path / "e.jsonl"), **keys}]}

    def write(*records: dict[str, Any]) -> None:
        (tmp_path / "e.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    rows = [pair("Where is the nearest library?", "a", "b")]
    write({"task": {"q": "where is the nearest library"}})
    with pytest.raises(DataError, match=r"no prompt in it \(columns: task\)"):
        curate(rows, against())
    assert set(curate(rows, against(prompt="task.q")).dropped) == {0}

    chat = [
        {"from": "human", "value": "Where is the nearest library?"},
        {"from": "gpt", "value": "x"},
    ]
    write({"conversations": chat}, {"conversations": []})
    found = curate(rows, against(name="mine"))
    assert found.dropped == {0: "in mine: same prompt"}
    assert found.account["sets"]["mine"]["without_prompt"] == 1

    # A format of ours is read by its reader.
    dialogue = "\n\nHuman: Where is the nearest library?\n\nAssistant:"
    write({"chosen": f"{dialogue} There.", "rejected": f"{dialogue} Here."})
    assert set(curate(rows, against()).dropped) == {0}
    assert set(curate(rows, against(format="hh_rlhf")).dropped) == {0}

    # Pictures that are not there, and one outside the folder.
    for path in ("gone.png", "../e.jsonl"):
        write({"question": "Where is the nearest library?", "image": path})
        with pytest.raises(DataError, match="row 1: no image"):
            curate(rows, against())
    shown = [pair(rows[0].prompt, "a", "b", images=[ImageRef(digest="1" * 64)])]
    by_text = against() | {"missing_images": "text"}
    assert set(curate(shown, by_text).dropped) == {0}
    assert not curate(rows, by_text).dropped, "a text is no question about a picture"


def test_a_system_prompt_in_common_is_no_contamination(tmp_path: Path) -> None:
    system = {"role": "system", "content": sentence(random.Random(0), 40)}
    (tmp_path / "e.jsonl").write_text(json.dumps({"messages": [system, *user("Why so?")]}))
    rows = [pair([system, *user("Something else?")], said("a"), said("b"))]
    recipe = {"step": "decontaminate", "against": [{"path": str(tmp_path / "e.jsonl")}]}
    assert not curate(rows, recipe).dropped


_STEP: TypeAdapter[Any] = TypeAdapter(Step)


@pytest.mark.parametrize(
    "recipe",
    [
        {"step": "exact_duplicate"},
        {"step": "exact_duplicates", "threshold": 0.8},
        {"step": "near_duplicates", "threshold": 0.2},
        {"step": "length"},
        {"step": "length", "prompt": {}},
        {"step": "length", "prompt": {"min": 3, "max": 2}},
        {"step": "language"},
        {"step": "length_balance", "edges": [5, 5]},
        {"step": "margin"},
        {"step": "margin", "min": 2, "max": 1},
        {"step": "refusals", "language": None},
        {"step": "refusals", "phrases": [" "]},
        {"step": "templates", "of": ["prompt"], "special_tokens": False},
        {"step": "templates", "special_tokens": False, "role_markers": False},
        {"step": "score_filter", "scores": {"type": "lexicon"}, "keep": "unsure"},
        {"step": "score_filter", "scores": {"type": "lexicon"}, "keep": "wrong", "within": 1},
        {"step": "loss_filter", "scores": {"type": "lexicon"}},
        {"step": "difficulty"},
        {"step": "difficulty", "edges": [1], "buckets": 3},
        {"step": "decontaminate", "against": []},
        {"step": "decontaminate", "against": [{"path": "x"}], "exact": False, "ngram": None},
        {"step": "decontaminate", "against": [{"path": "x"}], "ngram": None, "overlap": 0.3},
        {"step": "decontaminate", "against": [{"path": "x", "format": "rated", "prompt": "p"}]},
    ],
    ids=lambda recipe: json.dumps(recipe)[:70],
)
def test_recipes_that_mean_nothing_are_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _STEP.validate_python(recipe)


def test_clean_pairs_stay() -> None:
    rows = clean(300, seed=9)
    for recipe in (
        {"step": "exact_duplicates"},
        {"step": "near_duplicates", "threshold": 0.5},
        {"step": "contradictions"},
        {"step": "empty"},
        {"step": "refusals"},
        {"step": "templates"},
    ):
        assert not curate(rows, recipe).dropped
