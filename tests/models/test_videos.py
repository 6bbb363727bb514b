"""Videos in Qwen's models, against their own forward pass, positions and processors."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from palate.data.encode import Drop, Encoder
from palate.data.images import ImageError
from palate.data.items import Item
from palate.data.placing import written_out
from palate.data.schema import ImageRef, Preference, Response, VideoRef
from palate.data.templates import Refused
from palate.models.backbone import Backbone
from palate.models.loading import load_model, load_tokenizer
from palate.models.model import Model
from palate.models.pictures import open_pictures
from palate.models.structure import backbone_of
from palate.models.vision import image_features
from palate.recipes.images import ImagesRecipe, ModelImages
from palate.recipes.schema import LengthRecipe, ModelRecipe
from tiny_vision import FAMILIES, IMAGE, VIDEO, save_tiny_vision

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def frame(seed: int, width: int = 64, height: int = 96) -> ImageRef:
    values = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize((width, height)).save(out, "PNG")
    return ImageRef(data=out.getvalue())


class Setting:
    def __init__(self, folder: Path, family: str, **images: Any) -> None:
        path = folder / family
        if not path.exists():
            save_tiny_vision(path, family)
        self.recipe = ModelRecipe(path=str(path), dtype="float32", images=ModelImages(**images))
        self.tokenizer = load_tokenizer(self.recipe)
        self.model = Model.policy(load_model(self.recipe))
        pictures = open_pictures(
            self.model, self.recipe, self.tokenizer, folder / "images", ImagesRecipe()
        )
        assert pictures is not None
        self.pictures = pictures
        self.own: Any = backbone_of(self.model.base)

    def encoder(self, **length: Any) -> Encoder:
        return Encoder(self.tokenizer, length=LengthRecipe(**length), images=self.pictures)

    def item(self, row: Preference) -> Item:
        item = self.encoder(max_prompt_tokens=4000).encode([row])[0].item
        assert isinstance(item, Item), item
        return item


@pytest.fixture(scope="module", params=QWEN)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("video"), request.param)


def row(*parts: str | ImageRef | VideoRef) -> Preference:
    def part_of(part: str | ImageRef | VideoRef) -> Any:
        if isinstance(part, VideoRef):
            return {"type": "video", "video": part}
        if isinstance(part, ImageRef):
            return {"type": "image", "image": part}
        return {"type": "text", "text": part}

    prompt: Any = [{"role": "user", "content": list(map(part_of, parts))}]
    answers: Any = [[{"role": "assistant", "content": text}] for text in (" a cat", " dogs")]
    responses = tuple(Response(content=answer) for answer in answers)
    return Preference(id="r", source="s", kind="pair", prompt=prompt, responses=responses)


LONG = VideoRef(frames=tuple(frame(i) for i in range(7)))
SHORT = VideoRef(frames=(frame(20), frame(21)))
ROWS = [
    row("See ", LONG, " and ", frame(9, 96, 64), "?"),
    row(SHORT, frame(9, 96, 64), SHORT, "What moves?"),
]


def own_patches(setting: Setting, video: VideoRef) -> tuple[Tensor, Tensor]:
    """Patches of a video, [n, 3 * 2 * side * side], from pixels, by the layout of the paper's code:
    groups of frames, then squares of 2 x 2 patches, then channels, frames and pixels."""
    settings = setting.pictures.processor.processor.image_processor
    side, frames = settings.patch_size, []
    refs = list(video.frames) + [video.frames[-1]] * (len(video.frames) % 2)
    for ref in refs:
        shown = setting.pictures.processor.process(ref.data or b"")
        _, rows, columns = shown.pixels["image_grid_thw"][0].tolist()
        # Back to an image: of a picture both frames of a patch are the same one.
        squares = shown.pixels["pixel_values"].numpy()
        grid = squares.reshape(rows // 2, columns // 2, 2, 2, 3, 2, side, side)[..., 0, :, :]
        image = grid.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)
        frames.append(image)
    video_array = np.stack(frames)  # [t, c, h, w]
    t = len(refs) // 2
    shaped = video_array.reshape(t, 2, 3, rows // 2, 2, side, columns // 2, 2, side)
    patches = shaped.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * columns, -1)
    return torch.from_numpy(patches.copy()), torch.tensor([[t, rows, columns]])


def own_inputs(setting: Setting, preference: Preference, ids: list[int]) -> dict[str, Tensor]:
    """What the model's own forward takes: pixels of images and of videos, and what tokens are."""
    parts: Any = preference.prompt[0]["content"]  # type: ignore[index, typeddict-item]
    videos = [own_patches(setting, p["video"]) for p in parts if p["type"] == "video"]
    images = [
        setting.pictures.processor.process(p["image"].data).pixels
        for p in parts
        if p["type"] == "image"
    ]
    row = torch.tensor([ids])
    return {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "mm_token_type_ids": (row == IMAGE).long() + 2 * (row == VIDEO).long(),
        "pixel_values": torch.cat([image["pixel_values"] for image in images]),
        "image_grid_thw": torch.cat([image["image_grid_thw"] for image in images]),
        "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
        "video_grid_thw": torch.cat([grid for _, grid in videos]),
    }


@torch.no_grad()
@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_states_and_positions_are_those_of_the_models_own_forward(
    setting: Setting, layout: Any
) -> None:
    kind = setting.model.config.model_type
    if layout == "shared" and not FAMILIES[kind].shares:
        pytest.skip("layers that are not attention run plain")
    items = [setting.item(preference) for preference in ROWS]
    batch = setting.model.collator(layout, keep_last=True)(items)
    backbone: Backbone = setting.model.backbone
    states = backbone(batch)
    assert batch.target_positions is not None
    place = 0
    for item, preference in zip(items, ROWS, strict=True):
        for prompt, response in item.sequences:
            ids = [*prompt.ids, *response.ids]
            own = own_inputs(setting, preference, ids)
            expected = setting.own(**own, use_cache=False).last_hidden_state[0, len(prompt) :]
            places = batch.target_positions[batch.segment == place]
            assert (expected - states[places]).abs().max() < 2e-5
            grids = {k: v for k, v in own.items() if k.endswith(("ids", "thw"))}
            positions, _ = setting.own.get_rope_index(**grids)
            given = batch.inputs["position_ids"]
            assert torch.equal(positions[:, 0, len(prompt) :], given.flatten(1)[:, places])
            if layout == "plain":
                assert torch.equal(positions[:, 0], given[:, place, : len(ids)])
            place += 1


@torch.no_grad()
def test_a_video_of_two_equal_frames_is_an_image(setting: Setting) -> None:
    still = frame(3)
    shown = setting.pictures.of_video(VideoRef(frames=(still, still)), Path())
    image = setting.pictures.of(still, Path())
    (part,) = shown.placed
    assert part.grid == image.grid and len(part.core) == len(image.core)
    assert set(part.core) == {VIDEO} and part.digest != image.digest
    pixels = [setting.pictures.pixels(text.digest) for text in (part, image)]
    assert pixels[0].keys() == pixels[1].keys()
    assert all(torch.equal(pixels[0][name], pixels[1][name]) for name in pixels[0])
    first, second = (image_features(setting.own, [given], None)[0] for given in pixels)
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_the_order_of_frames_counts(setting: Setting) -> None:
    there = setting.item(row(LONG, "?"))
    back = setting.item(row(VideoRef(frames=LONG.frames[::-1]), "?"))
    assert [i.digest for i in there.prompts[0].images] != [i.digest for i in back.prompts[0].images]
    states = [
        setting.model.backbone(setting.model.collator("plain")([item])) for item in (there, back)
    ]
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_what_is_written_for_a_video(setting: Setting) -> None:
    item = setting.item(row(LONG, "?"))
    text = setting.tokenizer.decode(item.prompts[0].ids)
    pad = setting.tokenizer.convert_ids_to_tokens(VIDEO)
    tokens = 4 * item.prompts[0].images[0].grid[1] * item.prompts[0].images[0].grid[2]  # type: ignore[index]
    assert text.count(pad) == tokens
    if not setting.model.config.model_type.startswith("qwen3"):
        assert f"<user><|vision_start|>{pad * tokens}<|vision_end|>?" in text
        return
    # Two frames a second, two frames a group; the borders of the template are not doubled.
    group = f"<|vision_start|>{pad * (tokens // 4)}<|vision_end|>"
    times = [0.25, 1.25, 2.25, 3.0]
    assert f"<user>{''.join(f'<{t:.1f} seconds>{group}' for t in times)}?" in text


def test_frames_in_time(setting: Setting) -> None:
    """Frames of a known rate are told so: by seconds in the text, or in the positions."""
    quick = VideoRef(frames=LONG.frames, rate=8.0)
    slow, fast = (setting.item(row(video, "?")).prompts[0] for video in (LONG, quick))
    kind = setting.model.config.model_type
    assert (slow.ids == fast.ids) is not kind.startswith("qwen3")
    expected = {"qwen2_5_vl": (2.0, 0.5)}.get(kind, (1.0, 1.0))
    scale = getattr(setting.model.config.vision_config, "tokens_per_second", 2) / 2
    if kind == "qwen2_5_vl":
        expected = (expected[0] * scale, expected[1] * scale)
    assert (slow.images[0].interval, fast.images[0].interval) == expected


def test_videos_that_cannot_be_used_cost_their_row(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    rows = [
        row(VideoRef(file=ImageRef(path="empty")), "?"),
        row(VideoRef(frames=(frame(1), frame(2, 32, 32))), "?"),
        row(VideoRef(frames=(frame(1), ImageRef(data=b"no image"))), "?"),
        row(VideoRef(file=ImageRef(path="nowhere")), "?"),
    ]
    reasons = [encoded.item for encoded in setting.encoder().encode(rows, tmp_path)]
    assert reasons == [
        Drop("a video without frames"),
        Drop("frames of several sizes"),
        Drop("not an image of a known format"),
        Drop("no such file"),
    ]
    over = setting.encoder(max_image_tokens=20, max_prompt_tokens=4000)
    (long, short) = (e.item for e in over.encode([row(LONG, "?"), row(SHORT, "?")]))
    assert long == Drop("more image tokens than max_image_tokens") and isinstance(short, Item)


def test_a_template_that_leaves_a_video_out_is_found(setting: Setting) -> None:
    encoder = setting.encoder(max_prompt_tokens=4000)
    template = setting.tokenizer.chat_template
    assert isinstance(template, str) and "'video'" in template
    setting.tokenizer.chat_template = template.replace("'video'", "'film'")
    try:
        found = Encoder(setting.tokenizer, images=setting.pictures).encode([ROWS[0]])[0].item
    finally:
        setting.tokenizer.chat_template = template
    assert found == Drop("the chat template leaves out an image")
    # A mark of the other kind is none.
    images = [setting.pictures.of(frame(1), Path())]
    pad = setting.tokenizer.convert_ids_to_tokens(VIDEO)
    with pytest.raises(Refused):
        written_out(f"See {pad}", setting.pictures.mark, [replace(images[0], marks=("<x>",))])
    with pytest.raises(Refused):
        written_out("See", setting.pictures.mark, images)
    with pytest.raises(Refused):
        written_out(setting.pictures.mark * 2, setting.pictures.mark, images)
    assert isinstance(encoder.encode([ROWS[0]])[0].item, Item)


def test_frames_are_taken_and_shown_smaller_as_the_recipe_says(tmp_path: Path) -> None:
    few = Setting(tmp_path, "qwen2_5_vl", video_frames=2, frame_max_pixels=56 * 56)
    (image,) = few.item(row(LONG, "?")).prompts[0].images
    assert image.grid is not None and image.grid[0] == 1
    assert image.grid[1] * image.grid[2] * 28 * 28 <= 56 * 56
    # Images are shown as large as ever.
    still = few.pictures.of(frame(1), Path())
    assert still.grid is not None and still.grid[1] * still.grid[2] > image.grid[1] * image.grid[2]


def test_others_are_shown_frames_as_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Setting(tmp_path, "llava", video_frames=3)
    encoder = other.encoder(max_prompt_tokens=4000)
    first, again = (e.item for e in encoder.encode([row("See ", LONG), row(LONG)]))
    assert isinstance(first, Item) and isinstance(again, Item)
    shown = [image.digest for image in first.prompts[0].images]
    frames = [LONG.frames[i] for i in (0, 3, 6)]
    assert shown == [other.pictures.of(ref, Path()).digest for ref in frames]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["this model takes no videos: up to 3 frames of each are shown as images"]
    other.model.backbone(other.model.collator("plain")([first, again]))


def test_frames_of_one_size_alone(setting: Setting) -> None:
    assert setting.pictures.videos is not None
    with pytest.raises(ImageError, match="frames of several sizes"):
        setting.pictures.videos.clip([frame(1).data or b"", frame(2, 32, 32).data or b""], None)
