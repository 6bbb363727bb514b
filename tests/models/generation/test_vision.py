"""Responses to prompts with images and videos: seen once, positions go on, image tokens are never
drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from palate.data.encode import Encoder
from palate.data.schema import ImageRef, VideoRef
from palate.errors import ModelError
from palate.models.generation.draws import draw, uniforms
from palate.models.generation.engine import Prompt, Sampling
from palate.models.generation.local import LocalEngine
from palate.models.generation.next_token import last_logits
from palate.models.generation.rows import features_of, left_padded
from palate.models.loading import load_model, load_tokenizer
from palate.models.model import Model
from palate.models.pictures import open_pictures
from palate.models.structure import backbone_of
from palate.recipes.images import ImagesRecipe
from palate.recipes.schema import LengthRecipe, ModelRecipe
from tiny_vision import save_tiny_vision


def frame(seed: int, width: int = 64, height: int = 96) -> ImageRef:
    values = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).resize((width, height)).save(out, "PNG")
    return ImageRef(data=out.getvalue())


def user(*parts: Any) -> Any:
    kinds = {str: "text", ImageRef: "image", VideoRef: "video"}
    content = [{"type": kinds[type(p)], kinds[type(p)]: p} for p in parts]
    return [{"role": "user", "content": content}]


PROMPTS = [
    user(frame(1), "What is it?"),
    user("See ", frame(2, 96, 64), " and ", frame(1), "?"),
    user("Nothing to see."),
]
FILM = user("See ", VideoRef(frames=tuple(frame(i) for i in range(5))), frame(1), "?")


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "qwen2_5_vl", "qwen3_5", "idefics3"])
def test_responses_follow_what_the_model_sees(family: str, tmp_path: Path) -> None:
    save_tiny_vision(tmp_path / "model", family)
    recipe = ModelRecipe(path=str(tmp_path / "model"), dtype="float32")
    tokenizer = load_tokenizer(recipe)
    policy = Model.policy(load_model(recipe)).eval()
    policy.pictures = open_pictures(policy, recipe, tokenizer, tmp_path / "images", ImagesRecipe())
    length = LengthRecipe(max_prompt_tokens=4000)
    encoder = Encoder(tokenizer, length=length, images=policy.pictures)
    contents = [*PROMPTS, FILM] if family.startswith("qwen") else PROMPTS
    prompts = [encoder.encode_prompt(content) for content in contents]
    vision = policy.backbone.vision
    assert vision is not None
    if family.startswith("qwen"):
        assert vision.video in prompts[-1].ids
    runs = []
    backbone: Any = backbone_of(policy.base)
    get = backbone.get_image_features
    backbone.get_image_features = lambda **given: runs.append(len(given)) or get(**given)
    sampling = Sampling(max_new_tokens=8, samples_per_prompt=3, seed=1)
    asked = [Prompt(tokens=p, content=c) for p, c in zip(prompts, contents, strict=True)]
    together = LocalEngine(policy, tokenizer, batch_size=32).generate(asked, sampling)
    # One pass of the tower over the images of one size, whatever the prompts and samples.
    assert 0 < len(runs) <= 3
    del backbone.get_image_features
    alone = LocalEngine(policy, tokenizer, batch_size=1).generate(asked, sampling)
    assert [c.response_ids for c in together] == [c.response_ids for c in alone]
    never = [token for token in vision.seen if token >= 0]
    for c in together:
        prompt, n = prompts[c.prompt], len(c.response_ids)
        assert not set(c.response_ids) & set(never)
        # As one sequence, without a cache.
        inputs, _ = left_padded([(prompt, c.response_ids)], 0, vision)
        with torch.no_grad():
            out = backbone(**inputs, **features_of(policy, [prompt]), use_cache=False)
        logits = last_logits(out.last_hidden_state[0, -n - 1 : -1], policy.vocabulary_head())
        logits[:, never] = -torch.inf
        token, logp = draw(logits.detach(), torch.from_numpy(uniforms(1, prompt, c.index, n)))
        assert tuple(token.tolist()) == c.response_ids
        assert c.logps == pytest.approx(logp.tolist(), abs=2e-3)
    # Another image, another distribution.
    (other,) = LocalEngine(policy, tokenizer).write(
        [encoder.encode_prompt(user(frame(7), "What is it?"))], Sampling(max_new_tokens=8, seed=1)
    )
    assert other.prompt_ids == together[0].prompt_ids
    assert other.logps != pytest.approx(together[0].logps, abs=1e-4)
    policy.pictures = None
    with pytest.raises(ModelError, match="prompts with images, and no processor"):
        LocalEngine(policy, tokenizer).write(prompts[:1], sampling)
