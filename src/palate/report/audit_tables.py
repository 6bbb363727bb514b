"""The report of a build as plain values: what came in, what each stage left, what differs after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from palate.report.audit_schema import Built, Source, Summary
from palate.report.words import DASH, count, fixed, number, percent

_SHOWN_REASONS = 6


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar. `tone` is kept, bad, dropped or aside."""

    label: str
    rows: int
    tone: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Rows of one source, or of all, by what became of them."""

    title: str
    total: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Pairs that are left after one stage, and what it took."""

    title: str
    pairs: int
    lost: int
    reasons: tuple[tuple[str, int], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number before and after curation."""

    item: str
    before: str
    after: str


def bars(built: Built) -> list[Bar]:
    """One bar a source, the one of all first where there are several."""
    bars = [_bar(source.name, [source]) for source in built.sources if source.read]
    if len(bars) > 1:
        bars.insert(0, _bar("all sources", list(built.sources)))
    return bars


def _bar(title: str, sources: list[Source]) -> Bar:
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for source in sources:
        rejected.update(source.rejected)
        dropped.update(source.dropped)
    kept = sum(source.kept for source in sources)
    segments = [Segment(label="kept", rows=kept, tone="kept")]
    segments += _segments(rejected, "bad", "other unusable rows")
    segments += _segments(dropped, "dropped", "dropped for other reasons")
    merged = sum(source.merged for source in sources)
    aside = sum(source.not_selected for source in sources)
    segments.append(Segment(label="merged into another row", rows=merged, tone="aside"))
    segments.append(Segment(label="not drawn", rows=aside, tone="aside"))
    return Bar(
        title=title,
        total=sum(source.read for source in sources),
        segments=tuple(segment for segment in segments if segment.rows),
    )


def _segments(counts: Counter[str], tone: str, rest: str) -> Iterator[Segment]:
    ranked = counts.most_common()
    # A rest of one is no rest.
    shown = ranked if len(ranked) <= _SHOWN_REASONS else ranked[: _SHOWN_REASONS - 1]
    for reason, rows in shown:
        yield Segment(label=reason, rows=rows, tone=tone)
    if more := sum(rows for _, rows in ranked[len(shown) :]):
        yield Segment(label=rest, rows=more, tone=tone)


def stages(built: Built) -> list[Stage]:
    """Pairs from what the sources gave to what is written; of a build alone."""
    made = sum(source.pairs_made or 0 for source in built.sources)
    if built.inspects or not made:
        return []
    refused: Counter[str] = Counter()
    for source in built.sources:
        refused.update(source.pairs_refused)
    rows = [
        Stage(
            title="pairs made of the rows",
            pairs=made,
            lost=0,
            reasons=tuple(refused.most_common(_SHOWN_REASONS)),
            note="not made" if refused else "",
        )
    ]
    left = made
    for step in built.steps:
        reasons = Counter(step.dropped).most_common(_SHOWN_REASONS)
        rows.append(
            Stage(title=step.title, pairs=step.after, lost=step.lost, reasons=tuple(reasons))
        )
        left = step.after
    written = sum(source.pairs or 0 for source in built.sources)
    if written != left:
        title = "mixture" if built.mixture else "limits of sources"
        rows.append(
            Stage(
                title=title,
                pairs=written,
                lost=left - written,
                reasons=(("not drawn", left - written),),
            )
        )
    return rows


def tiles(built: Built) -> list[tuple[str, str, str]]:
    """(what, number, aside) of the numbers to see first."""
    overall = built.findings.overall
    read = sum(source.read for source in built.sources)
    kept = sum(source.kept for source in built.sources)
    lost = f"{percent(kept / read, 1)} kept" if read else ""
    pairs = overall.pairs if built.train is None else built.train.pairs
    held = f"{number(built.eval.pairs)} held out" if built.eval else ""
    rows = [
        ("rows read", number(read), lost),
        ("pairs" if built.train is None else "pairs to train on", number(pairs), held),
        ("prompts", number(overall.prompts.distinct), _repeated(overall)),
    ]
    if overall.pairs:
        rows += [
            ("longer is chosen", percent(overall.label.share, 1), _interval(overall)),
            ("duplicate pairs", *_part(overall.duplicates.pairs, overall)),
            ("labelled both ways", number(overall.contradictions.pairs), ""),
            ("ties", *_part(overall.ties, overall)),
        ]
        if overall.images.pairs:
            rows.append(("with images", *_part(overall.images.pairs, overall)))
    return rows


def changes(built: Built) -> list[Change]:
    """What curation and mixture have changed."""
    before, after = built.audit.before, built.audit.after
    if before is None or after is None or built.inspects:
        return []
    rows = zip(_numbers(before.overall), _numbers(after.overall), strict=True)
    return [Change(item=a[0], before=a[1], after=b[1]) for a, b in rows]


def _numbers(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "pairs", number(summary.pairs)
    yield "prompts", number(summary.prompts.distinct)
    yield "longer response is the chosen one", percent(summary.label.share)
    together = summary.style.together
    yield "told by length and style alone", percent(together.share) if together else DASH
    for part in ("chosen", "rejected"):
        lengths = summary.length.get("characters", {}).get(part)
        yield f"mean length of {part}, characters", fixed(lengths.mean, 0) if lengths else DASH
    yield "copies of another pair", number(summary.duplicates.pairs)
    yield "pairs labelled both ways", number(summary.contradictions.pairs)
    yield "pairs of two equal responses", number(summary.identical)
    yield "ties", number(summary.ties)
    yield "traces of chat templates", number(sum(summary.template.problems.values()))


def headline(built: Built) -> str:
    """The sentence under the title."""
    read = sum(source.read for source in built.sources)
    sources = count(len(built.sources), "source")
    pairs = built.findings.overall.pairs
    if built.inspects:
        return f"A look at {sources}: {number(read)} rows, {count(pairs, 'pair')}. Nothing changed."
    held = f" and {number(built.eval.pairs)} held out" if built.eval else ""
    train = built.train.pairs if built.train else pairs
    return f"{count(train, 'pair')} to train on{held}, from {number(read)} rows of {sources}."


def _repeated(summary: Summary) -> str:
    repeated = summary.prompts.repeated
    return f"{number(repeated)} in several pairs" if repeated else ""


def _interval(summary: Summary) -> str:
    ci = summary.label.ci
    if ci is None or ci[0] is None or ci[1] is None:
        return ""
    return f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f}%"


def _part(n: int, summary: Summary) -> tuple[str, str]:
    """A number of pairs, and the share of all that it is."""
    return number(n), _share(n, summary)


def _share(n: int, summary: Summary) -> str:
    return percent(n / summary.pairs) if n and summary.pairs else ""
