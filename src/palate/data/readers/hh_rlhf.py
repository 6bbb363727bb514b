"""Anthropic hh-rlhf: dialogues as flat text with Human: and Assistant:, read as chats.

Hub and git repository: Anthropic/hh-rlhf (MIT), 169,000 pairs. Folders, each with train.jsonl.gz
and test.jsonl.gz: helpful-base, helpful-online, helpful-rejection-sampled, harmless-base; of a
local copy `subset: helpful-base` names one, `split: train` without it takes all four.
red-team-attempts holds transcripts with ratings, no pairs, and is another split.
Shape: chosen, rejected, each the whole dialogue.

Quirks: the prompt is what both share, up to the last "Assistant:". A few dialogues differ before
their last turn, end with an empty answer or with a human's turn: refused and counted. In
harmless-base chosen is the less harmful answer, not a good one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import check_prompt, check_response, required, text
from palate.data.schema import Message, Preference, Response

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_dialogue(dialogue: str, field: str) -> list[Message]:
    """The turns of a flat dialogue. The one space after each marker belongs to the marker."""
    if not dialogue.startswith((HUMAN, ASSISTANT)):
        raise RowError(field, "does not begin with a Human: or Assistant: turn")
    pieces = _MARKER.split(dialogue)[1:]
    return [
        {"role": _ROLES[role], "content": content.removeprefix(" ")}
        for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _read(record: Record, context: Context) -> Preference:
    chosen = text(required(record, "chosen"), "chosen")
    rejected = text(required(record, "rejected"), "rejected")
    if chosen == rejected:
        raise RowError("rejected", "identical to chosen")
    short = min(len(chosen), len(rejected))
    same = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    # The prompt ends with the last "\n\nAssistant:" that both have.
    at = chosen.rfind(ASSISTANT, 0, same)
    if at < 0:
        raise RowError(None, "chosen and rejected share no turn")
    prompt = parse_dialogue(chosen[:at], "chosen") if at else []
    check_prompt(prompt, "chosen")
    sides = []
    for field, dialogue in (("chosen", chosen), ("rejected", rejected)):
        response = parse_dialogue(dialogue[at:], field)
        if len(response) > 1:
            raise RowError(field, "differs from the other before its last turn")
        check_response(response, field)
        sides.append(Response(content=response))
    if sides[0] == sides[1]:
        raise RowError("rejected", "identical to chosen")
    return context.row(record, "pair", prompt=prompt, responses=(sides[0], sides[1]))


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"chosen", "rejected"} <= columns or "prompt" in columns:
        return None
    flat = sum(_is_dialogue(row.get("chosen")) for row in sample)
    if 2 * flat > len(sample):
        return "columns chosen and rejected, both flat Human: and Assistant: dialogues"
    return None


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN) and ASSISTANT in value


READER = Reader(
    name="hh_rlhf",
    shape="chosen, rejected as flat Human: and Assistant: dialogues",
    kind="pair",
    recognise=_recognise,
    read=_read,
    specificity=2,
    hub=("Anthropic/hh-rlhf",),
    licence="MIT",
)
