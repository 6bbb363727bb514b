"""Text formats, part one: recognised from their columns, read exactly, refused by name."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate.data.pairing import pair_row
from palate.data.readers import RowError, readers
from palate.data.stream import read_source
from palate.errors import DataError
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from text_formats import (
    FIXTURES,
    IDS,
    MINE,
    SOURCES,
    load,
    read_one,
    reasons,
    records,
    said,
    talk,
    user,
)


@pytest.mark.parametrize(("name", "path", "keys", "why", "rows", "refused"), SOURCES, ids=IDS)
def test_recognised_and_reconciled(
    name: str, path: str, keys: dict[str, str], why: str, rows: int, refused: dict[str, int]
) -> None:
    result = load(path, **keys)
    assert (result.format, len(result.rows)) == (name, rows)
    assert result.why.startswith(why)
    assert reasons(result) == refused
    assert result.read == len(result.rows) + result.merged + len(result.rejected)
    assert all(row.kind == readers()[name].kind for row in result.rows)


@pytest.mark.parametrize("name", MINE)
def test_readers_say_where_they_are_from(name: str) -> None:
    reader = readers()[name]
    assert reader.hub and all(hub.count("/") == 1 for hub in reader.hub)
    assert reader.licence


@pytest.mark.parametrize("name", MINE)
def test_what_a_model_would_see_is_not_dropped_in_silence(name: str) -> None:
    for record in records(name):
        with pytest.raises(RowError) as caught:
            read_one(name, record | {"tools": [{"name": "search"}]})
        if not _refused(name, record):
            assert str(caught.value) == "tools: not read by this format"


def _refused(name: str, record: dict[str, Any]) -> bool:
    try:
        read_one(name, record)
    except RowError:
        return True
    return False


def test_hh_rlhf_folders() -> None:
    rows = load("hh_rlhf", subset="helpful-base", split="train").rows
    assert rows[0].prompt == user("How do I keep basil alive?")
    assert said(rows[0]) == ["Water it from below.", "Basil cannot be kept alive."]
    assert rows[1].prompt == talk("Name a river.", "The Ebro.", "Where is it?")
    # One space belongs to the marker; everything else is the answer's.
    assert said(rows[2])[0] == " Yes,\n\n it is one. "
    assert len(load("hh_rlhf", subset="helpful-base", split="test").rows) == 1
    whole = load("hh_rlhf", split="train")
    assert [f.parent.name for f in whole.files] == ["harmless-base", "helpful-base"]
    assert len(whole.rows) == 5
    with pytest.raises(DataError, match="red_team_attempts, test, train: name one"):
        load("hh_rlhf")
    with pytest.raises(DataError, match="of no known format"):
        load("hh_rlhf", split="red_team_attempts")


def test_ultrafeedback_ratings() -> None:
    result = load("ultrafeedback/train.jsonl")
    first, second = result.rows
    assert first.prompt == user("Why does bread rise?\n")
    assert said(first)[1] == "Yeast makes gas, and gluten holds it.\n"
    assert first.extra == {"source": "evol_instruct"}
    assert [r.generator for r in first.responses] == ["alpaca-7b", "gpt-4", "bard", "starchat"]
    # The 10 beside aspects of 1.25 is the known error; its aspects say what the answer is worth.
    assert [r.rating for r in first.responses] == [3.0, 8.5, 7.0, None]
    assert first.responses[2].aspects == {
        "instruction_following": 4.0,
        "honesty": 4.0,
        "truthfulness": 5.0,
        "helpfulness": 3.0,
    }
    # A 10 that the aspects bear out stays; N/A is no rating; an empty answer costs itself alone.
    assert [r.rating for r in second.responses] == [10.0, 2.0]
    assert "honesty" not in (second.responses[0].aspects or {})
    assert Counter(item.counted_as for item in result.left_out) == {
        "completions.overall_score: 10 beside aspects that average 2 or less: "
        "a known error of the data": 1,
        "completions.annotations.honesty.Rating: not applicable": 1,
        "completions.response: empty": 1,
    }


def test_ultrafeedback_error_makes_no_flipped_pair() -> None:
    row = load("ultrafeedback/train.jsonl").rows[0]
    for preset in ("ultrafeedback_overall", "ultrafeedback_fine_grained"):
        (pair,) = pair_row(row, PairingRecipe.model_validate({"preset": preset}), 0).pairs
        assert pair.chosen.generator == "gpt-4"


def test_ultrafeedback_binarised() -> None:
    plain, tied = load("ultrafeedback_binarized/train_prefs.jsonl").rows
    assert plain.prompt == user("Why is the sea salt?")
    assert said(plain) == ["Rivers bring salts, and only water leaves.\n", "Fish."]
    assert (plain.margin, plain.tie) == (4.5, False)
    assert [r.rating for r in plain.responses] == [8.5, 4.0]
    assert (tied.margin, tied.tie) == (0.0, True)
    with pytest.raises(DataError, match="no usable row of 1 as ultrafeedback_binarized"):
        load("ultrafeedback_binarized/test_gen.jsonl")


def test_ultrafeedback_argilla() -> None:
    row = load("ultrafeedback_argilla/train.jsonl").rows[0]
    assert (row.prompt, said(row)) == (user("How long is a furlong?"), ["220 yards.", "Long."])
    assert (row.margin, row.tie) == (3.5, False)
    assert [r.generator for r in row.responses] == ["gpt-4", "alpaca-7b"]
    assert row.extra == {"source": "sharegpt"}


def test_helpsteer_answers_are_put_together() -> None:
    result = load("helpsteer/train.jsonl")
    assert (result.read, result.merged) == (7, 3)
    first, second = result.rows
    assert (first.prompt, said(first)) == (
        user("c#"),
        ["A language by Microsoft.", "A note between c and d."],
    )
    assert first.responses[0].aspects == {
        "helpfulness": 3.0,
        "correctness": 4.0,
        "coherence": 4.0,
        "complexity": 2.0,
        "verbosity": 1.0,
    }
    assert first.responses[0].rating is None
    assert second.prompt == talk("What is a ford?", "A shallow place in a river.", "And a forge?")
    assert len(second.responses) == 3
    pairing = PairingRecipe.model_validate({"preset": "helpsteer", "rejected": "worst"})
    (pair,) = pair_row(second, pairing, 0).pairs
    # Not the ascending sort of the published converter.
    assert said(pair) == ["A smith's workshop.\n", "A car."]


@pytest.mark.parametrize(
    "prompt",
    ["a<extra_id_1>Assistant\nb", "a\n<extra_id_1>User", "a\n<extra_id_1>Assistant\nb"],
)
def test_helpsteer_dialogues_that_are_none(prompt: str) -> None:
    aspects = dict.fromkeys(readers()["helpsteer"].shape.split(": ")[0].split(", ")[2:], 1)
    with pytest.raises(RowError) as caught:
        read_one("helpsteer", {"prompt": prompt, "response": "c", **aspects})
    assert caught.value.field == "prompt"


def test_helpsteer2_preference() -> None:
    first, second, tied = load("helpsteer2_preference", subset="preference").rows
    assert said(first) == ["A language by Microsoft.", "A note between c and d."]
    assert (first.margin, first.extra) == (2.0, {"split": "train"})
    assert second.prompt == talk("What is a ford?", "A shallow place in a river.", "And a forge?")
    assert (said(second), second.margin) == (["A smith's workshop.", "A car."], 3.0)
    assert (said(tied), tied.margin, tied.tie) == (["Red.", "Blue."], 0.0, True)


def test_helpsteer3() -> None:
    first, second, tied = load("helpsteer3/train.jsonl").rows
    assert first.prompt == talk("What is a ford?", "A shallow place.", "Deeper?")
    assert (said(first)[0], first.margin) == ("Then it is none.", 3.0)
    assert first.extra == {"domain": "general", "language": "english"}
    assert (said(second), second.margin) == (["xs[::-1]", "xs.sort()"], 2.0)
    assert (tied.tie, tied.margin) == (True, 0.0)


@pytest.mark.parametrize("value", [4, -3.5, "much", True, None, [1], math.nan])
def test_strengths_that_are_none(value: Any) -> None:
    row = {"context": user("Q"), "response1": "a", "response2": "b", "overall_preference": value}
    with pytest.raises(RowError) as caught:
        read_one("helpsteer3", row)
    assert caught.value.field == "overall_preference"


def test_nectar() -> None:
    result = load("nectar/rlaif.jsonl")
    first, second = result.rows
    assert first.prompt == user("Why is snow white?")
    assert [r.rank for r in first.responses] == [1, 3, 2]
    assert first.responses[0].generator == "gpt-4"
    assert first.extra == {"source": ["sharegpt"]}
    assert second.prompt == talk("Hi.", "Hello.", "Name a tree.")
    assert [r.rank for r in second.responses] == [1, 1]
    assert Counter(i.counted_as for i in result.left_out) == {"answers.answer: empty": 1}
    recipe = PairingRecipe.model_validate({"preset": "nectar"})
    assert said(pair_row(first, recipe, 0).pairs[0])[0] == "It scatters all light."
    assert pair_row(second, recipe, 0).pairs == ()


@pytest.mark.parametrize("rank", [1.5, 0, -1, math.inf, True, "1", [1]])
def test_ranks_that_are_none(rank: Any) -> None:
    answers = [{"answer": "a", "rank": rank}, {"answer": "b", "rank": 2.0}]
    left: list[str] = []
    row = {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": answers}
    with pytest.raises(RowError, match="fewer than two"):
        read_one("nectar", row, left)
    assert [field for field, _, _ in (item.partition(": ") for item in left)] == ["answers.0.rank"]


def test_shp() -> None:
    first, second, flipped = load("shp", subset="askculinary", split="train").rows
    assert said(first)[0] == "In a glass of water, in the fridge."
    assert [r.votes for r in first.responses] == [340.0, 21.0]
    assert (first.margin, first.extra) == (None, {"domain": "askculinary_train"})
    assert said(second) == ["In a damp cloth.\n\nIt lasts a week.", "Buy less."]
    # A label that the votes contradict is found by pairing, and is nothing a reader may change.
    assert pair_row(first, PairingRecipe(), 0).flips == ()
    assert pair_row(flipped, PairingRecipe(), 0).flips == ("chosen has fewer votes",)


def test_stack_exchange() -> None:
    row = load("stack_exchange_paired", subset="data/reward").rows[0]
    assert row.prompt == user("How do I list files?\n\nI use a shell.")
    assert said(row) == ["Type `ls`.", "Buy another computer."]
    result = load("stack_exchange_preferences/train.jsonl")
    scored, tied = result.rows
    assert [r.rating for r in scored.responses] == [5.0, 2.0, -1.0]
    assert said(scored)[1] == "<p>Flour the board.</p>\n"
    assert pair_row(tied, PairingRecipe(), 0).pairs == ()
    answers = [{"text": "a", "pm_score": "3"}, {"text": "b", "pm_score": "-1"}]
    row = read_one("stack_exchange_preferences", {"question": "Q", "answers": answers})
    assert [r.rating for r in row.responses] == [3.0, -1.0]


def test_prm800k() -> None:
    (row,) = load("prm800k").rows
    assert row.prompt == user("What is $6 \\cdot 7$?")
    assert said(row) == [
        "We have $6 \\cdot 7 = \\boxed{42}$.",
        "I add 6 seven times.\nThat is 6, 12, 18, 24, 30, 36, 43.\nSo it is 43.\n\n# Answer\n\n43",
    ]


def test_chatbot_arena_2023() -> None:
    wins, loses, tie, both_bad, last = load("chatbot_arena/train_2023.jsonl").rows
    assert said(wins) == ["A wading bird.\n", "A kind of fish."]
    assert [r.generator for r in wins.responses] == ["koala-13b", "vicuna-13b"]
    assert wins.extra == {"language": "English"}
    assert said(loses) == ["Spoon.", "Sun."]
    assert [r.generator for r in loses.responses] == ["vicuna-13b", "koala-13b"]
    assert (wins.tie, tie.tie, both_bad.tie) == (False, True, True)
    assert both_bad.extra == {"language": "unknown", "winner": "tie (bothbad)"}
    # Several turns are a pair where both models said the same until the last.
    assert last.prompt == talk("Name a lake.", "Como.", "Another?")
    assert said(last) == ["Garda.", "Water."]


def test_chatbot_arena_2025() -> None:
    first, both_bad = load("chatbot_arena/train_2025.jsonl").rows
    assert first.id == "train_2025:c4b9-1"
    assert (first.prompt, said(first)) == (
        user("What is a tarn?"),
        ["A mountain lake.", "A bird."],
    )
    assert both_bad.tie


def test_chatbot_arena_conversations_in_texts() -> None:
    # The card of the 100k set gives the conversations as texts.
    row = {
        "conversation_a": json.dumps(talk("Q", "A")),
        "conversation_b": json.dumps(talk("Q", "B")),
        "winner": "model_b",
    }
    assert said(read_one("chatbot_arena", row)) == ["B", "A"]
    for text in ("Q", "{}", "[" * 100_000, ""):
        with pytest.raises(RowError) as caught:
            read_one("chatbot_arena", row | {"conversation_a": text})
        assert caught.value.field == "conversation_a"


def test_chatbot_arena_without_images() -> None:
    asked = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    row = {"conversation_a": [asked], "conversation_b": [asked], "winner": "tie"}
    with pytest.raises(RowError, match="an image, not read by this format"):
        read_one("chatbot_arena", row)
    assert readers()["chatbot_arena"].recognise({*row, "image"}, [row]) is None


def test_arena_55k() -> None:
    first, second, tie = load("arena_55k/train.csv").rows
    assert first.prompt == user('What is a "ford"?')
    assert said(first) == ["A shallow\nplace.", "A car."]
    assert said(second) == ["Grüß dich.", "Hello."]
    assert (tie.tie, tie.prompt) == (True, talk("Hi", "Hi!", "Bye"))
    # In the order of the file: a tie has none.
    assert said(tie) == ["Bye!", "Goodbye."]


@pytest.mark.parametrize("won", [(0, 0, 0), (1, 1, 0), (1, 0, 1)])
def test_arena_55k_has_one_verdict(won: tuple[int, int, int]) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    row = {"prompt": ["Q"], "response_a": ["A"], "response_b": ["B"]}
    with pytest.raises(RowError, match="not one of the three verdicts"):
        read_one("arena_55k", row | dict(zip(names, won, strict=True)))


def test_names_that_could_not_be_written_are_not_kept() -> None:
    # Half of a surrogate pair in a text refuses the row; in a name kept for reports, the name.
    row = {"conversation_a": talk("Q", "A"), "conversation_b": talk("Q", "B"), "winner": "model_a"}
    found = read_one("chatbot_arena", row | {"model_a": "\ud800", "language": "\udfff"})
    assert (found.chosen.generator, found.extra) == (None, None)


JSONL = [(name, path) for name, path, *_ in SOURCES if path.endswith(".jsonl")]


@pytest.mark.parametrize(("name", "path"), JSONL)
def test_parquet_gives_the_same_rows(name: str, path: str, tmp_path: Path) -> None:
    lines = (FIXTURES / path).read_text(encoding="utf-8").splitlines()
    file = tmp_path / (Path(path).stem + ".parquet")
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), file)
    table, plain = read_source(DataSource(path=str(file)), seed=0), load(path)
    assert table.format == name
    assert table.rows == plain.rows
    assert reasons(table) == reasons(plain)
