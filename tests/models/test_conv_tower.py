"""A tower of convolutions alone in FastVLM, a family without a processor class of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from lite_tower import lite_weights, width
from palate.demo.vision import model as module
from palate.demo.vision.model import assembled, image_processor
from palate.demo.vision.tower import tower_config
from palate.errors import ModelError
from palate.models.attention import NAME, torchs_own
from palate.models.loading import load_model, load_tokenizer
from palate.models.processor import load_processor
from palate.recipes.schema import ModelRecipe
from tiny_vision import IMAGE, WORDS, tiny_vision_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    small = tower_config(width_coefficient=0.5, hidden_dim=width(1280, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tower_config", lambda: small)
        assembled(LlamaForCausalLM(config), lite_weights(0.5), IMAGE).save_pretrained(path)
    image_processor(tiny_vision_tokenizer("llava")).save_pretrained(path)
    return path


def test_its_processor_is_the_one_that_was_saved_with_it(folder: Path) -> None:
    recipe = ModelRecipe(path=str(folder))
    processor = load_processor(recipe, load_tokenizer(recipe))
    picture = folder / "picture.png"
    Image.new("RGB", (30, 50), (255, 0, 127)).save(picture)
    shown = processor.process(picture.read_bytes())
    assert shown.text.count(processor.mark) == (module.SIDE // module.PATCH) ** 2
    pixels = shown.pixels["pixel_values"]
    assert pixels.shape == (1, 3, module.SIDE, module.SIDE)
    # What EfficientNet-Lite was trained on: (x - 127) / 128.
    assert torch.equal(pixels.amin((0, 2, 3)), torch.tensor([1.0, -127 / 128, 0.0]))


def test_without_one_it_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    recipe = ModelRecipe(path=str(folder))
    with pytest.raises(ModelError, match="processor"):
        load_processor(ModelRecipe(path=str(tmp_path)), load_tokenizer(recipe))


def test_torchs_attention_runs_the_language_model_beside_it(folder: Path) -> None:
    """transformers gives a network without attention no kernel but eager, which is none."""
    model = load_model(ModelRecipe(path=str(folder), dtype="float32"))
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 20, 30, 40]])
    assert model.config._attn_implementation == NAME
    with torchs_own(model), torch.no_grad():
        assert model.config.get_text_config()._attn_implementation == "sdpa"
        given = model(input_ids=ids).logits
    assert model.config.get_text_config()._attn_implementation == NAME
    with torch.no_grad():
        torch.testing.assert_close(given, plain(input_ids=ids).logits)
