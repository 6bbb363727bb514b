"""Pairs of one answer under two images, which only a model that looks can tell apart.

They are made of encoded pairs, after holding out and mixing: an image that cannot be used has cost
its row by then, and each is known by its content. What is drawn for a pair depends on the seed, the
pair's id and, of `mismatched`, on which images there are; not on the order of the rows.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.corrupted_images import corrupted
from palate.data.encode import Drop, Encoder
from palate.data.images import ImageError, load
from palate.data.items import Item
from palate.data.mixture import row_keys
from palate.data.schema import (
    Content,
    ImageRef,
    Preference,
    Response,
    has_video,
    images_in,
    map_images,
)
from palate.errors import RecipeError
from palate.recipes.images import ImageContrastRecipe, ImagesRecipe

TOO_FEW_IMAGES = "image contrast: the other pairs have fewer images than its prompt"
BLOCK = 256
"""Pairs that are made and encoded together; their corrupted images are in memory until then."""


@dataclass(frozen=True, kw_only=True)
class TrainingPair:
    """A pair as it is trained on.

    Attributes:
        root: folder that paths of its images start from.
    """

    item: Item
    row: Preference
    root: Path

    @property
    def prompt(self) -> Content:
        """What its chosen response answers."""
        asked = self.row.chosen.prompt
        return self.row.prompt if asked is None else asked

    @property
    def images(self) -> list[ImageRef]:
        """Those of that prompt, with their digests, where they can be read from anywhere; those of
        videos left out.

        Raises:
            ImageError: one cannot be read any more.
        """
        images = []
        for image in images_in(self.prompt):
            data = load(image, self.root, ImagesRecipe())
            digest = hashlib.sha256(data).hexdigest()
            images.append(replace(image, root=image.root or self.root, digest=digest))
        return images


@dataclass(kw_only=True)
class ImageContrasts:
    """What was made.

    Attributes:
        pairs: by the place of the pair that they are made of; their rows hold digests of images.
        dropped: place and reason of those that could not be made or encoded.
        report: the entry `image_contrast` of data.json.
    """

    pairs: dict[int, tuple[Item, Preference]] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def image_contrasts(
    pairs: Sequence[TrainingPair], recipe: ImageContrastRecipe, encoder: Encoder, seed: int
) -> ImageContrasts:
    """A pair of the chosen response under two images for a share of the pairs with images.

    The chosen response stands under its own prompt, and as rejected under the same prompt with each
    image exchanged. Neither margin nor votes are taken over: nobody compared the two. Its source is
    the pair's with `.image_<kind>` at its end.

    Raises:
        RecipeError: no pair has an image, or there is no second image to exchange it with.
    """
    seeing = [i for i, pair in enumerate(pairs) if _has_images_alone(pair.prompt)]
    usable = [i for i in seeing if not pairs[i].item.pair.tie]
    if not usable:
        raise RecipeError("`data.image_contrast`: no pair of the training data has an image")
    images = {i: pairs[i].images for i in seeing}
    refs = {str(ref.digest): ref for of_pair in images.values() for ref in of_pair}
    digests = sorted(refs)
    if recipe.kind == "mismatched" and len(digests) == 1:
        raise RecipeError(
            "`data.image_contrast.kind`: mismatched needs two images, and the training data has one"
        )
    keys = row_keys(seed, (f"image_contrast|{_name(pairs[i].row)}" for i in usable))
    n = max(1, round(recipe.share * len(usable)))
    drawn = sorted(usable[k] for k in np.argsort(keys, kind="stable")[:n])
    made = ImageContrasts()
    for start in range(0, n, BLOCK):
        rows: dict[int, Preference] = {}
        for i in drawn[start : start + BLOCK]:
            chance = random.Random(f"{seed}|image_contrast|{_name(pairs[i].row)}")
            try:
                changed = _exchanged(images[i], recipe.kind, refs, digests, chance)
            except ImageError as error:
                made.dropped[i] = error.reason
                continue
            rows[i] = _contrast(pairs[i], images[i], recipe.kind, changed)
        for (i, row), encoding in zip(
            rows.items(), encoder.encode(list(rows.values())), strict=True
        ):
            if isinstance(encoding.item, Drop):
                made.dropped[i] = f"image contrast: {encoding.item.reason}"
            else:
                made.pairs[i] = encoding.item, row.with_images(_by_digest)
    made.report = {
        "kind": recipe.kind,
        "pairs_with_images": len(seeing),
        "ties": len(seeing) - len(usable),
        "images": len(digests),
        "drawn": n,
        "made": len(made.pairs),
        "dropped": dict(Counter(made.dropped.values()).most_common()),
        "replaced": len(made.pairs) if recipe.replace else 0,
        "sources": dict(Counter(item.source for item, _ in made.pairs.values()).most_common()),
    }
    return made


def _has_images_alone(prompt: Content) -> bool:
    """Whether it has images, and no video, whose frames would have to be exchanged one by one."""
    return bool(images_in(prompt)) and not has_video(prompt)


def _name(row: Preference) -> str:
    # Ids are told apart within their source.
    return f"{row.source}|{row.id}"


def _exchanged(
    images: Sequence[ImageRef],
    kind: str,
    refs: Mapping[str, ImageRef],
    digests: Sequence[str],
    chance: random.Random,
) -> dict[str, ImageRef]:
    """Of each image, by digest, the one in its place.

    Raises:
        ImageError: there are too few, or one cannot be read any more.
    """
    if kind == "mismatched":
        shown = dict.fromkeys(str(image.digest) for image in images)
        drawn = _others(shown, digests, chance)
        return {digest: refs[next(drawn)] for digest in shown}
    changed = {}
    for image in images:
        data = corrupted(load(image, Path(), ImagesRecipe()), kind, chance)
        changed[str(image.digest)] = ImageRef(data=data, digest=hashlib.sha256(data).hexdigest())
    return changed


def _others(
    images: Collection[str], digests: Sequence[str], chance: random.Random
) -> Iterator[str]:
    """Digests in random order, those of `images` and repetitions left out.

    Raises:
        ImageError: fewer are left than `images` has.
    """
    if len(digests) < 2 * len(images):
        raise ImageError(TOO_FEW_IMAGES)
    seen = set(images)
    while True:
        # A few are refused, however many there are to draw from.
        digest = digests[chance.randrange(len(digests))]
        if digest not in seen:
            seen.add(digest)
            yield digest


def _contrast(
    pair: TrainingPair, images: Sequence[ImageRef], kind: str, changed: Mapping[str, ImageRef]
) -> Preference:
    row, prompt = pair.row, pair.prompt
    placed = iter(images)
    exchanged = map_images(prompt, lambda _: changed[str(next(placed).digest)])
    chosen = row.chosen
    answer = Response(content=chosen.content, generator=chosen.generator)
    rooted = map_images(prompt, lambda image: replace(image, root=image.root or pair.root))
    return Preference(
        id=f"{row.id}/image",
        source=f"{row.source}.image_{kind}",
        kind="pair",
        prompt=rooted,
        responses=(answer, replace(answer, prompt=exchanged)),
        row=row.row,
        extra=row.extra,
    )


def _by_digest(image: ImageRef) -> ImageRef:
    """An image without its file."""
    if image.data is None:
        return image
    return ImageRef(digest=image.digest or hashlib.sha256(image.data).hexdigest())
