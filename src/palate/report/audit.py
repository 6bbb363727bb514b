"""The report of a data build or inspection, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from palate.errors import RecipeError, RunError
from palate.recipes.yaml import parse_yaml
from palate.report.audit_diff import Difference, difference
from palate.report.audit_figures import (
    CHOSEN,
    PROMPT,
    REJECTED,
    length_bias_svg,
    lengths_svg,
    margins_svg,
)
from palate.report.audit_notes import audit_notes, contamination
from palate.report.audit_pictures import Gallery, images_view
from palate.report.audit_schema import Built, Example, Findings, LengthGroup, Source, Summary
from palate.report.audit_tables import bars, changes, headline, stages, tiles
from palate.report.page import environment
from palate.report.style import PALETTE
from palate.report.tables import flatten
from palate.report.words import listed, plain
from palate.store.files import read_json, write_text
from palate.store.pictures import Picture

NAME = "report.html"
KINDS = ("build", "inspect")
_DRAWN_SOURCES = 6
"""Further sources have their numbers in the tables."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Figures of one source, or of all."""

    title: str
    summary: Summary
    lengths: Markup | None
    bias: Markup | None
    margins: Markup | None
    faint: bool


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An example with its differences."""

    example: Example
    difference: Difference
    images: tuple[Picture, ...]
    more_images: int


def write_audit_report(
    folder: str | Path, out: str | Path | None = None, title: str | None = None
) -> Path:
    """Writes the report of a folder of `palate data build` or `palate data inspect`.

    Args:
        out: the file, or an existing folder for it; default: report.html in the folder.
        title: default: made from the folder's name.

    Returns:
        The file written: complete in itself, without scripts.

    Raises:
        RunError: no data.json of such a folder, or the file cannot be written.
    """
    folder = Path(folder)
    data = read_json(folder / "data.json")
    if not is_audit(data):
        raise RunError(f"{folder / 'data.json'}: not of a data build or inspection")
    target = folder / NAME if out is None else Path(out)
    if target.is_dir():
        target /= NAME
    write_text(target, render_audit(folder, plain(data), title))
    return target


def is_audit(data: Any) -> bool:
    """Whether this is the content of a data.json of a build or an inspection."""
    return isinstance(data, dict) and data.get("kind") in KINDS


def render_audit(folder: Path, data: dict[str, Any], title: str | None = None) -> str:
    """The report as text."""
    try:
        built = Built.model_validate(data)
        testeds = contamination(built)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{folder / 'data.json'}: {where}: {first['msg']}") from None
    findings = built.findings
    gallery = Gallery.of(folder)
    recipe = _text(folder / "recipe.yaml")
    name = _name(folder, built, recipe)
    what = "A look at" if built.inspects else "Data of"
    return (
        environment()
        .get_template("audit.html.jinja")
        .render(
            sheets=["report.css", "pairs.css", "audit.css"],
            title=plain(title) if title else f"{what} {name}",
            name=name,
            summary=headline(built),
            notes=audit_notes(built, data),
            built=built,
            findings=findings,
            one=findings.overall,
            tiles=tiles(built),
            bars=bars(built),
            stages=stages(built),
            changes=changes(built),
            drawn=_drawn(built),
            named=_named(findings),
            contamination=testeds,
            contaminated=_by_source(testeds),
            images=images_view(built, gallery),
            examples=_examples(findings, gallery),
            parts=(("prompt", PROMPT), ("chosen", CHOSEN), ("rejected", REJECTED)),
            styles={"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
            flat=lambda value: list(flatten(value)),
            facts=_facts,
            recipe=recipe,
            lineage=_lineage(folder),
            palette=PALETTE,
        )
    )


def _name(folder: Path, built: Built, recipe: str | None) -> str:
    """What the data is called, whatever folder it lies in while it is being made."""
    if built.inspects and built.sources:
        names = [source.name for source in built.sources]
        return listed(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"])
    try:
        values = parse_yaml(recipe or "", "recipe.yaml")
    except RecipeError:
        values = None
    out = values.get("output_dir") if isinstance(values, dict) else None
    return Path(out).name if isinstance(out, str) else str(plain(folder.resolve().name))


def _named(findings: Findings) -> list[tuple[str, Summary]]:
    """Sources by name, and all of them first where there are several."""
    named = list(findings.sources.items())
    return [("all sources", findings.overall), *named] if len(named) > 1 else named


def _drawn(built: Built) -> list[Drawn]:
    series = []
    before = built.audit.before if built.audit.after and not built.inspects else None
    for number, (name, summary) in enumerate(_named(built.findings)[: _DRAWN_SOURCES + 1]):
        if not summary.pairs:
            continue
        earlier: tuple[LengthGroup, ...] = ()
        if before is not None:
            of_all = name not in before.sources
            past = before.overall if of_all else before.sources[name]
            if past.label.by_difference != summary.label.by_difference:
                earlier = past.label.by_difference
        key = f"d{number}"
        series.append(
            Drawn(
                title=name,
                summary=summary,
                lengths=lengths_svg(summary, key=f"{key}-lengths", name=name),
                bias=length_bias_svg(
                    summary.label.by_difference, earlier, key=f"{key}-bias", name=name
                ),
                margins=margins_svg(summary.margin, key=f"{key}-margins", name=name),
                faint=bool(earlier),
            )
        )
    return series


def _by_source(sets: list[tuple[str, Any]]) -> list[tuple[str, list[int]]]:
    """Pairs of each source (rows) that hold a prompt of each evaluation set (columns)."""
    names = dict.fromkeys(name for _, tested in sets for name in tested.by_source)
    return [
        (name, [sum(tested.by_source.get(name, {}).values()) for _, tested in sets])
        for name in names
    ]


def _examples(findings: Findings, gallery: Gallery) -> list[tuple[str, list[Shown]]]:
    return [
        (name, [_shown(example, gallery) for example in source.examples])
        for name, source in findings.sources.items()
        if source.examples
    ]


def _shown(example: Example, gallery: Gallery) -> Shown:
    images = gallery.show(example.digests) if gallery.record.pictures else ()
    return Shown(
        example=example,
        difference=difference(example.chosen.text, example.rejected.text),
        images=images,
        more_images=max(0, example.images - len(images)) if images else 0,
    )


def _facts(source: Source) -> list[tuple[str, str]]:
    """What is known of a source besides its rows."""
    facts = [
        ("read as", source.format),
        ("because", source.recognised),
        ("licence", source.licence),
        ("SHA-256", source.sha256),
    ]
    return [(item, text) for item, text in facts if text]


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    text: str = plain(path.read_bytes().decode("utf-8", "replace"))
    return text


def _lineage(folder: Path) -> list[tuple[str, str]]:
    path = folder / "lineage.json"
    if not path.is_file():
        return []
    try:
        return [row for row in flatten(plain(read_json(path))) if row[0]]
    except RunError:
        return []
