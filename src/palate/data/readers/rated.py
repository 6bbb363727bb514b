"""Rated completions: a prompt or instruction with a list of answers, each with a rating or a rank.

Read so are AlpacaEval's ratings, UltraFeedback as published, and files of one's own. Where the
answers are texts, their ratings are a list beside them: scores, rewards, rm_scores or ratings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.fields import (
    check_entry,
    finite,
    holds,
    prompt_or_instruction,
    required,
    text,
)
from palate.data.readers.meaning import refuse_in_answer
from palate.data.schema import Message, Preference, Response

_LISTS = ("completions", "responses")
_TEXTS = ("text", "content", "output", "response", "completion")
_RATINGS = ("rating", "score", "preference", "overall_score")
_WRITERS = ("generator", "model")
_PARALLEL = ("scores", "rewards", "rm_scores", "ratings")
"""Names of a list of ratings beside a list of answers that are texts."""


def _read(record: Record, context: Context) -> Preference:
    prompt = prompt_or_instruction(record)
    name = next((n for n in _LISTS if n in record.value), _LISTS[0])
    listed = required(record, name)
    if not isinstance(listed, list):
        raise RowError(name, f"{shape_of(listed)}, not a list")
    ratings = next((n for n in _PARALLEL if holds(record.value.get(n))), None)
    if ratings is not None and not isinstance(next(iter(listed), None), dict):
        listed = _rated(listed, record.value[ratings], ratings)
    responses = []
    for i, entry in enumerate(listed):
        # One bad answer of many costs itself, not the row.
        try:
            responses.append(_response(entry, f"{name}.{i}", chat=not isinstance(prompt, str)))
        except RowError as error:
            context.leave_out(error.field or name, error.reason)
    if responses and any(r.rating is not None for r in responses):
        unrated = [r for r in responses if r.rating is None]
        for _ in unrated:
            context.leave_out(name, "ranked where others are rated")
        responses = [r for r in responses if r.rating is not None]
    if len(responses) < 2:
        raise RowError(name, "fewer than two usable rated answers")
    note = record.value.get("dataset")
    return context.row(
        record,
        "rated",
        prompt=prompt,
        responses=responses,
        extra={"dataset": note} if isinstance(note, str) else None,
    )


def _rated(answers: list[Any], ratings: Any, field: str) -> list[Any]:
    """Answers and their ratings from lists side by side."""
    if not isinstance(ratings, list) or len(ratings) != len(answers):
        raise RowError(field, "not a rating for each answer")
    return [{"text": answer, "rating": r} for answer, r in zip(answers, ratings, strict=True)]


def _response(entry: Any, field: str, *, chat: bool) -> Response:
    check_entry(entry, field)
    refuse_in_answer(entry, field)
    key = next((k for k in _TEXTS if k in entry), None)
    if key is None:
        raise RowError(f"{field}.{_TEXTS[0]}", "missing")
    answer_text = text(entry[key], f"{field}.{key}")
    answer: list[Message] = [{"role": "assistant", "content": answer_text}]
    rating = next((k for k in _RATINGS if entry.get(k) is not None), None)
    rank = entry.get("rank")
    if rating is None and rank is None:
        raise RowError(f"{field}.{_RATINGS[0]}", "missing")
    if rating is None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise RowError(f"{field}.rank", f"{shape_of(rank)}, not a whole number")
    writer = next((entry[k] for k in _WRITERS if isinstance(entry.get(k), str)), None)
    return Response(
        content=answer if chat else answer_text,
        rating=None if rating is None else finite(entry[rating], f"{field}.{rating}"),
        rank=rank if rating is None else None,
        generator=writer,
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    asked = next((c for c in ("prompt", "instruction") if c in columns), None)
    listed = next((c for c in _LISTS if c in columns), None)
    if asked is None or listed is None:
        return None
    for row in sample:
        entries = row.get(listed)
        ratings = next((n for n in _PARALLEL if isinstance(row.get(n), list)), None)
        if ratings is not None and isinstance(entries, list):
            return f"columns {asked}, {listed} and {ratings}"
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, dict):
            key = next((k for k in (*_RATINGS, "rank") if k in first), None)
            if key is not None:
                return f"columns {asked} and {listed}, whose entries have a {key}"
    return None


READER = Reader(
    name="rated",
    shape="prompt | instruction, completions | responses as a list of {text, rating}[, scores]",
    kind="rated",
    recognise=_recognise,
    read=_read,
    specificity=1,
)
