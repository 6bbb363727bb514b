"""The images of an audit as plain values: a contact sheet, those that come back, their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from palate.report.audit_figures import image_bars_svg
from palate.report.audit_schema import Built
from palate.report.words import count
from palate.store.pictures import NAME, Picture, PictureBudget, Pictures
from palate.store.records import read_record


@dataclass(kw_only=True)
class Gallery:
    """The pictures that a page may show, each at most as often as there is room for.

    Attributes:
        record: of pictures.json; empty where there is none.
    """

    record: Pictures
    budget: PictureBudget = field(default_factory=PictureBudget)

    @classmethod
    def of(cls, folder: Path) -> Gallery:
        """That of a folder.

        Raises:
            RunError: pictures.json is damaged.
        """
        path = folder / NAME
        return cls(record=read_record(path, Pictures) if path.is_file() else Pictures())

    def show(self, digests: Sequence[str]) -> tuple[Picture, ...]:
        """The pictures of some images; those that the file lacks stay empty."""
        known = {picture.digest: picture for picture in self.record.pictures}
        return tuple(
            self.budget.take(known.get(digest, Picture(digest=digest))) for digest in digests
        )


@dataclass(frozen=True, kw_only=True)
class ImagesView:
    """What is drawn of the images.

    Attributes:
        left_out: pictures beyond what a page may hold, in words; empty where there are none.
    """

    most_seen: tuple[Picture, ...]
    sample: tuple[Picture, ...]
    panels: tuple[tuple[str, Markup], ...]
    left_out: str


def images_view(built: Built, gallery: Gallery) -> ImagesView:
    """The images of a build or an inspection."""
    panels = []
    if built.images is not None:
        drawn = (
            ("Longer side", "side", built.images.longer_side, "longer side, pixels"),
            ("Shape", "aspect", built.images.aspect, "width by height"),
        )
        for title, key, bars, axis in drawn:
            label = f"Bar chart: distinct images by {axis}."
            svg = image_bars_svg(bars, key=f"images-{key}", axis=axis, label=label)
            if svg is not None:
                panels.append((title, svg))
    left_out = gallery.record.left_out
    return ImagesView(
        most_seen=gallery.show(gallery.record.most_seen),
        sample=gallery.show(gallery.record.sample),
        panels=tuple(panels),
        left_out=f"{count(left_out, 'picture')} left out to keep the page small" * bool(left_out),
    )
