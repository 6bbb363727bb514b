"""LLaVA-Critic, and UnifiedReward's data in its form: what GPT-4o or a person said as a judge.

Hub: lmms-lab/llava-critic-113k (Apache-2.0): `pairwise`, 40,154 comparisons, and `pointwise`,
72,782 judgements, of which most score one answer. CodeGoat24/LLaVA-Critic-113k (MIT) is a copy made
for UnifiedReward; images there are paths.
Shape: id, source, conversations (a human turn with the judge's prompt, a gpt turn with its reply),
image or images.

What becomes a pair: prompts that show a question and two answers, in brackets ("Question: [...]",
"The first response: [...]" or Response 1, Response A, Answer 1), or in the layouts of the arena's
judge and of LLaVA-Bench, whose reply says which is better or that they are equally good: "The
better response: [1]", "[[A>B]]", two scores in front, `<answer>Answer 1 is better</answer>`.
The prompt is the question alone, with its images, not the judge's.

Quirks: scores of one answer, comparisons of generated images, replies without a verdict and
prompts in which a border is ambiguous are refused, each with its count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, notes, user
from palate.data.readers.fields import required, text
from palate.data.readers.image_pairs import by_from, image_pair, images_of
from palate.data.readers.judged import compared_by
from palate.data.schema import Preference, Response, text_in

_OF_IMAGES = ("two generated images", "Image 1", "two generated videos", "Video 1")
_BORDERS = (
    "Question: [",
    "The LMM response: [",
    "<|User Prompt|>",
    "[Assistant 1]",
    "Text Caption:",
    "Score the response",
    "two provided answers",
    *_OF_IMAGES,
)


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record)
    talk = by_from(required(record, "conversations"), "conversations")
    if [turn["role"] for turn in talk] != ["user", "assistant"]:
        raise RowError("conversations", "not one prompt and its reply")
    prompt, reply = (text_in(turn["content"]) for turn in talk)
    comparison = compared_by(prompt, reply)
    if comparison is None:
        if any(words in prompt for words in _OF_IMAGES):
            raise RowError("conversations", "a comparison of images, not of answers")
        raise RowError("conversations", "no two answers: a score of one, or an unknown layout")
    shown, verdict = comparison
    if verdict is None:
        raise RowError("conversations", "no verdict that is understood")
    question = text(shown.question, "conversations.0.value")
    sides = [text(answer, "conversations.0.value") for answer in (shown.first, shown.second)]
    return image_pair(
        record,
        context,
        prompt=user(question),
        sides=(Response(content=assistant(sides[0])), Response(content=assistant(sides[1]))),
        images=images,
        fields=("conversations.0.value", field, "conversations.0.value"),
        verdict=verdict,
        extra=notes(record, "source"),
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if "conversations" not in columns or not columns & {"image", "images", "video"}:
        return None
    if columns & {"chosen", "rejected", "rejected_conversations"}:
        return None
    for row in sample:
        talk = row.get("conversations")
        first = talk[0] if isinstance(talk, list) and talk else None
        judge_prompt = first.get("value") if isinstance(first, dict) else None
        if isinstance(judge_prompt, str) and any(border in judge_prompt for border in _BORDERS):
            return "column conversations, with a judge's prompts, beside images"
    return None


READER = Reader(
    name="llava_critic",
    shape="conversations of a judge's prompt and reply as {from, value}, image",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("conversations", "image", "images"),
    specificity=3,
    hub=("lmms-lab/llava-critic-113k", "CodeGoat24/LLaVA-Critic-113k"),
    licence="Apache-2.0",
)
