"""Matplotlib figures as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from palate.report.style import PALETTE

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
"""Stand-ins: matplotlib draws in these, the page replaces them by its own variables."""

_STAND_INS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card"}

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "palate",
    "text.parse_math": False,  # a run may be called $x$
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.unicode_minus": True,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


def series_colour(index: int) -> str:
    """Stand-in of a series' colour."""
    return f"#0500{index % len(PALETTE):02x}"


@contextmanager
def page_style(*, for_page: bool) -> Iterator[None]:
    """Matplotlib settings of all our figures: stand-in colours for the page, real ones for a file.

    The user's own matplotlib settings play no part and come back afterwards.
    """
    ink, muted, grid, paper = (
        (INK, MUTED, GRID, PAPER) if for_page else ("#1b1d1f", "#5a5f66", "#e3e2dd", "#ffffff")
    )
    colours = {
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": muted,
        "axes.facecolor": "none" if for_page else paper,
        "figure.facecolor": "none" if for_page else paper,
        "savefig.facecolor": "none" if for_page else paper,
        "xtick.color": muted,
        "ytick.color": muted,
        "grid.color": grid,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A run's name may use letters that the bundled font does not have.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | colours)
        yield


def to_svg(figure: Figure, *, key: str, label: str) -> Markup:
    """The figure as an `<svg>` element: no fixed size, ids unique to `key`, read out as `label`.

    Call inside `page_style`.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for value in values for name in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({k: _page_value(k, v, key) for k, v in attributes.items()})
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": label, "class": "chart"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _page_value(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    value = re.sub(r"(font: [^;]*?px) [^;]*", r"\1 var(--sans)", value)
    return re.sub(r"#0[1-5]\d{4}|#0500[0-9a-f]{2}", _variable, value)


def _variable(match: re.Match[str]) -> str:
    colour = match[0]
    if colour in _STAND_INS:
        return f"var({_STAND_INS[colour]})"
    return f"var(--s{int(colour[5:], 16)})"
