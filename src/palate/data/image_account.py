"""What the images of encoded data are and cost, for data.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.image_counts import ImageCounts
from palate.data.items import Item, Tokens
from palate.data.ledger import spread
from palate.data.placing import ImageTexts


def describe_images(items: Sequence[Item], images: ImageTexts | None) -> dict[str, Any] | None:
    """`describe_texts` of items, a prompt that several responses have once."""
    rows = [(*dict.fromkeys(item.prompts), *item.responses) for item in items]
    return describe_texts(rows, images)


def describe_texts(
    rows: Sequence[Sequence[Tokens]], images: ImageTexts | None
) -> dict[str, Any] | None:
    """The entry `images` of data.json; None where no text has any.

    Args:
        rows: the texts of each row.

    Returns:
        `rows`: those with images or videos. `placed`: how often one stands in a text, `unique`:
        different ones. `tokens`: that stand for them, `total` and `share` of all tokens, and
        `per_row` of the rows with any. Of the files, frames of videos among them: `files`, `bytes`,
        `formats`, `animated` (of these the first frame is shown), `width` and `height` in pixels.
    """
    by_row = [placed for texts in rows if (placed := [i for text in texts for i in text.images])]
    if not by_row or images is None:
        return None
    tokens = [sum(image.length for image in placed) for placed in by_row]
    digests = {image.digest for placed in by_row for image in placed}
    every = sum(sum(map(len, texts)) for texts in rows)
    counts = ImageCounts()
    for digest in digests:
        counts.add(images.infos(digest))
    files = counts.result() or {}
    return {
        "rows": len(by_row),
        "placed": sum(map(len, by_row)),
        "unique": len(digests),
        "tokens": {"total": sum(tokens), "share": sum(tokens) / every, "per_row": spread(tokens)},
        "files": files["unique"],
        **{name: files[name] for name in ("bytes", "formats", "animated", "width", "height")},
    }
