"""Rows with images as a model is given them, against its own processor and its own forward."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from palate.data import trees
from palate.data.encode import Drop, Encoder
from palate.data.items import Item
from palate.data.pixels import decoded, upright
from palate.data.schema import ImageRef, Preference, Response
from palate.errors import ModelError
from palate.models import vision
from palate.models.backbone import Backbone
from palate.models.check import check_pairs, layout_check, start_check
from palate.models.loading import load_model, load_tokenizer
from palate.models.model import Model
from palate.models.pictures import Pictures, open_pictures
from palate.models.structure import backbone_of
from palate.recipes.images import ImagesRecipe
from palate.recipes.schema import LengthRecipe, ModelRecipe
from tiny_vision import COMPARED, FAMILIES, IMAGE, PROCESSED, save_tiny_vision


def picture(seed: int, width: int, height: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


PICTURES = {"a": picture(0, 70, 50), "b": picture(1, 60, 90), "c": picture(2, 64, 64)}


def turn(role: str, *parts: str) -> dict[str, Any]:
    """A turn of texts, and of images by their names in brackets."""
    return {
        "role": role,
        "content": [
            {"type": "image", "image": ImageRef(data=PICTURES[part[1]])}
            if part.startswith("[")
            else {"type": "text", "text": part}
            for part in parts
        ],
    }


def row(prompt: list[Any], *answers: str) -> Preference:
    responses = tuple(Response(content=[turn("assistant", text)]) for text in answers)  # type: ignore[list-item]
    return Preference(id="r", source="s", kind="pair", prompt=prompt, responses=responses)


ROWS = [
    row([turn("user", "What differs between ", "[a]", " and ", "[b]", "?")], " size", " colour"),
    row(
        [
            turn("user", "Hello"),
            turn("assistant", "Hello."),
            turn("user", "[b]", "[a]", "Which is higher?"),
        ],
        " the first",
        " none",
    ),
    row([turn("user", "No picture.")], " yes", " no"),
]


class Setting:
    def __init__(self, folder: Path, family: str) -> None:
        self.recipe = ModelRecipe(path=str(save_tiny_vision(folder / family, family)))
        self.recipe = self.recipe.model_copy(update={"dtype": "float32"})
        self.tokenizer = load_tokenizer(self.recipe)
        self.model = Model.policy(load_model(self.recipe))
        store = folder / "images"
        pictures = open_pictures(self.model, self.recipe, self.tokenizer, store, ImagesRecipe())
        assert pictures is not None
        self.pictures: Pictures = pictures
        length = LengthRecipe(max_prompt_tokens=1000)
        self.encoder = Encoder(self.tokenizer, length=length, images=pictures)

    def items(self) -> list[Item]:
        encoded = [e.item for e in self.encoder.encode(ROWS)]
        return [item for item in encoded if isinstance(item, Item)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Setting]:
    folder = tmp_path_factory.mktemp("vision")
    return functools.cache(lambda family: Setting(folder, family))


@pytest.fixture(scope="module", params=PROCESSED)
def setting(request: pytest.FixtureRequest, settings: Callable[[str], Setting]) -> Setting:
    return settings(request.param)


@pytest.fixture(scope="module", params=[*PROCESSED, *COMPARED])
def compared(request: pytest.FixtureRequest, settings: Callable[[str], Setting]) -> Setting:
    return settings(request.param)


def own_inputs(setting: Setting, preference: Preference, answer: str) -> Any:
    """By the processor itself, from one text with all images."""
    assert not isinstance(preference.prompt, str)
    bare: list[Any] = [
        {
            "role": t["role"],
            "content": [
                {"type": "image"} if p["type"] == "image" else p  # type: ignore[index]
                for p in t["content"]
            ],
        }
        for t in preference.prompt
    ]
    text = setting.tokenizer.apply_chat_template(bare, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    images = [upright(Image.open(io.BytesIO(image.data or b""))) for image in preference.images]
    processor = setting.pictures.processor.processor
    text += answer + "<eos>"
    return processor(
        text=[text], images=[images] if images else None, return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip


def test_ids_are_those_of_the_familys_processor(compared: Setting) -> None:
    setting = compared
    items = setting.items()
    assert len(items) == len(ROWS)
    for item, preference in zip(items, ROWS, strict=True):
        for side, answer in enumerate(preference.responses):
            text = answer.content[0]["content"][0]["text"]  # type: ignore[index, typeddict-item]
            own = own_inputs(setting, preference, text)["input_ids"][0].tolist()
            assert [*item.prompts[side].ids, *item.responses[side].ids] == list(own)
        placed = item.prompts[0].images
        assert len(placed) == len(preference.images)
        for image in placed:
            inside = item.prompts[0].ids[image.start : image.start + image.length]
            assert inside[0] == inside[-1] == IMAGE


@torch.no_grad()
def test_states_are_those_of_the_models_own_forward_through_its_processor(
    compared: Setting,
) -> None:
    setting = compared
    items = setting.items()
    backbone: Backbone = setting.model.backbone
    family = FAMILIES[setting.model.config.model_type]
    for layout in ("plain", "shared") if family.shares else ("plain",):
        batch = setting.model.collator(layout, keep_last=True)(items)  # type: ignore[arg-type]
        states = backbone(batch)
        place = 0
        for item, preference in zip(items, ROWS, strict=True):
            for side, answer in enumerate(preference.responses):
                text = answer.content[0]["content"][0]["text"]  # type: ignore[index, typeddict-item]
                own = own_inputs(setting, preference, text)
                expected = backbone_of(setting.model.base)(**own, use_cache=False)
                wanted = expected.last_hidden_state[0, len(item.prompts[side]) :]
                assert batch.target_positions is not None
                ours = states[batch.target_positions[batch.segment == place]]
                limit = 2 * family.close
                assert (wanted - ours).abs().max() < limit, (layout, preference.id, side)
                place += 1


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_paligemma_through_its_processor(settings: Callable[[str], Setting]) -> None:
    """It writes BOS behind the images and a line break before the answer, which is a suffix."""
    setting = settings("paligemma")
    preference = row([turn("user", "[a]", "[b]", "What differs?")], " size", " colour")
    item = setting.encoder.encode([preference])[0].item
    assert isinstance(item, Item)
    images = [decoded(image.data or b"") for image in preference.images]
    for layout in ("plain", "shared"):
        batch = setting.model.collator(layout, keep_last=True)([item])  # type: ignore[arg-type]
        states = setting.model.backbone(batch)
        for side, answer in enumerate((" size", " colour")):
            own = setting.pictures.processor.processor(
                text=["<image><image>What differs?"], images=[images], suffix=[answer],
                return_tensors="pt",
            )  # fmt: skip
            ids = [*item.prompts[side].ids, *item.responses[side].ids]
            assert own["input_ids"][0].tolist() == ids
            own.pop("labels", None)
            expected = backbone_of(setting.model.base)(**own, use_cache=False)
            wanted = expected.last_hidden_state[0, len(item.prompts[side]) :]
            assert batch.target_positions is not None
            ours = states[batch.target_positions[batch.segment == side]]
            assert (wanted - ours).abs().max() < 2e-5


def test_llava_onevision_cuts_only_an_image_alone_in_tiles(
    settings: Callable[[str], Setting],
) -> None:
    setting = settings("llava_onevision")
    one, two = (
        setting.encoder.encode([row([turn("user", *parts, "?")], " a", " b")])[0].item
        for parts in (("[a]",), ("[a]", "[b]"))
    )
    assert isinstance(one, Item) and isinstance(two, Item)
    alone, among = one.prompts[0].images[0], two.prompts[0].images[0]
    assert among.length == 17 < alone.length and among.digest != alone.digest
    shapes = [setting.pictures.pixels(i.digest)["pixel_values"].shape[1] for i in (alone, among)]
    assert shapes[1] == 1 < shapes[0]


def test_a_row_whose_image_would_be_cut_is_dropped(setting: Setting) -> None:
    limits = LengthRecipe(max_prompt_tokens=20, prompt="keep_end")
    encoder = Encoder(setting.tokenizer, length=limits, images=setting.pictures)
    first, _, text = (encoded.item for encoded in encoder.encode(ROWS))
    assert first == Drop("an image would be cut off")
    assert isinstance(text, Item)


def test_images_that_cannot_be_used_cost_their_row(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(PICTURES["a"][:200])
    reasons = {}
    for name, ref in {
        "missing": ImageRef(path="nothing.png"),
        "outside": ImageRef(path="../a.png"),
        "cut": ImageRef(path="cut.png"),
        "no image": ImageRef(data=b"text"),
    }.items():
        content: Any = [{"type": "image", "image": ref}, {"type": "text", "text": "What?"}]
        asked: Any = [{"role": "user", "content": content}]
        encoded = setting.encoder.encode([row(asked, " a", " b")], tmp_path)[0].item
        assert isinstance(encoded, Drop)
        reasons[name] = encoded.reason
    assert reasons == {
        "missing": "no such file",
        "outside": "a path that leads out of the image folder",
        "cut": "broken or cut short",
        "no image": "not an image of a known format",
    }


def test_text_that_writes_a_mark_is_refused(setting: Setting) -> None:
    mark = setting.pictures.mark
    encoded = setting.encoder.encode([row([turn("user", f"See {mark}")], " a", " b")])[0].item
    assert encoded == Drop(f"text holds the special token {mark}")


def test_a_picture_is_read_and_processed_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed: list[int] = []
    whole = setting.pictures.processor.process

    def counting(data: bytes, **given: Any) -> Any:
        processed.append(len(data))
        return whole(data, **given)

    monkeypatch.setattr(setting.pictures.processor, "process", counting)
    new = picture(9, 66, 44)
    content: Any = [{"type": "image", "image": ImageRef(data=new)}, {"type": "text", "text": "?"}]
    asked: Any = [{"role": "user", "content": content}]
    items = setting.encoder.encode([row(asked, " a", " b"), row(asked, " c", " d")])
    assert all(isinstance(e.item, Item) for e in items) and len(processed) == 1


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        ("RGBA", (255, 255, 255)),
        ("LA", (255, 255, 255)),
        ("P", (200, 10, 10)),
        ("CMYK", (255, 0, 0)),
        ("I;16", (128, 128, 128)),
        ("1", (255, 255, 255)),
    ],
)
def test_modes_become_rgb(mode: str, shown: tuple[int, int, int]) -> None:
    if mode == "RGBA":
        image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    elif mode == "LA":
        image = Image.new("LA", (4, 4), (10, 0))
    elif mode == "P":
        image = Image.new("RGB", (4, 4), (200, 10, 10)).quantize(2)
    elif mode == "CMYK":
        image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    elif mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))
    else:
        image = Image.new("1", (4, 4), 1)
    made = upright(image)
    assert made.mode == "RGB"
    pixel = made.getpixel((1, 1))
    assert isinstance(pixel, tuple) and np.allclose(pixel, shown, atol=3)


def test_images_stand_upright_and_of_animations_the_first_frame_is_taken() -> None:
    values = np.zeros((2, 3, 3), dtype=np.uint8)
    values[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", exif=exif)
    turned = np.asarray(upright(Image.open(io.BytesIO(file.getvalue()))))
    assert turned.shape == (3, 2, 3) and turned[0, 1, 0] == 255
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    shown = Image.open(io.BytesIO(file.getvalue()))
    shown.seek(1)
    assert upright(shown).getpixel((0, 0)) == (250, 0, 0)


def test_the_start_check_looks_at_images_and_the_layout_is_shared(setting: Setting) -> None:
    start_check(setting.model)
    verdict = layout_check(setting.model)
    assert verdict.ok, verdict.reason
    pairs = check_pairs(setting.model.vocabulary, 32, pictures=setting.pictures)
    assert [len(pair.prompts[0].images) for pair in pairs] == [0, 0, 0, 2]


@pytest.mark.parametrize("broken", ["positions", "token types", "features"], ids=lambda name: name)
def test_the_start_check_sees_what_is_wrong(
    setting: Setting, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = setting.model.config.model_type
    if broken == "token types" and kind != "gemma3":
        pytest.skip("sees no later token")
    if broken == "positions" and not kind.startswith("qwen"):
        pytest.skip("positions are those of text")
    if broken == "positions":
        plain = trees._positions
        monkeypatch.setattr(trees, "_positions", lambda n, placed, axes: plain(n, (), axes))
    elif broken == "features":
        whole = vision.encoder_output
        monkeypatch.setattr(
            vision,
            "encoder_output",
            lambda features, order: whole(features[::-1], order),
        )
    else:
        layout = dataclasses.replace(setting.model.backbone.vision, blocks=False)  # type: ignore[type-var]
        monkeypatch.setattr(Backbone, "vision", layout)
    with pytest.raises(ModelError, match="gives other log-probs"):
        start_check(setting.model)
