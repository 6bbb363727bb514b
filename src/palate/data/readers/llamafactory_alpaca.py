"""LLaMA-Factory's ranking layout of instructions: Alpaca's columns, chosen and rejected as texts.

Shape: instruction, input, chosen, rejected, and where there are any system, history (a list of
[question, answer]) and images. Where dataset_info.json lies beside the data, the names of columns
are those that it gives, and of system, history, input and images only the named ones are read.
Licence: that of the source.

Quirks: instruction and input are one turn of the user, with a line break between them, as
LLaMA-Factory has them. `<image>` in a text is the place of the next image. Rows with tools, videos
or audios are refused. Columns that dataset_info.json does not name are counted where they hold a
system prompt or the like.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, user
from palate.data.readers.dataset_info import (
    Layout,
    declared_as,
    images_named,
    layout_of,
    whole_row,
)
from palate.data.readers.fields import number, required, text
from palate.data.readers.instructions import instruction
from palate.data.readers.meaning import MEANING, refuse
from palate.data.readers.ms_swift import spoken
from palate.data.readers.pictures import place_images
from palate.data.schema import ImageRef, Message, Preference, Response

_DEFAULT = Layout("", "alpaca", None, {})


def _read(record: Record, context: Context) -> Preference:
    layout = alpaca_layout(record)
    prompt, images = alpaca_prompt(record, layout)
    sides = [layout.column(what, what) for what in ("chosen", "rejected")]
    chosen, rejected = (text(required(record, name), name) for name in sides)
    if chosen == rejected:
        raise RowError(sides[1], "identical to chosen")
    row = context.row(
        record,
        "pair",
        prompt=place_images(prompt, *images),
        responses=(Response(content=assistant(chosen)), Response(content=assistant(rejected))),
        margin=number(record, "margin"),
    )
    return whole_row(record, row, layout, context)


def alpaca_layout(record: Record) -> Layout:
    """What dataset_info.json says of the record's file; the usual columns where it says nothing."""
    layout = layout_of(record.file)
    return _DEFAULT if layout is None or layout.formatting != "alpaca" else layout


def alpaca_prompt(
    record: Record, layout: Layout
) -> tuple[list[Message], tuple[tuple[ImageRef, ...], str]]:
    """The turns before the answer, and the images that go among them with their column."""
    refuse(record, *(layout.optional(what) for what in ("tools", "videos", "audios")))
    prompt: list[Message] = []
    system = layout.optional("system", "system")
    if system is not None and record.value.get(system) is not None:
        instructions = text(record.value[system], system, blank=True)
        prompt += [{"role": "system", "content": instructions}] if instructions.strip() else []
    history = layout.optional("history", "history")
    if history is not None:
        prompt += spoken(record.value.get(history), history)
    names = (layout.column("prompt", "instruction"), layout.optional("query", "input"))
    prompt += user(instruction(record, between="\n", names=names))
    return prompt, images_named(record, layout)


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    texts = any(isinstance(row.get("chosen"), str) for row in sample)
    if texts and {"instruction", "chosen", "rejected"} <= columns:
        return "columns instruction, chosen and rejected"
    return None


def _declared(file: Path, columns: set[str]) -> str | None:
    needed = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    return declared_as(file, columns, ("alpaca",), needed, ranking=True)


READER = Reader(
    name="llamafactory_alpaca",
    shape="instruction, input, chosen, rejected[, system][, history][, images]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=tuple(MEANING),
    specificity=2,
    licence="see source",
    declared=_declared,
)
