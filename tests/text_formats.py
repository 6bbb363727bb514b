"""Fixtures of the text formats, part one: what each file is and how it is read."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

from palate.data.containers import Record, open_records
from palate.data.readers import Context, readers
from palate.data.readers.meaning import read_row
from palate.data.schema import Message, Preference
from palate.data.stream import ReadResult, read_source
from palate.recipes.schema import DataSource

FIXTURES = Path(__file__).parent / "data" / "fixtures"
LATER = "a later vote of a session: what was said before is not in the conversations"
PARTED = "the conversations differ before the last answer"

# Reader, file or folder, keys of the source, why (its beginning), rows, and what was refused.
SOURCES: list[tuple[str, str, dict[str, str], str, int, dict[str, int]]] = [
    (
        "hh_rlhf",
        "hh_rlhf",
        {"subset": "helpful-base", "split": "train"},
        "columns chosen and rejected, both flat",
        3,
        {
            "rejected: empty": 1,
            "chosen: differs from the other before its last turn": 1,
        },
    ),
    (
        "ultrafeedback",
        "ultrafeedback/train.jsonl",
        {},
        "columns instruction and completions, with annotations",
        2,
        {"completions: fewer than two usable rated answers": 1},
    ),
    (
        "ultrafeedback_binarized",
        "ultrafeedback_binarized/train_prefs.jsonl",
        {},
        "columns prompt_id, score_chosen",
        2,
        {"rejected: empty": 1, "rejected: identical to chosen": 1},
    ),
    (
        "ultrafeedback_argilla",
        "ultrafeedback_argilla/train.jsonl",
        {},
        "columns chosen-rating and rejected-rating",
        2,
        {"rejected: empty": 1},
    ),
    (
        "helpsteer",
        "helpsteer/train.jsonl",
        {},
        "columns prompt and response with the five aspects",
        2,
        {"response: empty": 1, "the only answer to its prompt": 1},
    ),
    (
        "helpsteer2_preference",
        "helpsteer2_preference",
        {"subset": "preference"},
        "columns response_1, response_2 and preference_strength",
        3,
        {"response_2: identical to the other answer": 1},
    ),
    (
        "helpsteer3",
        "helpsteer3/train.jsonl",
        {},
        "columns context, response1, response2",
        3,
        {"context: wrong role order: ends with the assistant's turn": 1},
    ),
    (
        "nectar",
        "nectar/rlaif.jsonl",
        {},
        "columns prompt and answers, whose entries have an answer and a rank",
        2,
        {
            "answers: fewer than two usable ranked answers": 1,
            "prompt: does not end by opening the assistant's turn": 1,
        },
    ),
    (
        "shp",
        "shp",
        {"subset": "askculinary", "split": "train"},
        "columns history, human_ref_A",
        3,
        {"human_ref_B: identical to the other answer": 1},
    ),
    (
        "stack_exchange_paired",
        "stack_exchange_paired",
        {"subset": "data/reward"},
        "columns question, response_j and response_k",
        2,
        {"response_k: empty": 1},
    ),
    (
        "stack_exchange_preferences",
        "stack_exchange_preferences/train.jsonl",
        {},
        "columns question and answers, whose entries have a text and a pm_score",
        2,
        {"answers: fewer than two usable scored answers": 1},
    ),
    (
        "prm800k",
        "prm800k",
        {},
        "columns question, with a problem, and label",
        1,
        {
            "label.finish_reason: a correct solution: nothing to reject": 1,
            "label.finish_reason: the problem was found unusable": 1,
            "label.finish_reason: the labeller gave up": 1,
        },
    ),
    (
        "chatbot_arena",
        "chatbot_arena/train_2023.jsonl",
        {},
        "columns conversation_a, conversation_b and winner",
        5,
        {PARTED: 1, "conversation_a.content: empty": 1},
    ),
    (
        "chatbot_arena",
        "chatbot_arena/train_2025.jsonl",
        {},
        "columns conversation_a, conversation_b and winner",
        2,
        {LATER: 1},
    ),
    (
        "arena_55k",
        "arena_55k/train.csv",
        {},
        "columns response_a and response_b, and winner_model_a",
        3,
        {
            PARTED: 1,
            "response_a: null": 1,
            "response_a: half of a surrogate pair: no Unicode text": 1,
        },
    ),
]
IDS = [path.replace("/", "-") for _, path, *_ in SOURCES]
MINE = sorted({name for name, *_ in SOURCES})


def load(path: str, **source: Any) -> ReadResult:
    return read_source(DataSource(path=str(FIXTURES / path), **source), seed=0)


def reasons(result: ReadResult) -> Counter[str]:
    return Counter(item.counted_as for item in result.rejected)


def said(row: Preference) -> list[str]:
    """The texts of the responses, each of which is one assistant turn."""
    found = []
    for response in row.responses:
        assert isinstance(response.content, list)
        (turn,) = response.content
        assert turn["role"] == "assistant"
        found.append(str(turn["content"]))
    return found


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def talk(*texts: str) -> list[Message]:
    """Turns of user and assistant by turns."""
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(texts)
    ]


def read_one(
    name: str, value: dict[str, Any], left: list[str] | None = None, *, textual: bool = False
) -> Preference:
    """The row that a reader makes of a record; `left` gets what the row does without."""

    def leave_out(field: str, reason: str) -> None:
        if left is not None:
            left.append(f"{field}: {reason}")

    context = Context(source="s", id="i", leave_out=leave_out)
    return read_row(readers()[name], Record(file="f", row=1, value=value, textual=textual), context)


@functools.cache
def records(name: str) -> list[dict[str, Any]]:
    """All records of a reader's fixtures."""
    found: list[dict[str, Any]] = []
    for reader, path, keys, *_ in SOURCES:
        if reader == name:
            opened = open_records(DataSource(path=str(FIXTURES / path), **keys))
            everything = opened.fetch(range(len(opened)))
            found += [r.value for r in everything if isinstance(r, Record)]
    return found
