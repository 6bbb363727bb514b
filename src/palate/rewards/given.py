"""Critiques of the data in the place of written ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from palate.data.content import content_key
from palate.data.critiques import columns_of, critiques_of
from palate.data.images import ImageError, image_root, load
from palate.data.schema import Content, ImageRef, map_images
from palate.data.stream import read_source
from palate.errors import DataError
from palate.recipes.critiques import GivenCritiques
from palate.recipes.images import ImagesRecipe
from palate.rewards.chat import Reply
from palate.rewards.texts import as_chat, response_text

NOT_GIVEN = "the data holds no critique of it"


class Given:
    """Critiques by prompt, its images and the response; of several of one response the first.

    Args:
        seed: of drawing the rows of a source with a limit.

    Attributes:
        name: short, for reports.
        repeated: critiques that another one of the same response came before.

    Raises:
        DataError: data that cannot be read, or without a critique.
    """

    name = "the data"

    def __init__(self, recipe: GivenCritiques, seed: int = 0) -> None:
        self.repeated = 0
        self._critiques: dict[tuple[bytes, str], str] = {}
        reasons: Counter[str] = Counter()
        for source in recipe.data:
            root = image_root(source.path)
            for row in read_source(source, seed=seed, keep=columns_of(recipe)).rows:
                critiques = critiques_of(row, recipe)
                if critiques is None:
                    reasons["not one critique for each response"] += 1
                    continue
                for response, critique in zip(row.responses, critiques, strict=True):
                    if critique is None:
                        reasons["no critique in its column"] += 1
                        continue
                    prompt = row.prompt if response.prompt is None else response.prompt
                    try:
                        key = _key(prompt, response.content, root)
                    except ImageError as error:
                        file, reason = source.path, f"an image: {error.reason}"
                        raise DataError(reason, file=file, row=row.row) from None
                    known = self._critiques.setdefault(key, critique)
                    self.repeated += known != critique
        if not self._critiques:
            reason = "; ".join(reasons) or "no row"
            raise DataError(f"no critique to give: {reason}", file=recipe.data[0].path)

    def critiques(self, prompts: Sequence[Content], responses: Sequence[Content]) -> list[Reply]:
        """The critique of each response; where there is none the reply says why."""
        return [self._reply(*pair) for pair in zip(prompts, responses, strict=True)]

    def _reply(self, prompt: Content, response: Content) -> Reply:
        try:
            critique = self._critiques.get(_key(prompt, response, Path()))
        except ImageError as error:
            return Reply(text="", finished=True, refused=f"has an image: {error.reason}")
        if critique is None:
            return Reply(text="", finished=True, refused=NOT_GIVEN)
        return Reply(text=critique, finished=True)


def _key(prompt: Content, response: Content, root: Path) -> tuple[bytes, str]:
    """
    Raises:
        ImageError: an image of the prompt cannot be read.
    """

    def told(image: ImageRef) -> ImageRef:
        if image.digest is not None:
            return ImageRef(digest=image.digest)
        data = load(image, root, ImagesRecipe())
        return ImageRef(digest=hashlib.sha256(data).hexdigest())

    return content_key(map_images(as_chat(prompt), told)), response_text(response)
