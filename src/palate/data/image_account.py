"""What the images of encoded data are and cost, for data.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.image_counts import ImageCounts
from palate.data.items import Item
from palate.data.ledger import spread
from palate.data.placing import ImageTexts


def describe_images(items: Sequence[Item], images: ImageTexts | None) -> dict[str, Any] | None:
    """The entry `images` of data.json; None where no item has any.

    Returns:
        `rows`: items with images or videos. `placed`: how often one stands in a text, `unique`:
        different ones. `tokens`: that stand for them, `total` and `share` of all tokens, and
        `per_row` of the rows with any. Of the files, frames of videos among them: `files`, `bytes`,
        `formats`, `animated` (of these the first frame is shown), `width` and `height` in pixels.
    """
    by_item = [[image for _, image in item.images] for item in items if item.images]
    if not by_item or images is None:
        return None
    tokens = [sum(image.length for image in placed) for placed in by_item]
    digests = {image.digest for placed in by_item for image in placed}
    every = sum(sum(map(len, (*dict.fromkeys(item.prompts), *item.responses))) for item in items)
    counts = ImageCounts()
    for digest in digests:
        counts.add(images.infos(digest))
    files = counts.result() or {}
    return {
        "rows": len(by_item),
        "placed": sum(map(len, by_item)),
        "unique": len(digests),
        "tokens": {"total": sum(tokens), "share": sum(tokens) / every, "per_row": spread(tokens)},
        "files": files["unique"],
        **{name: files[name] for name in ("bytes", "formats", "animated", "width", "height")},
    }
