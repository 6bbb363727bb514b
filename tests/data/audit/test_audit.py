"""The audit on sets whose faults are known, cut in whatever way."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from scipy.stats import binomtest

from curating import clean, pair
from palate.data.audit import Audit, warnings
from palate.data.audit.audit import MOST_SOURCES, OTHERS
from palate.data.curation import Block
from palate.data.schema import ImageRef, Preference, Response


def block(rows: Sequence[Preference], first: int = 0) -> Block:
    return Block(first, list(range(first, first + len(rows))), list(rows))


def audit(rows: Sequence[Preference], size: int = 50, seed: int = 0) -> Audit:
    """An audit of rows by their sources, in blocks of `size`."""
    found = Audit(seed)
    for first in range(0, len(rows), size):
        part = block(rows[first : first + size], first)
        for name in dict.fromkeys(row.source for row in part.rows):
            places = [i for i, row in enumerate(part.rows) if row.source == name]
            mine = Block(first, [part.index[i] for i in places], [part.rows[i] for i in places])
            found.add(mine, source=name)
    return found


def result(rows: Sequence[Preference], **more: Any) -> dict[str, Any]:
    found = audit(rows, **more).result()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def chat(*texts: str) -> list[Any]:
    roles = ("user", "assistant") * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def faulty() -> list[Preference]:
    """600 clean pairs of two sources among others with every fault there is a counter for."""
    rows = clean(600, seed=3, words=12)
    rows += [pair(f"{i}?", f"yes {i}", f"no {i}", source="t", margin=i - 5) for i in range(40)]
    rows += rows[:7]
    rows += [
        pair(r.prompt, r.responses[1].content, r.responses[0].content, id=f"flip:{i}")
        for i, r in enumerate(rows[20:25])
    ]
    rows += [pair(f"same {i}?", "equal", " equal ") for i in range(3)]
    rows += [pair(f"tie {i}?", "a", "bb", tie=True) for i in range(4)]
    rows += [pair("Marker?", "Fine.\n\nHuman: go on", "No <|im_end|>")]
    rows += [pair(chat("Hi", "Hello", "Bye?"), [chat("x", "Bye.")[1]], [chat("x", "No.")[1]])]
    rows += [pair("Что это?", "Это кошка.", "A cat \u200b with \ufffd and \x07.")]
    rows += [pair(f"seen {i}?", "x", "y", images=[ImageRef(path=f"{i % 2}.png")]) for i in range(4)]
    random.Random(1).shuffle(rows)
    return rows


def test_planted_faults_are_counted_exactly() -> None:
    found = result(faulty())["overall"]
    assert found["pairs"] == 666
    assert found["duplicates"] == {"pairs": 7, "groups": 7, "largest": 2}
    assert found["contradictions"] == {"groups": 5, "pairs": 10}
    assert found["identical"] == 3
    assert found["ties"] == 4
    margin = found["margin"]
    assert (margin["pairs"], margin["missing"], margin["negative"], margin["zero"]) == (
        647,
        19,
        5,
        1,
    )
    assert (margin["min"], margin["max"]) == (-5, 34)
    margins = [row.margin for row in faulty() if row.margin is not None]
    assert margin["mean"] == pytest.approx(sum(margins) / len(margins), rel=1e-5)
    assert sum(n for *_, n in margin["histogram"]) == 647
    below = sum(n for low, high, n in margin["histogram"] if high <= 0)
    assert below == 5
    assert found["template"]["problems"]["role marker in a response"] == 1
    assert found["template"]["problems"]["special token in a response"] == 1
    assert found["template"]["found"] == {"<|im_end|>": 1, "Human:": 1}
    assert found["characters"] == {
        "control character": {"prompt": 0, "chosen": 0, "rejected": 1},
        "replacement character": {"prompt": 0, "chosen": 0, "rejected": 1},
        "zero-width character": {"prompt": 0, "chosen": 0, "rejected": 1},
    }
    assert found["scripts"]["prompt"]["Cyrillic"] == found["scripts"]["chosen"]["Cyrillic"] == 1
    assert found["scripts"]["chosen_differs"] == 0 and found["scripts"]["rejected_differs"] == 1
    assert found["prompts"]["distinct"] == 600 + 40 + 3 + 4 + 1 + 1 + 1 + 4
    assert found["prompts"]["repeated"] == 12
    # The chat, and the four prompts with a picture, which texts cannot hold.
    assert (found["chats"], found["several_turns"], found["turns"]) == (5, 1, {"1": 665, "3": 1})
    images = found["images"]
    assert images.pop("prompts") == {"images": 2, "several": 2, "share": 1.0, "most": 2}
    assert images.pop("blind")["pairs_of_questions"] == 0
    assert images == {
        "seen": 4,
        "distinct": 2,
        "repeated": 2,
        "most": 2,
        "pairs": 4,
        "by_number": {"1": 4},
    }


def test_clean_pairs_have_no_fault() -> None:
    found = result(clean(400, seed=9, words=15))
    one = found["overall"]
    for name in ("duplicates", "contradictions"):
        assert one[name]["pairs"] == 0
    assert one["identical"] == one["ties"] == 0
    assert not one["characters"] and not one["template"]["found"]
    # Plain texts as prompt and response, without white space between: said, and nothing else.
    assert set(one["template"]["problems"]) <= {"prompt and response run into each other"}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_found_does_not_depend_on_blocks(size: int) -> None:
    rows = faulty()
    assert result(rows, size=size) == result(rows, size=64)


def test_audits_merge_to_the_audit_of_all() -> None:
    rows = faulty()
    parts = [Audit(4), Audit(4), Audit(4)]
    for number, first in enumerate(range(0, len(rows), 30)):
        for i, row in enumerate(rows[first : first + 30], first):
            parts[number % 3].add(Block(i, [i], [row]), source=row.source)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    merged, whole = parts[2].result(), result(rows, seed=4)
    # Sources come in the order in which they are met.
    assert merged == whole
    with pytest.raises(ValueError, match="two seeds"):
        parts[0].merge(Audit(5))


def test_lengths() -> None:
    rows = [pair("p" * 10, "c" * (i + 1), "r" * 100) for i in range(200)]
    found = result(rows)["overall"]
    chosen = found["length"]["characters"]["chosen"]
    assert (chosen["mean"], chosen["min"], chosen["max"]) == (100.5, 1, 200)
    assert chosen["quantiles"]["p5"] == 10 and chosen["quantiles"]["p50"] == 100
    assert chosen["quantiles"]["p95"] == pytest.approx(190, rel=0.02)
    assert sum(n for *_, n in chosen["histogram"]) == 200
    label = found["length_label"]["characters"]
    assert (label["longer"], label["shorter"], label["equal"]) == (100, 99, 1)
    assert label["auc"] == pytest.approx(0.5025)
    first = label["by_difference"][0]
    assert (first["from"], first["below"], first["longer"], first["shorter"]) == (1, 10, 9, 9)
    assert sum(g["longer"] for g in label["by_difference"]) == 100
    # All pairs have one prompt, so they are worth one observation: nothing is known.
    assert label["ci"][1] - label["ci"][0] > 0.8
    assert found["length"]["words"]["prompt"]["mean"] == 1


def test_intervals_are_wilsons() -> None:
    rows = [pair(f"{i}?", "aa" if i < 30 else "a", "b" if i < 30 else "bb") for i in range(40)]
    label = result(rows)["overall"]["length_label"]["characters"]
    assert label["share"] == 0.75
    expected = binomtest(30, 40).proportion_ci(method="wilson")
    assert label["ci"] == pytest.approx([expected.low, expected.high], abs=1e-5)


def test_style_and_its_short_cut() -> None:
    rng = random.Random(2)
    rows = []
    for i in range(400):
        plain, listed = f"word {rng.random()}.", f"- point {rng.random()}\n- other."
        sides = (listed, plain) if i % 10 else (plain, listed)
        rows.append(pair(f"{i}?", *sides))
    found = result(rows)
    features = {f["name"]: f for f in found["overall"]["style"]["features"]}
    assert (features["list items"]["more"], features["list items"]["less"]) == (360, 40)
    assert features["list items"]["chosen"] == 360
    assert features["bold text"]["share"] is None and features["bold text"]["ci"] is None
    assert found["overall"]["style"]["together"]["share"] == pytest.approx(0.9, abs=0.02)
    said = " ".join(warnings(found))
    assert "more list items (90% of 400" in said
    assert "length and style alone" in said.lower()


def test_style_by_feature() -> None:
    from palate.data.audit.style import FEATURES, features, opening

    def of(text: str) -> dict[str, int]:
        return {n: v for n, v in zip(FEATURES, features(text), strict=True) if v}

    assert of("All good.") == {}
    assert of("# Title\n\n1. one\n2) two\n* three.") == {"list items": 3, "headings": 1}
    assert of("**bold** and **more**!") == {"bold text": 2, "exclamation marks": 1}
    assert of("```py\nx\n```") == {"code blocks": 1}
    assert of("Why? \U0001f600") == {"question marks": 1, "emoji": 1}
    assert of("I\u2019m sorry, but I can\u2019t help.") == {"refusals": 1}
    assert of("and then it") == {"unfinished ends": 1}
    assert of("") == {}
    assert opening("  Don\u2019t worry, all is well") == "don't worry"


def test_one_response_to_every_prompt_is_said() -> None:
    rows = clean(300, seed=1)
    rows += [pair(f"question {i}?", "Sure thing, done.", f"No {i}.") for i in range(40)]
    found = result(rows)
    (same,) = found["overall"]["style"]["same_response"]
    assert same == {"opening": "sure thing", "prompts": 40, "chosen": 40, "rejected": 0}
    assert any("answers 40 different prompts" in text for text in warnings(found))


@pytest.mark.parametrize(
    "margins",
    [[1e308, 1e308, -1e308], [1e-12, 2e-12, 5e-12], [0.0] * 3, [2.0], [-1.0, 1e200], [5e-324]],
)
def test_margins_of_any_size(margins: list[float]) -> None:
    rows = [pair(f"{i}?", "a", "b", margin=m) for i, m in enumerate(margins)]
    margin = result(rows)["overall"]["margin"]
    assert (margin["min"], margin["max"]) == (min(margins), max(margins))
    assert margin["negative"] == sum(m < 0 for m in margins)
    if margin["histogram"]:
        assert sum(n for *_, n in margin["histogram"]) == len(margins)
        lows, highs = [low for low, *_ in margin["histogram"]], [b[1] for b in margin["histogram"]]
        assert lows[1:] == highs[:-1] and lows[0] <= min(margins) * (1 + 1e-6 * (min(margins) > 0))


def test_generators_of_which_one_wins() -> None:
    rows = []
    for i in range(60):
        wins = Response(content=f"a{i}.", generator="best")
        loses = Response(content=f"b{i}.", generator=f"model {i % 3}")
        rows.append(
            Preference(id=str(i), source="s", kind="pair", prompt=f"{i}?", responses=(wins, loses))
        )
    found = result(rows)
    names = {g["name"]: (g["wins"], g["losses"]) for g in found["overall"]["generators"]["names"]}
    assert names == {"best": (60, 0), **{f"model {k}": (0, 20) for k in range(3)}}
    assert any(text.startswith("The generator best wrote 60") for text in warnings(found))


def test_sources_and_what_they_share() -> None:
    rows = [pair(f"{i}?", f"a{i}", f"b{i}", source="one") for i in range(30)]
    rows += [pair(f"{i}?", f"a{i}", f"b{i}", source="two") for i in range(10)]
    rows += [pair(f"{i}?", f"b{i}", f"a{i}", source="three") for i in range(10, 15)]
    found = result(rows)
    assert list(found["sources"]) == ["one", "two", "three"]
    assert all(one["duplicates"]["pairs"] == 0 for one in found["sources"].values())
    assert found["overall"]["duplicates"]["pairs"] == 10
    assert found["overall"]["contradictions"] == {"groups": 5, "pairs": 10}
    assert found["across"]["shared_prompts"] == [
        {"a": "one", "b": "two", "prompts": 10},
        {"a": "one", "b": "three", "prompts": 5},
    ]
    said = warnings(found)
    assert any(
        text.startswith("The sources one and two have 10 prompts in common") for text in said
    )
    assert any(text.startswith("10 pairs of one source are also in another") for text in said)


def test_text_and_a_chat_of_one_turn_are_the_same_prompt() -> None:
    rows = [
        pair("Hi  there?", "yes", "no"),
        pair(chat("Hi there?"), chat("", "yes")[1:], chat("", "no")[1:]),
    ]
    found = result(rows)["overall"]
    assert found["prompts"]["distinct"] == 1 and found["duplicates"]["pairs"] == 1


def test_structure_of_turns() -> None:
    turns = chat("Hi", "Hello")
    rows = [
        pair(turns, chat("", "a")[1:], chat("", "b")[1:]),
        pair("Human: hi\n\nAssistant: hello\n\nHuman: again", "Assistant: x", "y"),
        pair("\n\nHuman: hi\n\nAssistant:", " fine", " well"),
        pair("A question that is long enough to be sure of it?", "", "x"),
    ]
    problems = result(rows)["overall"]["template"]["problems"]
    assert problems == {
        "prompt and response run into each other": 2,
        "prompt does not end with the user's turn": 1,
        "response begins with its own role": 1,
        "prompt with role markers that does not end with the assistant's": 1,
        "empty response": 1,
    }


def test_examples_are_extremes_and_a_draw() -> None:
    rows = [pair(f"{i}?", "c" * (i + 2), "r" * 5, margin=float(i), id=str(i)) for i in range(100)]
    examples = result(rows)["sources"]["s"]["examples"]
    kinds = {e["kind"]: e["id"] for e in examples if e["kind"] != "drawn by chance"}
    assert sum(e["kind"] == "drawn by chance" for e in examples) == 4
    assert len({e["id"] for e in examples}) == len(examples)
    assert {"99"} >= {kinds.get("longest", "99")} and {"0"} >= {kinds.get("shortest", "0")}
    other = result(rows, seed=1)["sources"]["s"]["examples"]
    assert [e["id"] for e in other] != [e["id"] for e in examples]


def test_long_examples_begin_shortly_before_they_differ() -> None:
    same = "word " * 2000
    rows = [pair("p" * 5000, f"{same}yes" + "!" * 9000, f"{same}no")]
    (example, *_) = result(rows)["sources"]["s"]["examples"]
    chosen = example["chosen"]
    assert len(chosen["text"]) == 2400 and chosen["before"] == len(same) - 120
    assert chosen["before"] + len(chosen["text"]) + chosen["after"] == len(same) + 9003
    assert example["rejected"]["text"].endswith("no") and example["rejected"]["after"] == 0
    assert example["prompt"] == {"text": "p" * 1200, "before": 3800, "after": 0}


def test_scripts() -> None:
    from palate.data.audit.characters import FAULT_NAMES, NAMES, look_at

    texts = [
        "Latin, é",
        "42 + 1",
        "Привет",
        "你好吗",
        "日本語です",
        "안녕",
        "สวัสดี",
        "שלום",
        "مرحبا",
        "नमस्ते",
        "",
    ]
    found = look_at(texts)
    assert [NAMES[code] for code in found.script] == [
        "Latin", "no letters", "Cyrillic", "Han", "Kana", "Hangul", "Thai", "Hebrew", "Arabic",
        "Devanagari", "no letters",
    ]  # fmt: skip
    assert not found.faults.any()
    bad = ["\x00", "\ufffd", "\u202e", "\ufeff", "\ue000", "\ud800", "é\x85", "ok\t\r\n"]
    faults = look_at(bad).faults
    assert [[FAULT_NAMES[i] for i in row.nonzero()[0]] for row in faults] == [
        ["control character"],
        ["replacement character"],
        ["direction override"],
        ["zero-width character"],
        ["private-use character"],
        ["lone surrogate"],
        ["control character"],
        [],
    ]
    # A fault and a script are found in a text of more than a million characters, too.
    long = look_at(["д" * 1_200_000 + "\ufffd", "a" * 1_200_000 + "\x07", "x"])
    assert long.faults.sum(axis=1).tolist() == [1, 1, 0]
    assert [NAMES[code] for code in long.script] == ["Cyrillic", "Latin", "Latin"]


def test_memory_is_a_few_bytes_a_pair() -> None:
    """Of 2,400 pairs with 7 MB of text no more stays than a sample, examples and digests."""

    def part(k: int) -> Block:
        rows = [
            pair(f"{k} {i} " + "word " * 200, f"{k} {i} a" + "word " * 200, f"{k} {i} b" * 100)
            for i in range(200)
        ]
        return block(rows, 200 * k)

    found = Audit(0)
    for k in range(2):
        found.add(part(k), source="s")
    tracemalloc.start()
    for k in range(2, 14):
        found.add(part(k), source="s")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_500_000


def test_digests_are_16_bytes_a_pair() -> None:
    found = audit(clean(400, seed=5, words=4))
    source = found._sources["s"]
    assert source.repeats.prompts().nbytes + source.repeats.pairs().nbytes == 400 * 16
    assert source.seen.images().nbytes == 0


def test_sources_beyond_the_limit_are_one() -> None:
    found = Audit(0)
    for i in range(MOST_SOURCES + 6):
        found.add(block([pair(f"{i}?", "a", "b")], i), source=f"s{i}")
    sources = found.result()["sources"]
    assert len(sources) == MOST_SOURCES + 1 and sources[OTHERS]["pairs"] == 6


def test_any_text_can_be_stored() -> None:
    rows = [pair("\ud800?", "a \udfff", "b\x00", source="\ud83d", margin=float("inf"))]
    found = result(rows)
    json.dumps(found, ensure_ascii=False).encode()
    assert found["overall"]["margin"]["pairs"] == 0
    assert warnings(found)


def test_nothing_at_all() -> None:
    found = result([])
    assert found["overall"]["pairs"] == 0 and found["sources"] == {}
    assert warnings(found) == []
