"""Every format from a file of its own: what is recognised, and what the rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palate.data.readers import readers
from palate.data.readers.trl_preference import shared_text
from palate.data.stream import ReadResult, read_source
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataSource

USER = {"role": "user", "content": "Why is the sky blue?"}
GOOD = {"role": "assistant", "content": " Rayleigh scattering.\n"}
BAD = {"role": "assistant", "content": "It is painted."}


def read(folder: Path, rows: list[Any], **source: Any) -> ReadResult:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_source(DataSource(path=str(file), **source), seed=0)


def one(folder: Path, row: dict[str, Any], **source: Any) -> Any:
    result = read(folder, [row], **source)
    assert (result.read, len(result.rejected)) == (1, 0)
    return result.rows[0]


def reason(folder: Path, row: dict[str, Any], good: dict[str, Any]) -> str:
    """Why `row` is refused beside a row that is not."""
    result = read(folder, [good, row])
    assert (result.read, len(result.rows), len(result.rejected)) == (2, 1, 1)
    assert result.rejected[0].row == 2
    return result.rejected[0].counted_as


PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def test_text_pair_is_taken_unaltered(tmp_path: Path) -> None:
    row = {"prompt": " e\u0301 ", "chosen": "\u00e9\n\n", "rejected": "\t x", "margin": 2}
    found = one(tmp_path, row)
    assert (found.kind, found.prompt, found.margin) == ("pair", row["prompt"], 2.0)
    assert found.chosen.content == row["chosen"]
    assert found.rejected.content == row["rejected"]
    assert (found.id, found.row, found.source) == ("rows:1", 1, "rows")
    assert not found.conversational


def test_ties_and_shares_of_people(tmp_path: Path) -> None:
    tied = one(tmp_path, PAIR | {"tie": True, "probability": 0.75})
    assert tied.tie and (tied.chosen.votes, tied.rejected.votes) == (0.75, 0.25)
    plain = one(tmp_path, PAIR | {"tie": None, "probability": None})
    assert not plain.tie and plain.chosen.votes is None
    wrong = {"probability": 1.5}
    assert reason(tmp_path, PAIR | wrong, PAIR) == "probability: 1.5 is not between 0 and 1"
    assert "tie: " in reason(tmp_path, PAIR | {"tie": "maybe"}, PAIR)


def test_margin_from_scores(tmp_path: Path) -> None:
    assert one(tmp_path, PAIR | {"score_chosen": 8.5, "score_rejected": 3}).margin == 5.5
    assert one(tmp_path, PAIR | {"score_chosen": 8.5}).margin is None
    assert one(tmp_path, PAIR).margin is None


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        # The prompt again at the head of both sides; the question as text beside full chats.
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD["content"], "rejected": BAD["content"]},
        # Content as one text part.
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
    ],
)
def test_chats_in_all_their_forms_are_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    found = one(tmp_path, row)
    assert found.prompt == [USER]
    assert found.chosen.content == [GOOD]
    assert found.rejected.content == [BAD]


def test_implicit_prompt_of_a_longer_chat(tmp_path: Path) -> None:
    head = [{"role": "system", "content": ""}, USER, GOOD, {"role": "user", "content": "More?"}]
    found = one(tmp_path, {"chosen": [*head, GOOD], "rejected": [*head, BAD]})
    assert found.prompt == head


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is black.", "The sky is blue.", "The sky is"),
        ("Q?\nYes", "Q?\nNo", "Q?\n"),
        ("I think so, yes", "I think so? yes", "I think so"),
        ("It is blue", "It is blue today", "It is"),
        ("It is", "It is  ", "It"),
        ("blue", "green", ""),
        ("a b", "a", ""),
    ],
)
def test_shared_text(chosen: str, rejected: str, prompt: str) -> None:
    assert shared_text(chosen, rejected) == prompt
    assert shared_text(rejected, chosen) == prompt


def test_shared_text_agrees_with_trl_at_word_borders() -> None:
    from trl.data_utils import extract_prompt

    for chosen, rejected in [("The sky is blue.", "The sky is green."), ("Q?\nYes", "Q?\nNo")]:
        theirs = extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"]
        assert shared_text(chosen, rejected) == theirs


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": None}, "chosen: null"),
        ({"chosen": 3}, "chosen: a number, not text"),
        ({"chosen": ""}, "chosen: empty"),
        ({"rejected": " \n"}, "rejected: empty"),
        ({"rejected": PAIR["chosen"]}, "rejected: identical to chosen"),
        ({"prompt": {}}, "prompt: an object, not text"),
        ({"prompt": "  "}, "prompt: empty"),
        ({"rejected": [BAD]}, "rejected: text beside chat turns"),
        ({"margin": "much"}, "margin: text, not a number"),
        ({"margin": True}, "margin: true or false, not a number"),
        ({"margin": float("nan")}, "margin: not a finite number"),
        ({"margin": 10**400}, "margin: not a finite number"),
        ({"chosen": "\ud800"}, "chosen: half of a surrogate pair: no Unicode text"),
        ({"audios": ["a.mp3"]}, "audios: not read by this format"),
        ({"videos": [3]}, "videos: a number, neither a path nor frames"),
        ({"images": 3}, "images: a number, neither a path nor an image"),
        ({"tools": "[]x"}, "tools: not read by this format"),
    ],
)
def test_bad_text_pairs(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    assert reason(tmp_path, PAIR | change, PAIR) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": []}, "prompt: empty"),
        ({"prompt": [USER, GOOD]}, "prompt: wrong role order: ends with the assistant's turn"),
        ({"prompt": [{"role": "user", "content": " "}]}, "prompt.content: empty"),
        (
            {"prompt": [USER, {"role": "system", "content": "s"}, USER]},
            "prompt.role: a system turn that is not the first",
        ),
        ({"prompt": ["hi"]}, "prompt: text, not a turn with role and content"),
        ({"chosen": [{"role": "assistant"}]}, "chosen.content: missing"),
        ({"chosen": [{"role": None, "content": "x"}]}, "chosen.role: null"),
        (
            {"chosen": [{"role": "bot", "content": "x"}]},
            "chosen.role: not one of system, developer, user, assistant, tool",
        ),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "chosen: empty"),
        (
            {"chosen": [USER]},
            "chosen: wrong role order: a response is one assistant turn",
        ),
        ({"chosen": [GOOD | {"tool_calls": [1]}]}, "chosen.tool_calls: tool calls are not read"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
         "chosen: an image in an answer"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "text", "text": "x"}] * 2}]},
         "chosen.content: a list, not text"),
        ({"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, GOOD, USER]},
         "chosen and rejected differ in more than the last turn"),
        ({"prompt": "Else?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
         "prompt: not a turn that chosen and rejected share"),
    ],
)  # fmt: skip
def test_bad_chat_pairs(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    assert reason(tmp_path, CHAT | change, CHAT) == expected


def test_no_common_prompt(tmp_path: Path) -> None:
    good = {"chosen": "A b", "rejected": "A c"}
    expected = "prompt: missing, and chosen and rejected begin with no common text"
    assert reason(tmp_path, {"chosen": "x", "rejected": "y"}, good) == expected


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_unpaired(tmp_path: Path, label: Any) -> None:
    found = one(tmp_path, {"prompt": "a", "completion": " b", "label": label})
    assert (found.kind, found.prompt) == ("unpaired", "a")
    assert found.responses[0].content == " b"
    assert found.responses[0].label is bool(label)


def test_unpaired_chat_and_bad_labels(tmp_path: Path) -> None:
    good = {"prompt": [USER], "completion": [GOOD], "label": True}
    assert one(tmp_path, good).prompt == [USER]
    assert reason(tmp_path, good | {"label": "yes"}, good) == "label: text, not true or false"
    assert reason(tmp_path, good | {"label": 2}, good) == "label: a number, not true or false"
    assert reason(tmp_path, good | {"label": None}, good) == "label: null"


def test_demonstrations(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "a", "completion": " b"})
    assert (found.kind, found.prompt, found.responses[0].content) == ("demonstration", "a", " b")
    chat = one(tmp_path, {"messages": [USER, BAD, USER, GOOD]})
    assert chat.prompt == [USER, BAD, USER]
    assert chat.responses[0].content == [GOOD]
    mixed = one(tmp_path, {"prompt": USER["content"], "completion": [GOOD]})
    assert (mixed.prompt, mixed.responses[0].content) == ([USER], [GOOD])
    text = one(tmp_path, {"text": " all of it"})
    assert (text.prompt, text.responses[0].content) == ("", " all of it")
    good = {"messages": [USER, GOOD]}
    assert reason(tmp_path, {"messages": [GOOD]}, good) == "messages: no prompt turn"
    expected = "messages: wrong role order: a response is one assistant turn"
    assert reason(tmp_path, {"messages": [USER]}, good) == expected


def test_answers(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "a", "response": " b"})
    assert (found.kind, found.prompt, found.responses[0].content) == ("answers", "a", " b")
    chat = one(tmp_path, {"prompt": [USER], "responses": ["So.", [GOOD]]})
    so = [{"role": "assistant", "content": "So."}]
    assert (chat.prompt, [r.content for r in chat.responses]) == ([USER], [so, [GOOD]])
    assert one(tmp_path, {"instruction": "Why?", "response": "So."}).responses[0].content == so
    sample = {"policy": "p", "prompt_id": "1", "index": 0, "prompt": "a", "response": "b"}
    assert one(tmp_path, sample).kind == "answers"
    good = {"prompt": "a", "responses": ["b"]}
    assert reason(tmp_path, {"prompt": "a", "responses": []}, good) == "responses: an empty list"
    bad = {"prompt": "a", "responses": [7]}
    assert reason(tmp_path, bad, good) == "responses: a number, not text"
    turns = "responses: chat turns after a prompt of plain text"
    assert reason(tmp_path, {"prompt": "a", "responses": [[GOOD]]}, good) == turns
    # A bad answer costs itself, and answers with ratings or ranks are more than that.
    assert len(one(tmp_path, {"prompt": "a", "responses": ["b", None]}).responses) == 1
    ranked = {"prompt": "a", "responses": ["b", "c"], "rankings": [1, 2]}
    assert read(tmp_path, [ranked]).format == "ranked"


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: A joke?  \n\nAssistant:"


def test_hh_rlhf(tmp_path: Path) -> None:
    result = read(tmp_path, [{"chosen": f"{HH} No. ", "rejected": f"{HH} Yes"}])
    assert result.format == "hh_rlhf"
    row = result.rows[0]
    assert row.prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "A joke?  "},
    ]
    assert row.chosen.content == [{"role": "assistant", "content": "No. "}]
    assert row.rejected.content == [{"role": "assistant", "content": "Yes"}]


def test_hh_rlhf_refusals(tmp_path: Path) -> None:
    good = {"chosen": f"{HH} No.", "rejected": f"{HH} Yes"}
    longer = f"{HH} Yes\n\nHuman: And?\n\nAssistant: That."
    expected = "rejected: differs from the other before its last turn"
    assert reason(tmp_path, {"chosen": f"{HH} No.", "rejected": longer}, good) == expected
    assert reason(tmp_path, {"chosen": f"{HH} No.", "rejected": f"{HH} "}, good) == (
        "rejected: empty"
    )
    other = "\n\nHuman: Else\n\nAssistant: Yes"
    assert reason(tmp_path, {"chosen": f"{HH} No.", "rejected": other}, good) == (
        "chosen and rejected share no turn"
    )


ANSWERS = [
    {"generator": "a", "output": "one", "preference": 1.0},
    {"generator": "b", "output": "two", "preference": 1.9},
]


def test_rated_instruction_is_a_chat(tmp_path: Path) -> None:
    result = read(tmp_path, [{"instruction": "Count.", "dataset": "d", "completions": ANSWERS}])
    row = result.rows[0]
    assert (result.format, row.kind) == ("rated", "rated")
    assert row.prompt == [{"role": "user", "content": "Count."}]
    assert [r.rating for r in row.responses] == [1.0, 1.9]
    assert [r.generator for r in row.responses] == ["a", "b"]
    assert row.responses[1].content == [{"role": "assistant", "content": "two"}]
    assert row.extra == {"dataset": "d"}


def test_rated_prompt_is_text_and_keeps_its_id(tmp_path: Path) -> None:
    entries = [{"content": " x", "rating": 3}, {"content": " y", "rating": -1.5}]
    row = one(tmp_path, {"id": "film-7", "prompt": "It was", "responses": entries})
    assert (row.id, row.prompt) == ("rows:film-7", "It was")
    assert [(r.content, r.rating) for r in row.responses] == [(" x", 3.0), (" y", -1.5)]


def test_ranks_without_ratings(tmp_path: Path) -> None:
    entries = [{"text": "x", "rank": 2}, {"text": "y", "rank": 1}]
    row = one(tmp_path, {"prompt": "p", "completions": entries})
    assert [r.rank for r in row.responses] == [2, 1]


def test_one_bad_answer_costs_itself_alone(tmp_path: Path) -> None:
    entries = [*ANSWERS, {"output": "", "preference": 2}, {"output": "x", "preference": None}, 7]
    result = read(tmp_path, [{"instruction": "Count.", "completions": entries}])
    assert len(result.rows[0].responses) == 2
    assert [item.counted_as for item in result.left_out] == [
        "completions.output: empty",
        "completions.rating: missing",
        "completions: a number, not an object",
    ]
    good = {"instruction": "Count.", "completions": ANSWERS}
    expected = "completions: fewer than two usable rated answers"
    assert reason(tmp_path, good | {"completions": entries[1:]}, good) == expected


def test_repeated_ids_stay_apart(tmp_path: Path) -> None:
    rows = [PAIR | {"id": 5}, PAIR | {"id": 5}, PAIR | {"id": "5"}, PAIR]
    ids = [row.id for row in read(tmp_path, rows).rows]
    assert ids == ["rows:5", "rows:5#2", "rows:5#3", "rows:4"]


def test_limit_keeps_usable_rows_drawn_with_the_seed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [PAIR | {"prompt": f"p{i}"} for i in range(40)]
    for i in range(0, 40, 2):
        rows[i] = {"prompt": "p"}
    first = read(tmp_path, rows, limit=10)
    assert len(first.rows) == 10
    assert first.read == 10 + len(first.rejected) < first.available == 40
    assert [r.row for r in first.rows] == sorted(r.row for r in first.rows if r.row)
    again = read(tmp_path, rows, limit=10)
    assert [r.id for r in again.rows] == [r.id for r in first.rows]
    path = str(tmp_path / "rows.jsonl")
    other = read_source(DataSource(path=path, limit=10), seed=1)
    assert [r.id for r in other.rows] != [r.id for r in first.rows]
    assert len(read(tmp_path, rows, limit=30).rows) == 20


def test_a_named_format_decides(tmp_path: Path) -> None:
    row = {"text": "a film", "messages": [USER, GOOD]}
    assert (
        read(tmp_path, [row], format="demonstrations").why == "named by the recipe; not read: text"
    )
    with pytest.raises(RecipeError, match="no format 'hh-rlhf'; did you mean hh_rlhf"):
        read(tmp_path, [row], format="hh-rlhf")
    with pytest.raises(DataError, match=r"no usable row of 1 as trl_unpaired.*'prompt': missing"):
        read(tmp_path, [row], format="trl_unpaired")


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of no known format \(columns: left, right\); known: "):
        read(tmp_path, [{"left": 1, "right": 2}])


def test_the_registry_is_found_by_itself() -> None:
    assert set(readers()) >= {
        "demonstrations",
        "hh_rlhf",
        "rated",
        "trl_preference",
        "trl_unpaired",
    }
