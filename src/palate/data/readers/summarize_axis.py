"""Learning to summarise from human feedback, subset axis: ratings of single summaries.

Hub: openai/summarize_from_feedback, subset axis (test and validation alone; see
`summarize_comparisons` for its licence and for the form of the prompt).
Shape: info {id, post, title, subreddit, site, article}, summary {text, policy, note, axes},
worker, batch, split; axes has overall, accuracy, coverage and coherence (1 to 7), and compatible.

Quirks: a record is one summary as one person rated it. Records that follow one another and are of
one post become one row, whose rating is `overall`; a post's only summary is counted as such. The
same summary rated by several people is as many answers: of equal texts no pair is made. Axes that
were not asked for are null; without `overall` a record is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import notes
from palate.data.readers.fields import check_entry, finite, required
from palate.data.readers.summarize_comparisons import HUB, LICENCE, post, summary
from palate.data.schema import Preference, Response

ASPECTS = ("accuracy", "coverage", "coherence")


def _read(record: Record, context: Context) -> Preference:
    entry = required(record, "summary")
    answer = summary(entry, "summary")
    axes = entry.get("axes")
    check_entry(axes, "summary.axes")
    if axes.get("overall") is None:
        raise RowError("summary.axes.overall", "null" if "overall" in axes else "missing")
    aspects = {
        name: finite(axes[name], f"summary.axes.{name}")
        for name in ASPECTS
        if axes.get(name) is not None
    }
    rated = Response(
        content=answer.content,
        rating=finite(axes["overall"], "summary.axes.overall"),
        aspects=aspects or None,
        generator=answer.generator,
    )
    return context.row(
        record, "rated", prompt=post(record), responses=(rated,), extra=notes(record, "batch")
    )


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"info", "summary"} <= columns:
        return None
    summaries = [row.get("summary") for row in sample]
    if any(isinstance(item, dict) and "axes" in item for item in summaries):
        return "columns info and summary, which has axes"
    return None


READER = Reader(
    name="summarize_axis",
    shape="info {post, title, subreddit}, summary {text, policy, axes {overall}}",
    kind="rated",
    recognise=_recognise,
    read=_read,
    specificity=2,
    hub=(HUB,),
    licence=LICENCE,
    grouped=True,
)
