"""HelpSteer and HelpSteer2: an answer a record, rated by people for five aspects, each 0 to 4.

Hub: nvidia/HelpSteer (37,120 answers), nvidia/HelpSteer2 (21,362), both CC-BY-4.0.
Shape: prompt, response, helpfulness, correctness, coherence, complexity, verbosity. Records that
follow one another with the same prompt are answers to it (HelpSteer2: two each, HelpSteer: up to
four); they are put together, and an answer that is alone is dropped.

Quirks:
  - In HelpSteer2 about 29% of the prompts are dialogues: "\\n<extra_id_1>Assistant\\n" and
    "\\n<extra_id_1>User\\n" stand between turns and are read as such.
  - Verbosity is rated like the others and is no merit; complexity hardly. `score: mean` takes all
    five; the preset `helpsteer` leaves verbosity out, as Tulu 2.5 does.
  - The converter published with Tulu 2.5 sorts by the mean of four aspects in ascending order and
    takes the first as chosen, that is, the worst. Nothing is sorted here.
  - HelpSteer2's `disagreements` have lists of ratings and are refused; its `preference` subset is
    the format `helpsteer2_preference`.
"""

from __future__ import annotations

import re

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError, having
from palate.data.readers.compared import assistant
from palate.data.readers.fields import check_prompt, number, required, text
from palate.data.schema import Message, Preference, Response

ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_MARK = "<extra_id_1>"
_BORDER = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_ROLES = {"User": "user", "Assistant": "assistant"}


def dialogue(prompt: str, field: str) -> list[Message]:
    """The turns of a prompt; those after the first begin with a marker line."""
    first, *rest = _BORDER.split(prompt)
    chat: list[Message] = [{"role": "user", "content": first}]
    for role, content in zip(rest[::2], rest[1::2], strict=True):
        chat.append({"role": _ROLES[role], "content": content})
    if any(_MARK in str(turn["content"]) for turn in chat):
        raise RowError(field, "a turn marker that does not stand in a line of its own")
    check_prompt(chat, field)
    return chat


def _read(record: Record, context: Context) -> Preference:
    prompt = dialogue(text(required(record, "prompt"), "prompt"), "prompt")
    answer = text(required(record, "response"), "response")
    aspects: dict[str, float] = {}
    for name in ASPECTS:
        rating = number(record, name)
        if rating is None:
            raise RowError(name, "missing")
        aspects[name] = rating
    return context.row(
        record,
        "rated",
        prompt=prompt,
        responses=(Response(content=assistant(answer), aspects=aspects),),
    )


READER = Reader(
    name="helpsteer",
    shape=f"prompt, response, {', '.join(ASPECTS)}: an answer a record",
    kind="rated",
    recognise=having(
        {"prompt", "response", *ASPECTS},
        "columns prompt and response with the five aspects from helpfulness to verbosity",
    ),
    read=_read,
    reads=("prompt",),
    specificity=2,
    hub=("nvidia/HelpSteer", "nvidia/HelpSteer2"),
    licence="CC-BY-4.0",
    grouped=True,
)
