"""WildVision's battles: people ask two unknown models about an image and say which was better.

Hub: WildVision/wildvision-battle (10,383 votes in R1-Reward's count, ODC-BY),
WildVision/wildvision-arena-data (CC-BY-4.0).
Shape: question_id, model_a, model_b, conversation_a, conversation_b (turns of role and content),
image (the file), winner, language, turn, anony, judge, tstamp, domain.

Quirks: winner is model_a, model_b, tie or "tie (bothbad)", or the arena's own names of votes
(leftvote, rightvote, tievote, bothbad_vote); both bad is a tie, and the row keeps `winner`. The
vote is about whole conversations: only the last answers are compared, where all before them is the
same on both sides; others are counted. 173 pairs of VL-RewardBench are from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, assistant, last_answers, listed, named, notes
from palate.data.readers.fields import required, turns
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.schema import Preference, Response

COLUMNS = ("conversation_a", "conversation_b", "winner")
_VERDICTS: dict[str, Verdict] = {
    "model_a": "first",
    "leftvote": "first",
    "model_b": "second",
    "rightvote": "second",
    "tie": "tie",
    "tievote": "tie",
    "tie (bothbad)": "tie",
    "bothbad_vote": "tie",
}


def _read(record: Record, context: Context) -> Preference:
    winner = required(record, "winner")
    verdict = _VERDICTS.get(winner) if isinstance(winner, str) else None
    if verdict is None:
        raise RowError("winner", "neither model_a, model_b nor a tie")
    images, field = images_of(record, needed=True)
    chats = [turns(listed(required(record, name), name), name) for name in COLUMNS[:2]]
    prompt, first, second = last_answers(chats[0], chats[1], (COLUMNS[0], COLUMNS[1]))
    makers = [named(record.value.get(name)) for name in ("model_a", "model_b")]
    return image_pair(
        record,
        context,
        prompt=prompt,
        sides=(
            Response(content=assistant(first), generator=makers[0]),
            Response(content=assistant(second), generator=makers[1]),
        ),
        images=images,
        fields=("conversation_a", field, "conversation_b"),
        verdict=verdict,
        extra=notes(record, "language", "domain", *(["winner"] if verdict == "tie" else [])),
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if set(COLUMNS) <= columns and columns & {"image", "images"}:
        return "columns conversation_a, conversation_b and winner, with an image"
    return None


READER = Reader(
    name="wildvision",
    shape="conversation_a, conversation_b, winner, image[, model_a, model_b]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("image", "images"),
    specificity=3,
    hub=("WildVision/wildvision-battle", "WildVision/wildvision-arena-data"),
    licence="see source",
)
