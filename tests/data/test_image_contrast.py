"""Pairs of one answer under two images: what stands where, what is shown, what is counted."""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palate.data.build import Dataset, build
from palate.data.corrupted_images import CORRUPTIONS, corrupted
from palate.data.encode import Encoder
from palate.data.image_contrast import TOO_FEW_IMAGES, TrainingPair, image_contrasts
from palate.data.images import ImageInfo, check, load
from palate.data.items import Item, PairLabel
from palate.data.placing import ImageText
from palate.data.schema import ImageRef, VideoRef
from palate.errors import RecipeError
from palate.recipes.images import ImageContrastRecipe, ImagesRecipe
from palate.recipes.schema import DataRecipe, DataSource
from tiny_vision import tiny_vision_tokenizer

FILES = ("a", "b", "c", "d")


class Texts:
    """Two tokens for every image, and the files that were asked for."""

    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    videos_as_images = True
    video_frames = 32

    def __init__(self, tokenizer: Any) -> None:
        self.core = tuple(tokenizer("<|image_pad|>" * 2, add_special_tokens=False)["input_ids"])
        self.files: dict[str, bytes] = {}
        self.known: dict[str, list[ImageInfo]] = {}

    def of(self, image: ImageRef, root: Path, *, alone: bool = True) -> ImageText:
        data = load(image, root, ImagesRecipe())
        info = check(data, ImagesRecipe())
        self.files[info.digest] = data
        self.known[info.digest] = [info]
        return ImageText(info.digest, "<|image_pad|>" * 2, self.core)

    def of_video(self, video: VideoRef, root: Path) -> ImageText:
        raise AssertionError("no video here")

    def infos(self, digest: str) -> list[ImageInfo]:
        return self.known[digest]


def picture(number: int, size: tuple[int, int] = (40, 24)) -> bytes:
    squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


OWN = {name: picture(number) for number, name in enumerate(FILES)}
SHOWN = (["a"], ["b"], ["a", "b"], [], ["c"], ["a"])


def written(folder: Path, shown: Any = SHOWN, **more: Any) -> DataSource:
    folder.mkdir(exist_ok=True)
    for name, data in OWN.items():
        (folder / f"{name}.png").write_bytes(data)
    rows = []
    for i, names in enumerate(shown):
        parts: list[Any] = [{"type": "image"} for _ in names]
        parts.append({"type": "text", "text": f"What is here, {i}?"})
        rows.append(
            {
                "prompt": [{"role": "user", "content": parts if names else f"What is here, {i}?"}],
                "chosen": [{"role": "assistant", "content": f" squares {i}"}],
                "rejected": [{"role": "assistant", "content": " nothing"}],
                "images": [f"{name}.png" for name in names],
                "margin": 2.0,
            }
            | more
        )
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(file))


def made(
    source: DataSource, contrast: dict[str, Any], *, seed: int = 0, kind: Any = "pair", **data: Any
) -> tuple[Dataset, Texts]:
    tokenizer = tiny_vision_tokenizer("qwen2_5_vl")
    texts = Texts(tokenizer)
    recipe = DataRecipe.model_validate({"train": [source], "image_contrast": contrast} | data)
    return build(recipe, Encoder(tokenizer, images=texts), kind=kind, seed=seed), texts


def images(item: Item, side: int) -> list[str]:
    return [image.digest for image in item.prompts[side].images]


def contrasts(data: Dataset) -> dict[str, Item]:
    """By the id of the pair that they are made of."""
    return {
        item.id.removesuffix("/image"): item for item in data.train if item.id.endswith("/image")
    }


@pytest.mark.parametrize("kind", ["mismatched", *CORRUPTIONS])
def test_the_same_answer_stands_under_two_images(tmp_path: Path, kind: str) -> None:
    # With a fourth picture the row with two of them has two others.
    data, texts = made(written(tmp_path, [*SHOWN, ["d"]]), {"kind": kind})
    by_id = contrasts(data)
    plain = [item for item in data.train if not item.id.endswith("/image")]
    assert len(plain) == 7 and len(by_id) == 6
    assert {item.id for item in plain if item.prompts[0].images} == set(by_id)
    for item in plain:
        if item.id not in by_id:
            continue
        contrast = by_id[item.id]
        # Chosen is the row's own chosen response to its own prompt, and rejected says the same.
        assert contrast.sequences[0] == item.sequences[0]
        assert contrast.responses[1] == item.responses[0]
        assert contrast.prompts[1].ids == item.prompts[0].ids
        assert set(images(contrast, 1)).isdisjoint(images(item, 0))
        # Blank images of one size are one file.
        distinct = 1 if kind == "blank" else len(images(item, 0))
        assert len(set(images(contrast, 1))) == distinct
        assert contrast.source == f"pairs.image_{kind}"
        # Nobody compared the two: there is no margin and no vote.
        assert item.pair.margin == 2.0
        assert contrast.pair.margin is None and contrast.pair.probability is None
        for shown, exchanged in zip(images(item, 0), images(contrast, 1), strict=True):
            if kind == "mismatched":
                assert exchanged in map(digest, OWN.values())
            else:
                assert pixels(texts.files[exchanged]).shape == pixels(texts.files[shown]).shape
    assert data.report["image_contrast"] == {
        "kind": kind,
        "pairs_with_images": 6,
        "ties": 0,
        "images": 4,
        "drawn": 6,
        "made": 6,
        "dropped": {},
        "replaced": 0,
        "sources": {f"pairs.image_{kind}": 6},
    }
    assert data.report["train"]["pairs"] == 13
    assert [item.id for item in data.train] == [row.id for row in data.train_rows]
    assert [item.index for item in data.train] == list(range(13))
    # Files of corrupted images do not stay in memory with the rows.
    assert all(image.data is None for row in data.train_rows for image in row.all_images)


def test_a_share_in_the_place_of_its_pairs_by_seed_and_in_any_order(tmp_path: Path) -> None:
    shown = [[FILES[i % 4]] for i in range(20)]
    contrast = {"kind": "mismatched", "share": 0.5, "replace": True}
    source = written(tmp_path, shown)
    data, _ = made(source, contrast)
    drawn = contrasts(data)
    assert len(data.train) == 20 and len(drawn) == 10
    assert data.report["image_contrast"]["replaced"] == 10
    again, _ = made(source, contrast)
    assert again.train == data.train
    by_seed, _ = made(source, contrast, seed=1)
    assert set(contrasts(by_seed)) != set(drawn)
    # A smaller share is part of a larger one, with the same images.
    fewer, _ = made(source, contrast | {"share": 0.2})
    assert len(contrasts(fewer)) == 4
    assert all(item.sequences == drawn[id].sequences for id, item in contrasts(fewer).items())
    lines = Path(source.path).read_text().splitlines(keepends=True)
    named = [json.dumps(json.loads(line) | {"id": f"r{i}"}) + "\n" for i, line in enumerate(lines)]
    sides = []
    for order in (named, named[::-1]):
        Path(source.path).write_text("".join(order))
        ordered, _ = made(source, contrast)
        sides.append({id: item.sequences for id, item in contrasts(ordered).items()})
    assert sides[0] == sides[1]


def test_held_out_pairs_stay_as_they_are(tmp_path: Path) -> None:
    source = written(tmp_path, [[FILES[i % 4]] for i in range(20)])
    data, _ = made(source, {"kind": "blank"}, eval_fraction=0.3)
    plain, _ = made(source, {"kind": "blank", "share": 0.01, "replace": True}, eval_fraction=0.3)
    assert data.eval and [i.sequences for i in data.eval] == [i.sequences for i in plain.eval]
    assert not any("/image" in item.id for item in data.eval)
    assert data.report["image_contrast"]["drawn"] == 20 - len(data.eval)
    shared = {item.prompts[0].ids for item in data.train} & {i.prompts[0].ids for i in data.eval}
    assert not shared


def test_of_a_tie_nobody_chose_the_answer(tmp_path: Path) -> None:
    source = written(tmp_path, [["a"], ["b"], ["c"]])
    data, texts = made(source, {"kind": "blank", "share": 0.01, "replace": True})
    encoder = Encoder(tiny_vision_tokenizer("qwen2_5_vl"), images=texts)
    pairs = [
        TrainingPair(item=item, row=row, root=tmp_path)
        for item, row in zip(data.train, data.train_rows, strict=True)
    ]
    tie = replace(pairs[0].item, label=PairLabel(tie=True))
    recipe = ImageContrastRecipe(kind="blank")
    of_two = image_contrasts([replace(pairs[0], item=tie), *pairs[1:]], recipe, encoder, 0)
    assert set(of_two.pairs) == {1, 2}
    assert (of_two.report["pairs_with_images"], of_two.report["ties"]) == (3, 1)
    with pytest.raises(RecipeError, match="no pair of the training data has an image"):
        image_contrasts([replace(pairs[0], item=tie)], recipe, encoder, 0)


def test_a_row_that_needs_more_images_than_there_are_is_counted(tmp_path: Path) -> None:
    data, _ = made(written(tmp_path, [["a"], ["b"], ["a", "b"], ["c"]]), {"kind": "mismatched"})
    report = data.report["image_contrast"]
    assert (report["drawn"], report["made"]) == (4, 3)
    assert report["dropped"] == {TOO_FEW_IMAGES: 1}
    (line,) = data.quarantine
    assert (line["row"], line["field"], line["reason"]) == (3, "images", TOO_FEW_IMAGES)


@pytest.mark.parametrize(
    ("shown", "contrast", "message"),
    [
        ([[], []], {"kind": "crop"}, "no pair of the training data has an image"),
        ([["a"], ["a"]], {"kind": "mismatched"}, "needs two images, and the training data has one"),
    ],
)
def test_refused_where_there_is_nothing_to_exchange(
    tmp_path: Path, shown: Any, contrast: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        made(written(tmp_path, shown), contrast)
    assert "data.image_contrast" in str(error.value) and "\n" not in str(error.value)


def test_refused_where_no_pairs_or_no_images_are_taken(tmp_path: Path) -> None:
    source = written(tmp_path)
    for kind in ("unpaired", "demonstration", "rated"):
        with pytest.raises(RecipeError, match=r"`data.image_contrast`: makes pairs"):
            made(source, {"kind": "crop"}, kind=kind)
    data = DataRecipe.model_validate({"train": [source], "image_contrast": {"kind": "crop"}})
    with pytest.raises(RecipeError, match="this model sees no images"):
        build(data, Encoder(tiny_vision_tokenizer("qwen2_5_vl")), kind="pair", seed=0)


def test_a_crop_keeps_less_than_a_fifth() -> None:
    """Each pixel says where it is: a crop's values tell what part it was."""
    width, height = 200, 100
    y, x = np.mgrid[0:height, 0:width]
    place = np.stack([x * 255 / width, y * 255 / height, 0 * x], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(place).save(file, "PNG")
    shares, corners = [], set()
    for seed in range(40):
        part = pixels(corrupted(file.getvalue(), "crop", random.Random(seed)))
        assert part.shape == (height, width, 3)
        low, high = part.min((0, 1)), part.max((0, 1))
        shares.append(float(np.prod((high - low)[:2] / 255)))
        corners.add((low[0] // 32, low[1] // 32))
    assert max(shares) < 0.2 and min(shares) < 0.05 and len(corners) > 8


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_corruptions_are_decided_by_their_seed_and_hide_the_picture(kind: str) -> None:
    data = picture(3, (64, 48))
    first, again, drawn_anew = (corrupted(data, kind, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first == drawn_anew) is (kind in ("blur", "blank"))
    assert check(first, ImagesRecipe()).format == "PNG"
    before, after = pixels(data), pixels(first)
    sharp = np.abs(np.diff(before, axis=1)).max()
    if kind == "blur":
        assert np.abs(np.diff(after, axis=1)).max() < sharp / 4
        # Colours stay where they were.
        assert np.abs(after.mean((0, 1)) - before.mean((0, 1))).max() < 3
    elif kind == "noise":
        related = np.corrcoef(before.ravel(), after.ravel())[0, 1]
        assert 0.1 < related < 0.7
    elif kind == "blank":
        assert len(np.unique(after)) == 1
