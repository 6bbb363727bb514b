"""Learning to summarise from human feedback: which of two summaries of a post is better.

Hub: openai/summarize_from_feedback, subset comparisons (92,858 train and 86,086 validation pairs;
the posts are CC-BY-4.0, the feedback modified MIT).
Shape: info {id, post, title, subreddit, site, article}, summaries (two of {text, policy, note}),
choice (0 or 1), worker, batch, split, extra {confidence}.

Quirks:
  - The prompt is text to go on from, in the form of the authors and of TRL's tldr: subreddit, title
    and post, then "TL;DR:"; for news articles the article. The summaries begin with a space of
    their own, as published.
  - `validation` has comparisons of news articles besides those of posts, `train` has posts alone.
  - Most posts have several comparisons, some of them very many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import Verdict, compared, has, named, notes
from palate.data.readers.fields import check_entry, required, text
from palate.data.schema import Preference, Response

HUB = "openai/summarize_from_feedback"
LICENCE = "posts CC-BY-4.0, feedback MIT"


def _read(record: Record, context: Context) -> Preference:
    summaries = required(record, "summaries")
    if not isinstance(summaries, list):
        raise RowError("summaries", f"{shape_of(summaries)}, not a list")
    if len(summaries) != 2:
        raise RowError("summaries", "not two")
    first, second = (summary(item, f"summaries.{i}") for i, item in enumerate(summaries))
    choice = required(record, "choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowError("choice", "neither 0 nor 1")
    verdict: Verdict = "second" if choice else "first"
    return compared(
        record,
        context,
        prompt=post(record),
        sides=(first, second),
        verdict=verdict,
        field="summaries.1.text",
        extra=notes(record, "batch"),
    )


def post(record: Record) -> str:
    """The prompt: the post or the article in the authors' form."""
    info = required(record, "info")
    check_entry(info, "info")
    if info.get("post") is None and info.get("article") is not None:
        return f"Article:\n{text(info['article'], 'info.article')}\n\nTL;DR:"
    for name in ("post", "title", "subreddit"):
        if info.get(name) is None:
            raise RowError(f"info.{name}", "null" if name in info else "missing")
    body = text(info["post"], "info.post")
    title = text(info["title"], "info.title", blank=True)
    subreddit = text(info["subreddit"], "info.subreddit", blank=True)
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {body}\n\nTL;DR:"


def summary(entry: Any, field: str) -> Response:
    """A summary and the policy that wrote it."""
    check_entry(entry, field, "text")
    summary_text = text(entry["text"], f"{field}.text")
    return Response(content=summary_text, generator=named(entry.get("policy")))


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if {"info", "summaries", "choice"} <= columns and has(sample, "summaries", "text"):
        return "columns info, summaries and choice"
    return None


READER = Reader(
    name="summarize_comparisons",
    shape="info {post, title, subreddit}, summaries as two of {text, policy}, choice (0 or 1)",
    kind="pair",
    recognise=_recognise,
    read=_read,
    specificity=2,
    hub=(HUB,),
    licence=LICENCE,
)
