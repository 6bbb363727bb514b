"""TRL's preference format: chosen and rejected, text or chat turns, prompt explicit or implicit.

Shape: chosen, rejected, and where there are any prompt, margin (or score_chosen, score_rejected,
also as chosen_score, chosen_rating or rating_chosen), tie, probability (the share that prefers
chosen), images (or image) and videos (or video). Hub: many; trl-lib/rlaif-v and
HuggingFaceH4/rlaif-v_formatted have images. Licence: that of the source.

With images, the content of a turn is a list of parts, {"type": "image"} among them, each the place
of the next image of the column; a part may also hold its image. Turns that are texts have the
images at their `<image>`, as many as there are, or before the first question, as TRL puts them. A
text prompt about images is something said to a model and becomes a user turn; UnifiedReward's rows
(id, image, prompt, chosen, rejected) are such. Answers hold no images. Videos are read likewise, by
{"type": "video"} and `<video>`: each is the path of a folder of frames or of a video file, or a
list of frames.

Without `prompt`, a question in a column of its own (question, query, instruction, input, problem)
is a turn of the user, and `messages` are the turns before answers of one turn each. With neither,
the prompt is what both answers begin with, unless another column holds text that would be unread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.content import with_images
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import (
    check_prompt,
    check_response,
    flag,
    holds,
    number,
    numeral,
    required,
    text,
)
from palate.data.readers.image_pairs import images_of
from palate.data.readers.meaning import QUESTIONS, chat_of
from palate.data.readers.pictures import place_images
from palate.data.readers.typed import filled, typed_turns
from palate.data.readers.videos import FIELDS, place_videos, videos_of, with_videos
from palate.data.schema import (
    Content,
    ImageRef,
    Message,
    Preference,
    Response,
    has_video,
    text_in,
)

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
_TIES = ("tie", "is_tie")
_OWN = frozenset(
    ("chosen", "rejected", "prompt", "margin", *_TIES, "probability", "image", "images", *FIELDS)
).union(*_SCORES)
_NOTES = re.compile(
    r"(.*[_-])?(id|ids|idx|index|uuid|hash|models?|source|sources|dataset|datasets|generator|name"
    r"|split|subset|category|categories|type|kind|domain|topics?|tags?|lang|language|licen[cs]e|url"
    r"|date|time|timestamp|version|annotators?|difficulty|reasons?|rationale|critique|feedback"
    r"|statement|metadata|meta)([_-](chosen|rejected))?"
)
"""Names of columns that say something of a pair and ask nothing."""
_NUMBER = re.compile(r"\s*(?:[-+]?[\d.]+(?:[eE][-+]?\d+)?|true|false|nan)?\s*", re.IGNORECASE)


def shared_text(chosen: str, rejected: str) -> str:
    """The prompt of two texts that both begin with it.

    As TRL's `extract_prompt`: the longest common prefix, less a space at its end, which belongs to
    the responses. Unlike TRL, a word is never cut in two and no response is left empty.
    """
    # Both responses must hold something that is not blank.
    short = max(0, min(len(chosen.rstrip()), len(rejected.rstrip())) - 1)
    end = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    while end and _cuts_a_word(chosen, rejected, end):
        end -= 1
    return chosen[: end - 1] if end and chosen[end - 1] == " " else chosen[:end]


def _cuts_a_word(chosen: str, rejected: str, at: int) -> bool:
    return chosen[at - 1].isalnum() and (chosen[at].isalnum() or rejected[at].isalnum())


def shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both chats begin with; all but the last of each, or it is no pair."""
    short = min(len(chosen), len(rejected))
    end = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    if len(chosen) != end + 1 or len(rejected) != end + 1:
        raise RowError(None, "chosen and rejected differ in more than the last turn")
    return end


def _read(record: Record, context: Context) -> Preference:
    images, field = images_of(record, "images", "image")
    chosen, rejected = (_side(required(record, name), name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowError("rejected", "identical to chosen")
    prompt = _prompt(record, chosen[0])
    asked, answers, places = _parted(record, prompt, chosen, rejected)
    videos, videos_field = videos_of(record)
    if images or places or videos or has_video(asked):
        if isinstance(asked, str):
            asked, answers = [{"role": "user", "content": asked}], [_answer(a) for a in answers]
        if places:
            asked = chat_of(with_images(asked, filled(places, images, field)), "user")
        else:
            asked = place_images(asked, images, field)
        if has_video(asked):
            asked = with_videos(asked, videos, videos_field)
        else:
            asked = place_videos(asked, videos, videos_field)
        check_prompt(asked, "prompt")
    share = _share(record)
    votes = (None, None) if share is None else (share, 1.0 - share)
    return context.row(
        record,
        "pair",
        prompt=asked,
        responses=(
            Response(content=answers[0], votes=votes[0]),
            Response(content=answers[1], votes=votes[1]),
        ),
        margin=_margin(record),
        tie=any(holds(record.value.get(name)) and flag(record, name) for name in _TIES),
    )


Places = list[ImageRef | None]
"""The image parts of turns, see `typed_turns`."""

Side = tuple[Content, Places]


def _prompt(record: Record, chosen: Content) -> Any:
    """What stands before the answers: a text, turns, or None where the answers begin with it."""
    prompt = record.value.get("prompt")
    if prompt is not None and not (record.textual and prompt == ""):
        return prompt
    answer = isinstance(chosen, str) or chosen[0]["role"] == "assistant"
    if answer and holds(record.value.get("messages")):
        return record.value["messages"]
    name = next((name for name in QUESTIONS if holds(record.value.get(name))), None)
    if name is None:
        return None
    question = text(record.value[name], name)
    return [{"role": "user", "content": question}] if answer else question


def _side(value: Any, field: str) -> Side:
    if isinstance(value, dict):
        return typed_turns([value], field, videos=True)
    if isinstance(value, list):
        return typed_turns(value, field, videos=True)
    return text(value, field), []


def _parted(
    record: Record, prompt: Any, chosen: Side, rejected: Side
) -> tuple[Content, list[Content], Places]:
    """The prompt, the two answers, and the image parts of the prompt."""
    first, second = chosen[0], rejected[0]
    if isinstance(first, str) and isinstance(second, str):
        return _texts(record, prompt, first, second)
    if isinstance(first, str) or isinstance(second, str):
        raise RowError("rejected", "text beside chat turns")
    asked, places = None, chosen[1]
    if isinstance(prompt, list):
        asked, places = typed_turns(prompt, "prompt", videos=True)
    turns_asked, first_answer, second_answer, repeated = _chats(prompt, asked, first, second)
    # What is repeated at the head of the answers must be the same images as well.
    for side, name in ((chosen, "chosen"), (rejected, "rejected")):
        if side[1] != (places if repeated else []):
            raise RowError(name, "with other images than the prompt")
    return turns_asked, [first_answer, second_answer], places


def _texts(
    record: Record, prompt: Any, chosen: str, rejected: str
) -> tuple[Content, list[Content], Places]:
    if isinstance(prompt, list):
        asked, places = typed_turns(prompt, "prompt", videos=True)
        check_prompt(asked, "prompt")
        return asked, [_answer(chosen), _answer(rejected)], places
    if prompt is not None:
        return text(prompt, "prompt"), [chosen, rejected], []
    shared = shared_text(chosen, rejected)
    if not shared.strip():
        raise RowError("prompt", "missing, and chosen and rejected begin with no common text")
    for name, value in record.value.items():
        if _may_be_asked(name, value, record) and value not in (chosen, rejected):
            raise RowError(name, "not read, and without a prompt it may be what was asked")
    return shared, [chosen[len(shared) :], rejected[len(shared) :]], []


def _chats(
    prompt: Any,
    asked: list[Message] | None,
    chosen: list[Message],
    rejected: list[Message],
) -> tuple[list[Message], list[Message], list[Message], bool]:
    """The prompt, both answers, and whether the prompt stood at their head."""
    repeated = True
    if prompt is None:
        n = shared_turns(chosen, rejected)
        asked, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    elif asked is not None:
        n = len(asked)
        # Some data sets repeat the prompt at the head of both responses.
        repeated = chosen[:n] == asked and rejected[:n] == asked
        if repeated:
            chosen, rejected = chosen[n:], rejected[n:]
    else:
        question = text(prompt, "prompt")
        if chosen[0]["role"] == "assistant":
            asked, repeated = [{"role": "user", "content": question}], False
        else:
            n = shared_turns(chosen, rejected)
            asked, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
            questions = [text_in(turn["content"]) for turn in asked if turn["role"] == "user"]
            if question not in questions:
                raise RowError("prompt", "not a turn that chosen and rejected share")
    check_prompt(asked, "prompt")
    for side, name in ((chosen, "chosen"), (rejected, "rejected")):
        if any(not isinstance(turn["content"], str) for turn in side):
            kind = "a video" if has_video(side) else "an image"
            raise RowError(name, f"{kind} in an answer")
        check_response(side, name)
    return asked, chosen, rejected, repeated


def _may_be_asked(name: str, value: Any, record: Record) -> bool:
    """Whether a column may hold the prompt of answers that come without one."""
    if name in _OWN or _NOTES.fullmatch(name.lower()) is not None:
        return False
    if isinstance(value, str) and record.textual and _NUMBER.fullmatch(value) is not None:
        return False
    return isinstance(value, (str, list, dict)) and holds(value)


def _margin(record: Record) -> float | None:
    margin = number(record, "margin")
    if margin is not None:
        return margin
    for names in _SCORES:
        chosen, rejected = (numeral(record.value.get(name), name) for name in names)
        if chosen is not None and rejected is not None:
            return chosen - rejected
    return None


def _share(record: Record) -> float | None:
    share = number(record, "probability")
    if share is not None and not 0.0 <= share <= 1.0:
        raise RowError("probability", f"{share:g} is not between 0 and 1")
    return share


def _answer(answer: Content) -> Content:
    return answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"chosen", "rejected"} <= columns:
        return None
    asked = [name for name in ("messages", *QUESTIONS) if name in columns]
    prompt = "a prompt" if "prompt" in columns else "the prompt they share"
    if "prompt" not in columns and asked:
        prompt = f"the column {asked[0]}"
    return f"columns chosen and rejected, with {prompt}"


READER = Reader(
    name="trl_preference",
    shape="chosen, rejected[, prompt][, margin][, tie][, probability][, images][, videos]",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("prompt", "image", "images", "video", "videos"),
    licence="see source",
)
