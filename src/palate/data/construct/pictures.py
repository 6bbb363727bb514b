"""pictures.json: the images of a build or an inspection that its report shows, made small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.data.construct.ingest import Source, image_counts
from palate.data.construct.process import IMAGE_FOLDER
from palate.data.schema import ImageRef
from palate.recipes.images import ImagesRecipe
from palate.store.pictures import NAME, PictureBudget, Pictures
from palate.store.records import write_record

if TYPE_CHECKING:
    from palate.data.image_counts import ImageCounts

MOST_SEEN, SAMPLE = 4, 20


def write_pictures(
    out: Path,
    sources: Sequence[Source],
    findings: dict[str, Any],
    *,
    staged: Path,
    limits: ImagesRecipe,
    seed: int,
) -> None:
    """Writes the images that come back most, some drawn by the seed, and those of the audit's
    examples; nothing where there are no images.

    Args:
        out: folder of the file. findings: from `Audit.result`. staged: folder whose subfolder
            `images` holds the checked images.

    Raises:
        RunError: it cannot be written.
    """
    counts = image_counts(sources)
    if counts is None:
        return
    # Most data has no images, and needs nothing that decodes them.
    from palate.data.thumbnails import picture

    often = counts.most_seen(MOST_SEEN)
    drawn = [info.digest for info in counts.drawn(SAMPLE, seed)]
    times = {info.digest: n for info, n in often}
    budget = PictureBudget()
    made = []
    for digest in dict.fromkeys([*times, *drawn, *_of_examples(findings)]):
        if (image := _stored(counts, digest, staged)) is not None:
            small = budget.take(picture(image, limits))
            made.append(small.model_copy(update={"times": times.get(digest)}))
    record = Pictures(
        pictures=tuple(made),
        most_seen=tuple(times),
        sample=tuple(drawn),
        left_out=budget.left_out,
    )
    write_record(out / NAME, record)


def _stored(counts: ImageCounts, digest: str, staged: Path) -> ImageRef | None:
    info = counts.info(digest)
    if info is None:
        return None
    return ImageRef(path=info.name, digest=digest, root=staged / IMAGE_FOLDER)


def _of_examples(findings: dict[str, Any]) -> Iterator[str]:
    for source in findings["sources"].values():
        for example in source["examples"]:
            yield from example["digests"]
