"""Pairs as LLaMA-Factory reads them: its ranking layouts, and dataset_info.json.

Its reader of chats wants chosen and rejected as one turn each, not as lists of turns, and users and
assistants in turn; it leaves out everything else with a warning. Texts are its `alpaca` layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from palate.data.construct.columns import Shape
from palate.data.schema import Message, Part, Preference

_SAID = pa.struct([("from", pa.string()), ("value", pa.string())])
_ROLES = {
    "user": "human",
    "assistant": "gpt",
    "system": "system",
    "developer": "system",
    "tool": "observation",
}
IMAGE = "<image>"
FOLDER = "llamafactory"


def schema(shape: Shape) -> pa.Schema:
    """Its columns for rows of a shape."""
    if not shape.chat:
        return pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    fields = [("conversations", pa.list_(_SAID)), ("chosen", _SAID), ("rejected", _SAID)]
    if shape.images:
        fields.append(("images", pa.list_(pa.string())))
    return pa.schema(fields)


def table(rows: Sequence[Preference], shape: Shape) -> pa.Table:
    """The rows that it can take: fewer than `rows` where chats are not in its order."""
    found = [value for row in rows if (value := _row(row, shape)) is not None]
    return pa.Table.from_pylist(found, schema=schema(shape))


def dataset_info(name: str, splits: Sequence[str], shape: Shape) -> dict[str, Any]:
    """The content of dataset_info.json."""
    about: dict[str, Any] = {"ranking": True}
    columns = {"chosen": "chosen", "rejected": "rejected"}
    if shape.chat:
        about["formatting"] = "sharegpt"
        columns["messages"] = "conversations"
        about["tags"] = {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "system_tag": "system",
        }
    else:
        about["formatting"] = "alpaca"
        columns["prompt"] = "prompt"
    if shape.images:
        columns["images"] = "images"
    about["columns"] = columns
    return {
        name if split == "train" else f"{name}_{split}": {"file_name": f"{FOLDER}/{split}", **about}
        for split in splits
    }


def _row(row: Preference, shape: Shape) -> dict[str, Any] | None:
    if not shape.chat:
        return {
            "prompt": row.prompt,
            "chosen": row.chosen.content,
            "rejected": row.rejected.content,
        }
    assert not isinstance(row.prompt, str)
    turns = [_turn(message) for message in row.prompt]
    spoken = [turn["from"] for turn in turns if turn["from"] != "system"]
    sides = (row.chosen.content, row.rejected.content)
    if any(isinstance(side, str) or len(side) != 1 for side in sides):
        return None
    askers, others = ("human", "observation"), ("gpt",)
    in_turn = all(who in (askers, others)[i % 2] for i, who in enumerate(spoken))
    # What stands for an image must not be said by a text: it would be counted as one.
    placed = sum(turn["value"].count(IMAGE) for turn in turns) == len(row.images)
    if not in_turn or len(spoken) % 2 == 0 or (shape.images and not placed):
        return None
    value: dict[str, Any] = {
        "conversations": turns,
        "chosen": _turn(row.chosen.content[0]),  # type: ignore[arg-type]
        "rejected": _turn(row.rejected.content[0]),  # type: ignore[arg-type]
    }
    if shape.images:
        value["images"] = [image.path for image in row.images]
    return value


def _turn(message: Message) -> dict[str, str]:
    return {"from": _ROLES[message["role"]], "value": _value(message["content"])}


def _value(content: str | list[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else IMAGE for part in content)
