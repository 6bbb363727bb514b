"""Fixtures of the multimodal formats: what each file is and how it is read."""

from __future__ import annotations

import functools

from palate.data.containers import Record, open_records
from palate.recipes.schema import DataSource
from text_formats import FIXTURES, PARTED

SAME = "identical to the other answer"
COUNT = "not as many as there are <image> in the turns"
NO_TWO = "no two answers: a score of one, or an unknown layout"
NO_VERDICT = "no verdict that is understood"

# Reader, file, why (its beginning), rows, and what was refused.
SOURCES: list[tuple[str, str, str, int, dict[str, int]]] = [
    (
        "rlaif_v",
        "rlaif_v/RLAIF-V-Dataset_000.parquet",
        "columns question, chosen, rejected and image, with origin_dataset",
        3,
        {f"rejected: {SAME}": 1, "rejected: empty": 1, "image: no image": 1},
    ),
    (
        "rlhf_v",
        "rlhf_v/train.parquet",
        "columns image and text, with question, chosen and rejected in the text",
        2,
        {
            "text: text, not an object in JSON": 1,
            "text.rejected: missing": 1,
            f"text.rejected: {SAME}": 1,
        },
    ),
    (
        "vlfeedback",
        "vlfeedback/vlfeedback_80k.jsonl",
        "columns prompt and completions, annotated for Visual Faithfulness",
        2,
        {"completions: fewer than two usable rated answers": 1, "img_path: no image": 1},
    ),
    (
        "mm_rlhf",
        "mm_rlhf/dpo_pairs.jsonl",
        "columns prompt, chosen and rejected, with chosen_reason",
        5,
        {f"image: {COUNT}": 1, "chosen: empty": 1},
    ),
    (
        "povid",
        "povid/POVID_preference_data_for_VLLMs_version_1.json",
        "columns conversations and rejected_conversations",
        2,
        {
            PARTED: 1,
            f"rejected_conversations: {SAME}": 1,
            "image: none, where the turns have <image>": 1,
        },
    ),
    (
        "mmpr",
        "mmpr/annotations/clevr_wo_image.jsonl",
        "columns image, question, chosen and rejected; named as OpenGVLab/MMPR",
        3,
        {
            "question: no <image>, where there are several images": 1,
            f"image: {COUNT}": 1,
            "chosen: null": 1,
        },
    ),
    (
        "r1_reward",
        "r1_reward/train.parquet",
        "columns message, with two responses to judge, question and answer",
        3,
        {
            "answer: neither <answer>1</answer> nor <answer>2</answer>": 1,
            "message: not the prompt of a comparison, or one with two of a border": 1,
            f"message: {SAME}": 1,
        },
    ),
    (
        "wildvision",
        "wildvision/test.parquet",
        "columns conversation_a, conversation_b and winner, with an image",
        3,
        {
            PARTED: 1,
            "conversation_a.content: empty": 1,
            "winner: neither model_a, model_b nor a tie": 1,
            "image: no image": 1,
        },
    ),
    (
        "ixc",
        "ixc/example.json",
        "columns conversations_a and conversations_b",
        3,
        {
            "image: a video, not read by this format": 1,
            "image: not as many as there are <ImageHere> in the turns": 1,
            "conversations_a.from: nobody who is known": 1,
        },
    ),
    (
        "llava_critic",
        "llava_critic/pairwise.parquet",
        "column conversations, with a judge's prompts",
        3,
        {
            f"conversations: {NO_VERDICT}": 1,
            f"conversations: {NO_TWO}": 1,
            f"conversations.value: {SAME}": 1,
        },
    ),
    (
        "llava_critic",
        "llava_critic/pointwise.parquet",
        "column conversations, with a judge's prompts",
        3,
        {f"conversations: {NO_VERDICT}": 1, f"conversations: {NO_TWO}": 1},
    ),
    (
        "llava_critic",
        "llava_critic/unified_reward.json",
        "column conversations, with a judge's prompts",
        2,
        {"conversations: a comparison of images, not of answers": 1},
    ),
    (
        "trl_preference",
        "trl_preference/images.parquet",
        "columns chosen and rejected, with a prompt",
        4,
        {"images: not as many as the turns have places for": 1},
    ),
    (
        "trl_preference",
        "trl_preference/unified_reward_images.json",
        "columns chosen and rejected, with a prompt",
        2,
        {f"image: {COUNT}": 1},
    ),
]
IDS = [path.replace("/", "-") for _, path, *_ in SOURCES]
MINE = sorted({name for name, *_ in SOURCES})


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
