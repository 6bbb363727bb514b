"""Fixtures of the text formats, part two: what each file is and how it is read."""

from __future__ import annotations

import functools
from typing import Any

from palate.data.containers import Record, open_records
from palate.recipes.schema import DataSource
from text_formats import FIXTURES, PARTED

SAME = "identical to the other answer"

# Reader, file, why (its beginning), rows, and what was refused.
SOURCES: list[tuple[str, str, str, int, dict[str, int]]] = [
    (
        "alpaca_farm",
        "alpaca_farm/alpaca_human_preference.json",
        "columns instruction, output_1, output_2 and preference",
        2,
        {f"output_2: {SAME}": 1, "output_1: empty": 1, "preference: neither 1 nor 2": 1},
    ),
    (
        "alpaca_eval_annotations",
        "alpaca_eval_annotations/annotations.json",
        "columns output_1, output_2, generator_1, generator_2 and preference",
        4,
        {"preference: null": 1, f"output_2: {SAME}": 1, "preference: not from 1 to 2": 1},
    ),
    (
        "orca_pairs",
        "orca_pairs/intel.jsonl",
        "columns system and question beside chosen and rejected",
        2,
        {"rejected: empty": 1},
    ),
    (
        "orca_pairs",
        "orca_pairs/distilabel.jsonl",
        "columns system, input, rating and status beside chosen and rejected",
        4,
        {"rating: not two numbers": 1},
    ),
    (
        "capybara",
        "capybara/train.jsonl",
        "columns conversation, rating_chosen and rating_rejected",
        2,
        {"rejected: identical to chosen": 1, "rejected: empty": 1},
    ),
    (
        "tulu3",
        "tulu3/mixture.jsonl",
        "columns id and prompt beside whole chats",
        3,
        {"rejected: identical to chosen": 1},
    ),
    (
        "tulu3",
        "tulu3/if_augmented.jsonl",
        "columns id and prompt beside whole chats",
        1,
        {"rejected: empty": 1},
    ),
    (
        "tulu3",
        "tulu3/olmo2.jsonl",
        "columns chosen_rating, rejected_rating and chosen_model beside whole chats",
        3,
        {},
    ),
    (
        "tulu3",
        "tulu3/personas.jsonl",
        "columns chonsen_model and rejected_model beside whole chats",
        1,
        {},
    ),
    (
        "sourced_chats",
        "sourced_chats/skywork.jsonl",
        "column source beside whole chats",
        2,
        {"chosen and rejected differ in more than the last turn": 1},
    ),
    (
        "sourced_chats",
        "sourced_chats/ultrafeedback_mean_aspects.jsonl",
        "column source beside whole chats",
        2,
        {"rejected: identical to chosen": 1},
    ),
    (
        "webgpt",
        "webgpt/train.jsonl",
        "columns question, answer_0, answer_1, score_0 and score_1",
        3,
        {"answer_0: empty": 1},
    ),
    (
        "summarize_comparisons",
        "summarize_comparisons/train.jsonl",
        "columns info, summaries and choice",
        3,
        {f"summaries.text: {SAME}": 1, "choice: neither 0 nor 1": 1},
    ),
    (
        "summarize_axis",
        "summarize_axis/validation.jsonl",
        "columns info and summary, which has axes",
        1,
        {"summary.axes.overall: null": 1, "the only answer to its prompt": 1},
    ),
    (
        "swe_arena",
        "swe_arena/train.jsonl",
        "columns states, of model_A and model_B, and feedback",
        3,
        {
            PARTED: 1,
            "states.model_A.messages.content: null": 1,
            "feedback.vote_type: no vote that is known": 1,
        },
    ),
    (
        "swe_arena",
        "swe_arena/bigcodereward.jsonl",
        "columns states, of model_A and model_B, and human_vote",
        1,
        {},
    ),
    (
        "ranked",
        "ranked/rows.jsonl",
        "columns prompt, responses and rankings",
        4,
        {
            "rankings: not one for each response": 1,
            "images: not as many as there are <image> in the turns": 1,
            "video: not read by this format": 1,
        },
    ),
    (
        "llamafactory_sharegpt",
        "llamafactory_sharegpt/dpo_demo.json",
        "columns conversations, chosen and rejected, each of these one turn",
        4,
        {
            "conversations: wrong role order: ends with the assistant's turn": 1,
            "conversations.from: tool calls are not read": 1,
            "rejected: wrong role order: a response is one assistant turn": 1,
        },
    ),
    (
        "llamafactory_sharegpt",
        "llamafactory_declared/chats.json",
        "my_chats in dataset_info.json beside it",
        1,
        {"bad.who: nobody who is known": 1},
    ),
    (
        "llamafactory_alpaca",
        "llamafactory_alpaca/dpo_alpaca.json",
        "columns instruction, chosen and rejected",
        3,
        {"rejected: identical to chosen": 1, "history: not a question and an answer": 1},
    ),
    (
        "llamafactory_alpaca",
        "llamafactory_declared/texts.json",
        "my_texts in dataset_info.json beside it",
        1,
        {"worse: null": 1},
    ),
    (
        "ms_swift",
        "ms_swift/rows.jsonl",
        "columns messages and rejected_response",
        6,
        {
            "chosen and rejected differ in more than the last turn": 1,
            "rejected_response: identical to chosen": 1,
            "rejected_images: not as many as images": 1,
            "messages: wrong role order: a response is one assistant turn": 1,
        },
    ),
    (
        "ms_swift",
        "ms_swift/query_response.jsonl",
        "columns query, response and rejected_response",
        2,
        {},
    ),
    (
        "trl_preference",
        "trl_preference/unified_reward.json",
        "columns chosen and rejected, with a prompt",
        2,
        {},
    ),
]
IDS = [path.replace("/", "-") for _, path, *_ in SOURCES]
MINE = sorted({name for name, *_ in SOURCES} - {"trl_preference"})


@functools.cache
def records(name: str) -> list[Record]:
    """All records of a reader's fixtures."""
    found: list[Record] = []
    for reader, path, *_ in SOURCES:
        if reader == name:
            opened = open_records(DataSource(path=str(FIXTURES / path)))
            everything = opened.fetch(range(len(opened)))
            found += [record for record in everything if isinstance(record, Record)]
    return found


def plain(content: Any) -> list[Any]:
    """The texts of a prompt or a response."""
    if isinstance(content, str):
        return [content]
    return [turn["content"] for turn in content]
