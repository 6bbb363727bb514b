"""How large images are shown, what they cost, and what is dropped for it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.images import LONGEST, TOO_LONG, UNFIT, ImageError
from palate.data.pixels import PixelLimits
from palate.errors import ModelError
from palate.models.loading import load_model, load_tokenizer
from palate.models.model import Model
from palate.models.pictures import open_pictures
from palate.models.processor import ImageProcessor, load_processor
from palate.recipes.images import ImagesRecipe, ModelImages
from palate.recipes.schema import DataRecipe, ModelRecipe
from tiny_text import save_tiny
from tiny_vision import save_tiny_vision


def noise(width: int, height: int, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


def recipe_of(folder: Path, family: str, **images: Any) -> ModelRecipe:
    path = folder / family
    if not path.exists():
        save_tiny_vision(path, family)
    return ModelRecipe(path=str(path), dtype="float32", images=ModelImages(**images))


def processor_of(folder: Path, family: str, **images: Any) -> ImageProcessor:
    recipe = recipe_of(folder, family, **images)
    return load_processor(recipe, load_tokenizer(recipe))


@pytest.mark.parametrize("size", [(640, 480), (31, 777), (1, 1), (56, 56), (90, 5)])
def test_scaling_keeps_the_aspect_ratio(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    large = PixelLimits(min_pixels=40_000).applied(image)
    small = PixelLimits(max_pixels=2_000).applied(image)
    assert large.width * large.height >= 40_000 and small.width * small.height <= 2_000
    for made in (large, small):
        assert abs(made.width - made.height * size[0] / size[1]) <= 1 + size[0] / size[1]
    assert PixelLimits(1, 640 * 480).applied(image) is image


def test_qwen_is_given_its_own_options(folders: Path, tmp_path: Path) -> None:
    """One square of 28 x 28 pixels is a token: the product of rows and columns of its grid."""
    wide = noise(400, 200)

    def pixels(**images: Any) -> int:
        grid = processor_of(folders, "qwen2_5_vl", **images).process(wide).grid
        assert grid is not None
        return grid[1] * grid[2] * 28 * 28

    assert pixels() <= 112 * 112
    assert 40_000 < pixels(max_pixels=60_000) <= 60_000
    assert 100_000 <= pixels(min_pixels=100_000, max_pixels=200_000) <= 200_000
    limited = processor_of(folders, "qwen2_5_vl", max_pixels=60_000)
    assert limited.resize is None and limited.digest != processor_of(folders, "qwen2_5_vl").digest
    # Whoever loads the trained model sees images as it did.
    recipe = recipe_of(folders, "qwen2_5_vl")
    limited.save(tmp_path, load_tokenizer(recipe))
    told = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]["size"]
    assert told == {"longest_edge": 60_000, "shortest_edge": 56 * 56}
    with pytest.raises(ModelError, match=r"min_pixels \(100000\) is above max_pixels \(12544\)"):
        processor_of(folders, "qwen2_5_vl", min_pixels=100_000)


@pytest.mark.parametrize("family", ["llava_next", "internvl"])
def test_tiles_by_size_are_fewer_of_an_image_that_is_resized_before(
    folders: Path, family: str
) -> None:
    large = noise(220, 200)
    plain, limited = (
        processor_of(folders, family, **images) for images in ({}, {"max_pixels": 2_000})
    )
    assert plain.resize is None and limited.resize == PixelLimits(None, 2_000)
    assert limited.digest != plain.digest
    texts = [processor.process(large).text for processor in (plain, limited)]
    assert len(texts[1]) < len(texts[0])
    # As if the file had been that small.
    small = PixelLimits(None, 2_000).applied(Image.open(io.BytesIO(large)))
    assert (small.width, small.height) == (46, 42)
    own = plain.processed(small)
    shown = limited.process(large)
    assert own.text == shown.text
    assert all((own.pixels[name] == shown.pixels[name]).all() for name in own.pixels)


@pytest.mark.parametrize("family", ["gemma3", "llava", "idefics3"])
def test_as_many_tokens_for_every_image_is_no_option(folders: Path, family: str) -> None:
    with pytest.raises(ModelError, match="gives every image as many tokens, and has no option"):
        processor_of(folders, family, max_pixels=50_000)


def test_a_model_of_text_alone_has_no_images(tmp_path: Path) -> None:
    save_tiny(tmp_path / "text")
    recipe = ModelRecipe(path=str(tmp_path / "text"), images=ModelImages(max_pixels=9))
    model = Model.policy(load_model(recipe))
    with pytest.raises(ModelError, match=r"`model.images`: .*text sees no images"):
        open_pictures(model, recipe, load_tokenizer(recipe), tmp_path, ImagesRecipe())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "llava_next"])
def test_images_that_a_processor_cannot_take_are_refused(folders: Path, family: str) -> None:
    processor = processor_of(folders, family)
    processor.process(noise(LONGEST, 1))
    with pytest.raises(ImageError, match=TOO_LONG):
        processor.process(noise(LONGEST + 1, 1))


def test_what_a_processor_refuses_costs_its_row(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = processor_of(folders, "llava")

    def refuses(*_: Any, **__: Any) -> None:
        raise ValueError("unfit")

    monkeypatch.setattr(processor.processor, "_process_images", refuses)
    with pytest.raises(ImageError, match=UNFIT):
        processor.process(noise(9, 9))


def encoder_of(folder: Path, family: str, data: DataRecipe) -> Encoder:
    recipe = recipe_of(folder, family)
    tokenizer = load_tokenizer(recipe)
    model = Model.policy(load_model(recipe))
    pictures = open_pictures(model, recipe, tokenizer, folder / "images", ImagesRecipe())
    return Encoder(tokenizer, length=data.length, images=pictures)


def write_rows(folder: Path) -> Path:
    """Rows with 1, 2, 40 and no images, an animation among them."""
    frames = [Image.new("RGB", (60, 60), shade) for shade in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for i in range(3):
        (folder / f"{i}.png").write_bytes(noise(60, 40 + i, i))
    rows = []
    for names in (["0.png"], ["1.png", "moving.gif"], ["2.png"] * 40, []):
        text = "<image>" * len(names) + "What is here?"
        rows.append({"prompt": text, "chosen": "a cat", "rejected": "dogs", "images": names})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def data_of(file: Path, **length: Any) -> DataRecipe:
    limits = {"max_prompt_tokens": 5000} | length
    return DataRecipe.model_validate({"train": [{"path": str(file)}], "length": limits})


def test_rows_over_the_budget_are_dropped_and_the_cost_is_told(
    folders: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path)
    data = data_of(file, max_image_tokens=32)
    made = build(data, encoder_of(folders, "llava", data), kind="pair", seed=0)
    (source,) = made.report["sources"]
    assert source["dropped"] == {"more image tokens than max_image_tokens": 1}
    assert source["kept"] == 3
    images = made.report["images"]
    # 16 tokens an image: 4 x 4 patches of 14 pixels.
    tokens = sum(made.report["train"]["tokens"].values())
    assert images.pop("tokens") == {
        "total": 48,
        "share": 48 / tokens,
        "per_row": {"mean": 24.0, "p50": 24.0, "p95": 31.2, "max": 32.0},
    }
    assert (images["rows"], images["placed"], images["unique"], images["files"]) == (2, 3, 3, 3)
    assert images["formats"] == {"PNG": 2, "GIF": 1} and images["animated"] == 1
    assert images["height"]["max"] == 60


def test_a_text_model_drops_rows_with_images_and_counts_them(tmp_path: Path) -> None:
    file = write_rows(tmp_path)
    save_tiny(tmp_path / "text")
    data = data_of(file)
    tokenizer = load_tokenizer(ModelRecipe(path=str(tmp_path / "text")))
    made = build(data, Encoder(tokenizer, "plain", data.length), kind="pair", seed=0)
    (source,) = made.report["sources"]
    assert source["dropped"] == {"holds images, and the model reads none": 3}
    assert source["kept"] == 1 and made.report["images"] is None
