"""What all pages share: templates that escape, filters for numbers, and small marks."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from palate.report import words
from palate.report.length_notes import length_sentence
from palate.report.notes import splits
from palate.report.style import DASHES, MARKERS, PALETTE, Style

OPEN_PROMPTS = 4
"""Further prompts of the side-by-side samples are folded away."""


def environment() -> Environment:
    """Escapes what is put into a page, and fails on names that are not there."""
    environment = Environment(
        loader=PackageLoader("palate.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "fixed": words.fixed,
        "percent": words.percent,
        "short": lambda value: words.DASH if value is None else f"{value:g}",
        "level": lambda share: f"{100 * share:g}%",
        "span": words.span,
        "seconds": words.seconds,
        "listed": words.listed,
        "swatch": swatch,
        "place": place,
        "coded": coded,
    }
    helpers: dict[str, Any] = {
        "splits": splits,
        "length_sentence": length_sentence,
        "count": words.count,
        "open_prompts": OPEN_PROMPTS,
    }
    environment.globals |= helpers
    return environment


def coded(text: str) -> Markup:
    """The text, what stands between backticks as code.

    >>> coded("see `a<b`")
    Markup('see <code>a&lt;b</code>')
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def place(value: float | None, low: float, high: float) -> str:
    """Where a value lies between two others, in per cent of the way, kept inside."""
    if value is None or not high > low:
        return "0%"
    return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"


_MARKS = {
    "o": '<circle cx="16" cy="6" r="4"/>',
    "s": '<rect x="12.5" y="2.5" width="7" height="7"/>',
    "^": '<path d="M16 1.5 20.5 10h-9z"/>',
    "D": '<path d="M16 1 21 6 16 11 11 6z"/>',
    "v": '<path d="M16 10.5 20.5 2h-9z"/>',
    "P": '<path d="M14.4 1.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2V7.6h-2.9V4.4h2.9z"/>',
    "X": '<path d="m13 1 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
}


def glyph(marker: int, colour: int | None = None) -> Markup:
    """A marker of the figures by itself; grey without a colour."""
    drawn = Markup(_MARKS[MARKERS[marker % len(MARKERS)]])
    tone = "var(--muted)" if colour is None else f"var(--s{colour % len(PALETTE)})"
    return Markup(
        '<svg class="glyph" viewBox="10 0 12 12" aria-hidden="true" style="color:{}">'
        '<g fill="currentColor">{}</g></svg>'
    ).format(tone, drawn)


def swatch(style: Style | None) -> Markup:
    """A series' line and marker as in the figures, for legends and tables."""
    if style is None:
        return Markup("")
    dashes = " ".join(f"{2 * part:g}" for part in DASHES[style.dash])
    return Markup(
        '<svg class="swatch" viewBox="0 0 32 12" aria-hidden="true" style="color:var(--s{})">'
        '<path d="M1 6h30" fill="none" stroke="currentColor" stroke-width="2" '
        'stroke-dasharray="{}"/><g fill="currentColor">{}</g></svg>'
    ).format(style.colour, dashes or "none", Markup(_MARKS[style.marker]))
