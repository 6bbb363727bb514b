"""What carries meaning in a row is in what is trained on, or the row is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.pairing import UNDESIRABLE, to_demonstrations
from palate.data.readers import readers
from palate.data.readers.meaning import MEANING, holds_answer_images
from palate.data.stream import ReadResult, read_source
from palate.errors import DataError
from palate.recipes.schema import DataRecipe, DataSource
from tiny_chat import CHATML, byte_tokenizer

USER = {"role": "user", "content": "Is the moon a star?"}
NO = {"role": "assistant", "content": "No."}
YES = {"role": "assistant", "content": "Yes."}
SYSTEM = {"role": "system", "content": "Answer as a strict librarian."}
CHAT = {"prompt": [USER], "chosen": [NO], "rejected": [YES]}
TEXTS = {"prompt": "Is the moon a star?", "chosen": "No.", "rejected": "Yes."}
WHOLE = {"chosen": [USER, NO], "rejected": [USER, YES]}
SWIFT = {"messages": [USER, NO], "rejected_response": "Yes."}
SHAREGPT = {
    "conversations": [{"from": "human", "value": USER["content"]}],
    "chosen": {"from": "gpt", "value": "No."},
    "rejected": {"from": "gpt", "value": "Yes."},
}
ALPACA = {"instruction": USER["content"], "input": "", "chosen": "No.", "rejected": "Yes."}
RATED = {
    "prompt": USER["content"],
    "completions": [{"text": "No.", "rating": 2}, {"text": "Yes.", "rating": 1}],
}
UNPAIRED = {"prompt": USER["content"], "completion": "No.", "label": True}
MESSAGES = {"messages": [USER, NO]}
ANSWERS = {"prompt": [USER], "responses": ["No.", "Yes."]}
EVERY = [CHAT, TEXTS, WHOLE, SWIFT, SHAREGPT, ALPACA, RATED, UNPAIRED, MESSAGES, ANSWERS]


def read(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> ReadResult:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_source(DataSource(path=str(file)), seed=0)


def refusal(folder: Path, row: dict[str, Any], good: dict[str, Any]) -> str:
    """Why `row` is refused beside a row that is not."""
    result = read(folder, good, row)
    assert (len(result.rows), len(result.rejected)) == (1, 1)
    return result.rejected[0].counted_as


@pytest.mark.parametrize("row", EVERY)
def test_a_system_prompt_in_a_column_goes_before_the_turns(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    for name in ("system", "system_prompt", "system_message"):
        (found,) = read(tmp_path, {name: SYSTEM["content"], **row}).rows
        assert found.prompt == [SYSTEM, USER]
        assert found.responses[0].content == [NO]


def test_a_system_prompt_stands_once(tmp_path: Path) -> None:
    column = {"system": SYSTEM["content"]}
    (same,) = read(tmp_path, column | CHAT | {"prompt": [SYSTEM, USER]}).rows
    assert same.prompt == [SYSTEM, USER]
    another = column | CHAT | {"prompt": [SYSTEM | {"content": "Be kind."}, USER]}
    assert refusal(tmp_path, another, CHAT) == "system: beside another system prompt"
    another = column | SHAREGPT
    another["conversations"] = [{"from": "system", "value": "Be kind."}, *another["conversations"]]
    result = read(tmp_path, another)
    assert result.rows[0].prompt == [SYSTEM | {"content": "Be kind."}, USER]
    assert [p.counted_as for p in result.left_out] == ["system: beside another system prompt"]
    another = column | CHAT | {"system_prompt": "Be kind."}
    assert refusal(tmp_path, another, CHAT) == "system_prompt: beside another system prompt"
    # A blank one is none; all rows of the file are chats alike.
    (blank,) = read(tmp_path, TEXTS | {"system": " "}).rows
    assert (blank.prompt, blank.chosen.content) == ([USER], [NO])
    assert refusal(tmp_path, TEXTS | {"system": [SYSTEM]}, TEXTS) == "system: a list, not text"


@pytest.mark.parametrize("name", ["systemPrompt", "System", "SYSTEM-PROMPT", "sys", "system_msg"])
def test_a_system_prompt_however_its_column_is_written(tmp_path: Path, name: str) -> None:
    (row,) = read(tmp_path, {name: SYSTEM["content"], **CHAT}).rows
    assert row.prompt == [SYSTEM, USER]


@pytest.mark.parametrize("row", EVERY)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("Context", "Selene is what the Greeks called the moon."),
        ("persona", "A strict librarian."),
        ("chosen_reasoning", "It reflects light."),
        ("thinking_rejected", "It shines."),
        ("rejected_prompt", "Is the sun a star?"),
        ("chosen_system", "Be kind."),
        ("rejected_weight", 0.5),
        ("sample_weights", 0.5),
        ("image_path", "moon.png"),
        ("imageUrl", "https://moon.example/moon.png"),
        ("availableTools", [{"type": "function"}]),
        ("context", "Selene is what the Greeks called the moon."),
        ("documents", [{"text": "Selene."}]),
        ("dialogue", [["hello", "hi"]]),
        ("audio", {"path": "a.wav"}),
        ("tools", [{"type": "function"}]),
        ("functions", "[{}]"),
        ("function_call", "auto"),
        ("reasoning_content", "It reflects light."),
        ("weight", 0),
    ],
)
def test_columns_that_are_not_read_refuse_the_row(
    tmp_path: Path, row: dict[str, Any], column: str, value: Any
) -> None:
    assert refusal(tmp_path, row | {column: value}, row) == f"{column}: not read by this format"
    empty = read(tmp_path, row | {column: None}, row | {column: []}, row | {"weight": 1})
    assert not empty.rejected


def test_columns_that_say_nothing_more_are_no_fault(tmp_path: Path) -> None:
    nothing = {"tools": "[]", "chosen_weight": 1, "rejected_prompt": USER["content"]}
    nothing |= {"chosen_prompt": [USER], "image_id": "a", "prompt_id": "b", "is_tie": False}
    (row,) = read(tmp_path, CHAT | nothing).rows
    assert (row.prompt, row.tie) == ([USER], False)
    (row,) = read(tmp_path, CHAT | {"is_tie": True}).rows
    assert row.tie


@pytest.mark.parametrize("write", [json.dumps, str])
def test_chats_written_out_as_text(tmp_path: Path, write: Any) -> None:
    why = "chat turns written out as text: keep them as a list"
    for row, good, name in (
        ({"chosen": write([USER, NO]), "rejected": write([USER, YES])}, WHOLE, "chosen"),
        (TEXTS | {"prompt": write([USER])}, TEXTS, "prompt"),
        (TEXTS | {"rejected": write(YES)}, TEXTS, "rejected"),
        (TEXTS | {"chosen": write([SHAREGPT["chosen"]])}, TEXTS, "chosen"),
        (SWIFT | {"rejected_response": write([YES])}, SWIFT, "rejected_response"),
    ):
        assert refusal(tmp_path, row, good) == f"{name}: {why}"
    for answer in ('{"role": "king"}', '["user", "content"]', '{"value": 3}', "[role] content"):
        assert not read(tmp_path, TEXTS | {"chosen": answer}).rejected


@pytest.mark.parametrize("name", ["is_desirable", "thumbs_up", "accepted", "isGood", "correct"])
def test_answers_that_are_called_bad_are_no_demonstrations(tmp_path: Path, name: str) -> None:
    why = f"{name}: an answer that is not to be imitated"
    for good in (MESSAGES, {"prompt": "q", "completion": "a"}):
        for value in (False, 0, "False"):
            assert refusal(tmp_path, good | {name: value}, good | {name: True}) == why
    assert refusal(tmp_path, MESSAGES | {"rationale": "Light."}, MESSAGES).startswith("rationale")
    # The class of a text is no verdict on it; a judge's rationale is a note.
    assert not read(tmp_path, {"text": "a film", name: False}).rejected
    assert not read(tmp_path, TEXTS | {"rationale": "The first is right."}).rejected


def test_of_several_the_first_in_order_is_named(tmp_path: Path) -> None:
    # Counts by reason do not depend on how a set is ordered.
    row = CHAT | {"video": "v", "tools": [1], "audios": ["a"], "label": 1, "context": "c"}
    assert refusal(tmp_path, row, CHAT) == "audios: not read by this format"
    turn = NO | {"tool_calls": [1], "name": "n", "audio": "a", "loss": 0.5}
    refused = refusal(tmp_path, CHAT | {"chosen": [turn]}, CHAT)
    assert refused == "chosen.audio: a field of a turn that is not read"


def test_what_the_prompt_repeats_is_read(tmp_path: Path) -> None:
    rows = [
        MESSAGES | {"prompt": USER["content"]},
        TEXTS | {"question": USER["content"]},
        TEXTS | {"prompt": f"Q: {USER['content']}\nA:", "question": USER["content"]},
        WHOLE | {"prompt": USER["content"], "messages": [USER, NO]},
    ]
    for row in rows:
        assert not read(tmp_path, row).rejected
    different = MESSAGES | {"prompt": "Is the sun a star?"}
    assert refusal(tmp_path, different, MESSAGES) == "prompt: not read by this format"
    different = WHOLE | {"messages": [YES, USER]}
    assert refusal(tmp_path, different, WHOLE) == "messages: not read by this format"


@pytest.mark.parametrize("name", ["question", "query", "instruction", "input", "problem"])
def test_a_question_in_a_column_of_its_own_is_the_prompt(tmp_path: Path, name: str) -> None:
    moon = {"chosen": "The moon is a satellite.", "rejected": "The moon shines, so yes."}
    (row,) = read(tmp_path, {name: USER["content"]} | moon).rows
    assert row.prompt == [USER]
    assert [side.content for side in row.responses] == [
        [{"role": "assistant", "content": moon[side]}] for side in ("chosen", "rejected")
    ]


def test_no_prompt_is_derived_beside_text_that_is_not_read(tmp_path: Path) -> None:
    moon = {"chosen": "The moon is a satellite.", "rejected": "The moon shines, so yes."}
    for column in ({"post": "Is it a star?"}, {"ask": ["Is it a star?"]}, {"q": {"text": "x"}}):
        (name,) = column
        why = f"{name}: not read, and without a prompt it may be what was asked"
        assert refusal(tmp_path, moon | column, moon) == why
    notes = {"source": "sky", "chosen_model": "m", "id": "a", "length": 3, "lang": "en"}
    (row,) = read(tmp_path, moon | notes).rows
    assert row.prompt == "The moon"


def test_messages_before_answers_of_one_turn(tmp_path: Path) -> None:
    row = {"messages": [SYSTEM, USER], "chosen": NO, "rejected": YES}
    (found,) = read(tmp_path, row).rows
    assert (found.prompt, found.chosen.content, found.rejected.content) == (
        [SYSTEM, USER],
        [NO],
        [YES],
    )


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("reasoning_content", "Light.", "reasoning apart from the answer is not read"),
        ("thinking", "Light.", "reasoning apart from the answer is not read"),
        ("name", "ann", "a field of a turn that is not read"),
        ("audio", {"id": "a"}, "a field of a turn that is not read"),
        ("function_call", {"name": "f"}, "tool calls are not read"),
        ("tool_calls", [{}], "tool calls are not read"),
        ("weight", 0, "an answer that is not to be trained on"),
        ("train", False, "an answer that is not to be trained on"),
        ("loss", 0.5, "a weight other than 0 and 1"),
    ],
)
def test_fields_of_turns_that_say_more(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    turn = NO | {field: value}
    rows = [
        (MESSAGES | {"messages": [USER, turn]}, MESSAGES, f"messages.{field}"),
        (CHAT | {"chosen": [turn]}, CHAT, f"chosen.{field}"),
        (WHOLE | {"chosen": [USER, turn]}, WHOLE, f"chosen.{field}"),
        (SHAREGPT | {"chosen": SHAREGPT["chosen"] | {field: value}}, SHAREGPT, f"chosen.{field}"),
        (SWIFT | {"messages": [USER, turn]}, SWIFT, f"messages.{field}"),
    ]
    for row, good, where in rows:
        assert refusal(tmp_path, row, good) == f"{where}: {reason}"


def test_weights_of_context_and_notes_are_no_fault(tmp_path: Path) -> None:
    chat = [
        USER | {"weight": 0, "timestamp": "1970"},
        YES | {"weight": 0, "train": False},
        USER | {"name": None},
        NO | {"weight": 1, "train": True, "model": "m"},
    ]
    (row,) = read(tmp_path, {"messages": chat}).rows
    assert (row.prompt, row.responses[0].content) == ([USER, YES, USER], [NO])


CHATS = [{"messages": [USER, NO], "label": True}, {"messages": [USER, YES], "label": False}]


@pytest.mark.parametrize(
    "rows",
    [
        CHATS,
        [{"messages": row["messages"], "kto_tag": row["label"]} for row in CHATS],
        [{"completion": row["messages"], "label": row["label"]} for row in CHATS],
        [
            {"conversations": [SHAREGPT["conversations"][0], turn], "label": label}
            for turn, label in ((SHAREGPT["chosen"], 1), (SHAREGPT["rejected"], 0))
        ],
        [
            {"instruction": USER["content"], "output": answer, "label": label}
            for answer, label in (("No.", True), ("Yes.", False))
        ],
        [
            {"prompt": [USER], "response": [turn], "label": label}
            for turn, label in ((NO, True), (YES, False))
        ],
    ],
)
def test_labels_of_answers_are_read_and_bad_answers_not_imitated(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    good, bad = read(tmp_path, *rows).rows
    assert (good.kind, good.prompt, good.responses[0].content) == ("unpaired", [USER], [NO])
    assert (good.responses[0].label, bad.responses[0].label) == (True, False)
    (shown,) = to_demonstrations(good)
    assert shown.kind == "demonstration"
    assert to_demonstrations(bad) == UNDESIRABLE


def test_bad_answers_are_counted_where_answers_are_imitated(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in CHATS), encoding="utf-8")
    recipe = DataRecipe(train=(DataSource(path=str(file)),))
    encoder = Encoder(byte_tokenizer(template=CHATML))
    data = build(recipe, encoder, kind="demonstration", seed=0)
    assert [row.responses[0].content for row in data.train_rows] == [[NO]]
    assert data.report["sources"][0]["dropped"] == {UNDESIRABLE: 1}


@pytest.mark.parametrize("formatting", ["sharegpt", "alpaca"])
def test_labels_that_dataset_info_names(tmp_path: Path, formatting: str) -> None:
    columns = {"kto_tag": "thumb", "system": "about"}
    if formatting == "sharegpt":
        columns["messages"] = "dialogue"
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
        info = {"formatting": formatting, "columns": columns, "tags": tags}
        tags["assistant_tag"] = "assistant"
        rows = [
            {"dialogue": [USER, turn], "thumb": turn is NO, "about": SYSTEM["content"]}
            for turn in (NO, YES)
        ]
    else:
        columns |= {"prompt": "task", "response": "reply"}
        info = {"columns": columns}
        rows = [
            {"task": USER["content"], "reply": turn["content"], "thumb": turn is NO}
            | {"about": SYSTEM["content"], "history": [["h", "r"]]}
            for turn in (NO, YES)
        ]
    entry = {"set": {"file_name": "rows.json", **info}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    result = read_source(DataSource(path=str(tmp_path / "rows.json")), seed=0)
    assert (result.format, result.why) == ("llamafactory_kto", "set in dataset_info.json beside it")
    assert [row.prompt for row in result.rows] == [[SYSTEM, USER]] * 2
    assert [row.responses[0].label for row in result.rows] == [True, False]
    # What dataset_info.json does not name LLaMA-Factory does not read: it is counted.
    counted = [part.counted_as for part in result.left_out]
    named = "history: not named in dataset_info.json"
    assert counted == ([] if formatting == "sharegpt" else [named] * 2)


def test_labels_are_no_demonstrations(tmp_path: Path) -> None:
    for row in (MESSAGES, {"prompt": "q", "completion": "a"}):
        with pytest.raises(DataError, match="'label': not read by this format"):
            file = tmp_path / "rows.jsonl"
            file.write_text(json.dumps(row | {"label": False}), encoding="utf-8")
            read_source(DataSource(path=str(file), format="demonstrations"), seed=0)
    # The label of a text is its class.
    assert len(read(tmp_path, {"text": "a film", "label": 0}).rows) == 1


def test_a_column_that_means_nothing_is_left_out_by_the_source(tmp_path: Path) -> None:
    for suffix, text in (
        ("jsonl", json.dumps(TEXTS | {"context": "Act 2"}) + "\n"),
        ("csv", "prompt,chosen,rejected,context\nq,a,b,Act 2\n"),
    ):
        file = tmp_path / f"rows.{suffix}"
        file.write_text(text)
        with pytest.raises(DataError, match=r"'context': not read by this format"):
            read_source(DataSource(path=str(file)), seed=0)
        (row,) = read_source(DataSource(path=str(file), ignore=("context",)), seed=0).rows
        assert row.prompt in ("q", TEXTS["prompt"])


def test_a_weight_of_a_rated_answer(tmp_path: Path) -> None:
    answers = [{"text": t, "rating": n, "weight": w} for t, n, w in (("a", 3, 0), ("b", 2, 1))]
    rated = {"prompt": "q", "completions": [*answers, {"text": "c", "rating": 1}]}
    result = read(tmp_path, rated)
    assert [r.content for r in result.rows[0].responses] == ["b", "c"]
    assert [part.counted_as for part in result.left_out] == [
        "completions.weight: not read by this format"
    ]


def test_ratings_beside_a_list_of_answers(tmp_path: Path) -> None:
    for name in ("scores", "rewards", "rm_scores"):
        (row,) = read(tmp_path, {"prompt": "q", "responses": ["a", "b"], name: [4.5, -1]}).rows
        assert row.kind == "rated"
        assert [(r.content, r.rating) for r in row.responses] == [("a", 4.5), ("b", -1.0)]
    for names in (("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating")):
        (row,) = read(tmp_path, TEXTS | dict(zip(names, (4, 1.5), strict=True))).rows
        assert row.margin == 2.5


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    notes = {"quality": 5, "a\nb": "x" * 9, "empty": None, "id": "i"}
    result = read(tmp_path, MESSAGES | notes, MESSAGES | {"messages": [USER]})
    assert result.why == "column messages; not read: a b, quality"
    assert read(tmp_path, MESSAGES | {"id": 3, "system": "Be kind."}).why == "column messages"
    many = read(tmp_path, TEXTS | {f"note_{i}": i for i in range(10)}).why
    assert many.endswith("; not read: " + ", ".join(f"note_{i}" for i in range(8)) + " and 2 more")


def test_what_readers_read_is_known() -> None:
    for reader in readers().values():
        assert all(name in MEANING or holds_answer_images(name) for name in reader.reads)
