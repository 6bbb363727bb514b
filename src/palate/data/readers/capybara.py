"""Capybara: dialogues of several turns whose last answer was given anew by open models and rated.

Hub: argilla/distilabel-capybara-dpo-7k-binarized (7,563 pairs, Apache-2.0).
Shape: chosen, rejected (whole chats), rating_chosen, rating_rejected (1 to 5), chosen_model,
rejected_model, source, conversation (a list of {input, output}), prompt, original_response,
generation_prompt, raw_generation_responses, new_generations.

Quirks: `prompt` is not read: the chats hold the dialogue. Pairs with equal ratings are ties, and of
one pair both answers are the same text.
"""

from __future__ import annotations

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, having
from palate.data.readers.chat_pairs import chat_pair
from palate.data.readers.compared import notes
from palate.data.schema import Preference

_SCORES = ("rating_chosen", "rating_rejected")


def _read(record: Record, context: Context) -> Preference:
    return chat_pair(
        record,
        context,
        scores=_SCORES,
        models=(("chosen_model",), ("rejected_model",)),
        extra=notes(record, "source"),
    )


READER = Reader(
    name="capybara",
    shape="chosen, rejected, rating_chosen, rating_rejected, conversation",
    kind="pair",
    recognise=having(
        {"chosen", "rejected", "conversation", *_SCORES},
        "columns conversation, rating_chosen and rating_rejected beside chosen and rejected",
    ),
    read=_read,
    reads=("prompt", "conversation"),
    specificity=3,
    hub=("argilla/distilabel-capybara-dpo-7k-binarized",),
    licence="Apache-2.0",
)
