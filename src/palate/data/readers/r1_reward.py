"""R1-Reward's data for reinforcement learning: prompts to a judge, with the number of the answer.

Hub: yifanzhang114/R1-Reward-RL (17,261 comparisons; its licence is on the hub).
Shape: question, message (one user turn as JSON in a text, whose content is parts: the judge's
prompt with the question and both answers, and the image), answer (`["<answer>2</answer>"]`: the
second is better), image (the file in base64, or a path).

Quirks: the question is taken from its own column, the answers from the prompt. Without `image` the
path in the message counts, which is of the authors' machines unless it was replaced. Ties are not
permitted in it. Rows are drawn from MM-RLHF, RLAIF-V, VLFeedback, POVID and WildVision, the sources
of VL-RewardBench. Rows with a video are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, assistant, user
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import image_pair, images_of
from palate.data.readers.judged import r1_prompt, tagged
from palate.data.readers.typed import typed_turns
from palate.data.schema import ImageRef, Preference, Response, text_in

COLUMNS = ("message", "question", "answer")


def _read(record: Record, context: Context) -> Preference:
    judge_prompt, inside = _prompt(required(record, "message"))
    shown = r1_prompt(judge_prompt)
    if shown is None:
        raise RowError("message", "not the prompt of a comparison, or one with two of a border")
    images, field = images_of(record)
    if not images:
        images, field = inside, "message"
    if not images:
        raise RowError("image", "missing")
    question = text(required(record, "question"), "question")
    sides = [text(side, "message") for side in (shown.first, shown.second)]
    return image_pair(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(sides[0])), Response(content=assistant(sides[1]))),
        images=images,
        fields=("question", field, "message"),
        verdict=_verdict(required(record, "answer")),
    )


def _prompt(value: Any) -> tuple[str, tuple[ImageRef, ...]]:
    """The text of the one turn, and the images in it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError("message", "text that is no JSON") from None
    chat, images = typed_turns(value, "message")
    if [turn["role"] for turn in chat] != ["user"]:
        raise RowError("message", "not one turn of the user")
    return text_in(chat[0]["content"]), tuple(image for image in images if image is not None)


def _verdict(value: Any) -> Verdict:
    if isinstance(value, list):
        if len(value) != 1:
            raise RowError("answer", "not one answer")
        value = value[0]
    if not isinstance(value, str):
        raise RowError("answer", f"{shape_of(value)}, not text")
    verdict = tagged(value)
    if verdict is None:
        raise RowError("answer", "neither <answer>1</answer> nor <answer>2</answer>")
    return verdict


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not set(COLUMNS) <= columns:
        return None
    if any("[Response 1]" in str(row.get("message"))[:100_000] for row in sample):
        return "columns message, with two responses to judge, question and answer"
    return None


READER = Reader(
    name="r1_reward",
    shape="message with a judge's prompt as JSON in it, question, answer, image",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("question", "image", "images"),
    specificity=2,
    hub=("yifanzhang114/R1-Reward-RL",),
    licence="see source",
)
