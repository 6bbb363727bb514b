"""Tulu 3's and OLMo 2's preference mixtures: whole chats with the prompt beside them.

Hub (ODC-BY; some parts are non-commercial, some outputs under their models' terms):
  Tulu 3: allenai/llama-3.1-tulu-3-8b-preference-mixture (271,409 pairs), -70b- (334,367) and
    -405b- (360,924); their parts, such as tulu-3-IF-augmented-on-policy-8b and -70b (65,530 and
    65,551) and tulu-3-wildchat-ultrafeedback (a split for each of its sets);
    tulu-3-pref-personas-instruction-following (19,890).
  OLMo 2: allenai/olmo-2-0425-1b-preference-mix, olmo-2-1124-7b- (378,341) and -13b-,
    olmo-2-0325-32b-, olmoe-0125-1b-7b-.
Shape: id, prompt (text), chosen and rejected (whole chats), and
  mixtures: source.
  the 405B's and OLMo 2's: chosen_rating, rejected_rating, chosen_model, rejected_model as well.
  personas: constraints, chonsen_model (as it is spelt), rejected_model.

Quirks:
  - `prompt` is in the chats already. Where it is none of their turns that is counted, and the chats
    are right.
  - chosen has the best mean rating of four aspects by GPT-4o, rejected a lower one; the parts have
    no ratings.
  - The IF sets reward the answer that keeps to a constraint, such as a number of paragraphs.
  - Parts and mixtures hold the same pairs: take one or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader
from palate.data.readers.chat_pairs import chat_pair, whole_chats
from palate.data.readers.compared import notes
from palate.data.schema import Preference

_SCORES = ("chosen_rating", "rejected_rating")
_MODELS = (("chosen_model", "chonsen_model"), ("rejected_model",))
_PLAIN = {"id", "prompt", "chosen", "rejected", "source"}
_TULU3 = "allenai/llama-3.1-tulu-3-{}-preference-mixture"
_PARTS = (
    "IF-augmented-on-policy-8b",
    "IF-augmented-on-policy-70b",
    "wildchat-ultrafeedback",
    "wildchat-if-on-policy-8b",
    "wildchat-if-on-policy-70b",
    "wildchat-reused-on-policy-8b",
    "wildchat-reused-on-policy-70b",
    "wildchat-unused",
    "sft-reused-off-policy",
    "sft-reused-on-policy-8b",
    "sft-reused-on-policy-70b",
    "sft-prompts-ultrafeedback",
    "ultrafeedback-cleaned-on-policy-8b",
    "ultrafeedback-cleaned-on-policy-70b",
    "pref-personas-instruction-following",
)
_OLMO2 = ("olmo-2-0425-1b", "olmo-2-1124-7b", "olmo-2-1124-13b", "olmo-2-0325-32b")


def _read(record: Record, context: Context) -> Preference:
    row = chat_pair(record, context, scores=_SCORES, models=_MODELS, extra=notes(record, "source"))
    asked = record.value.get("prompt")
    assert isinstance(row.prompt, list)
    if asked is not None and all(turn["content"] != asked for turn in row.prompt):
        context.leave_out("prompt", "not a turn that chosen and rejected share")
    return row


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"prompt", "chosen", "rejected"} <= columns or not whole_chats(sample):
        return None
    if not any(isinstance(row.get("prompt"), str) for row in sample):
        return None
    if {*_SCORES, "chosen_model"} <= columns:
        return "columns chosen_rating, rejected_rating and chosen_model beside whole chats"
    if {"chonsen_model", "rejected_model"} <= columns:
        return "columns chonsen_model and rejected_model beside whole chats"
    if "id" in columns and columns <= _PLAIN:
        return "columns id and prompt beside whole chats"
    return None


READER = Reader(
    name="tulu3",
    shape="id, prompt, chosen, rejected[, source][, chosen_rating, rejected_rating]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("prompt",),
    specificity=2,
    hub=(
        *(_TULU3.format(size) for size in ("8b", "70b", "405b")),
        *(f"allenai/tulu-3-{part}" for part in _PARTS),
        *(f"allenai/{name}-preference-mix" for name in (*_OLMO2, "olmoe-0125-1b-7b")),
    ),
    licence="ODC-BY",
)
