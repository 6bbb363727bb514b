"""Recipes of prompts over small files written on the spot, and what must hold of every reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from palate.data import images
from palate.data.encode import Encoder
from palate.data.images import ImageInfo
from palate.data.placing import ImageText
from palate.data.prompts import PolicyPrompts, read_prompts
from palate.data.schema import ImageRef, VideoRef
from palate.recipes.images import ImagesRecipe
from palate.recipes.load import check_recipe
from palate.recipes.prompts import PromptsRecipe
from palate.recipes.schema import LengthRecipe
from tiny_chat import CHATML, byte_tokenizer

PARTS = """\
{%- for m in messages -%}{{ '<start>' + m.role + '\\n' }}
{%- if m.content is string -%}{{ m.content }}
{%- else -%}{%- for p in m.content -%}{{ p.text if p.type == 'text' else '[image]' }}{%- endfor -%}
{%- endif -%}{{ '<end>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start>assistant\\n' }}{%- endif -%}
"""
"""CHATML with image parts."""


class TwoTokenImages:
    """What an encoder asks about images: `<pad><pad>` stands for each."""

    mark = "[image]"
    videos_as_images = True
    video_frames = 32

    def __init__(self) -> None:
        self.known: dict[str, list[ImageInfo]] = {}

    def of(self, image: ImageRef, root: Path, *, alone: bool = True) -> ImageText:
        info = images.check(images.load(image, root, ImagesRecipe()), ImagesRecipe())
        self.known[info.digest] = [info]
        return ImageText(info.digest, "<pad><pad>", (0, 0))

    def of_video(self, video: VideoRef, root: Path) -> ImageText:
        raise AssertionError("no video here")

    def infos(self, digest: str) -> list[ImageInfo]:
        return self.known[digest]


LENGTH = LengthRecipe(max_prompt_tokens=400)


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def recipe_of(*train: dict[str, Any], **more: Any) -> PromptsRecipe:
    return check_recipe(PromptsRecipe, {"train": list(train), **more}, "recipe")


def encoder(length: LengthRecipe = LENGTH, *, sees: bool = False) -> Encoder:
    tokenizer = byte_tokenizer(template=PARTS if sees else CHATML)
    return Encoder(tokenizer, length=length, images=TwoTokenImages() if sees else None)


def read(
    *train: dict[str, Any],
    seed: int = 0,
    length: LengthRecipe = LENGTH,
    make_scorer: Any = None,
    sees: bool = False,
    **more: Any,
) -> PolicyPrompts:
    """Reads, and checks that every row is accounted for and no prompt is there twice."""
    recipe = recipe_of(*train, **more)
    prompts = read_prompts(recipe, encoder(length, sees=sees), seed=seed, make_scorer=make_scorer)
    check(prompts)
    return prompts


def check(prompts: PolicyPrompts) -> None:
    report = json.loads(json.dumps(prompts.report, allow_nan=False))
    kept = lines = 0
    for source in report["sources"]:
        lost = sum(source["rejected"].values()) + sum(source["dropped"].values())
        unused = source["merged"] + source["not_selected"]
        assert source["read"] == source["kept"] + lost + unused, source
        lines += lost + sum(source["responses_left_out"].values())
        kept += source["kept"]
    every = [*prompts.train, *prompts.eval]
    assert kept == len(every)
    assert lines == len(prompts.quarantine)
    assert len({prompt.tokens for prompt in every}) == len(every)
    assert len({prompt.id for prompt in every}) == len(every)
    assert report["train"]["prompts"] == len(prompts.train)
    assert (report["eval"] or {"prompts": 0})["prompts"] == len(prompts.eval)


def dropped(prompts: PolicyPrompts, source: int = 0) -> dict[str, int]:
    entry: dict[str, int] = prompts.report["sources"][source]["dropped"]
    return entry
