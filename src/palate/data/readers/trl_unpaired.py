"""TRL's unpaired preference format: prompt, completion, label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader
from palate.data.readers.demonstrations import prompt_and_completion
from palate.data.readers.fields import flag, refuse_unread
from palate.data.schema import Preference, Response


def _read(record: Record, context: Context) -> Preference:
    refuse_unread(record)
    prompt, completion = prompt_and_completion(record)
    return Preference(
        id=context.id,
        source=context.source,
        kind="unpaired",
        prompt=prompt,
        responses=(Response(content=completion, label=flag(record, "label")),),
        row=record.row,
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if {"prompt", "completion", "label"} <= columns:
        return "columns prompt, completion and label"
    return None


READER = Reader(
    name="trl_unpaired",
    shape="prompt, completion, label",
    kind="unpaired",
    recognise=_recognise,
    read=_read,
    specificity=1,
)
