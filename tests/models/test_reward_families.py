"""Reward models of every family whose classifier transformers has, ours and other people's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoModelForSequenceClassification, GPT2Config

from palate.data.layouts import collate
from palate.errors import ModelError
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward import build_reward_model
from palate.models.reward_config import RewardSpec
from palate.models.reward_files import CONFIG, load_reward_model, save_reward_model
from palate.models.reward_import import SCORE_ON_LAST_STATE
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe
from tiny import CONFIGS, VOCABULARY, rewards_of, tiny_pairs

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Any] = {
    **{name: make for name, make in CONFIGS.items() if name != "gemma3"},
    "gpt2": lambda: GPT2Config(**IDS, **OLD),
    "bigcode": lambda: hf.GPTBigCodeConfig(**IDS, **OLD),
    "neox": lambda: hf.GPTNeoXConfig(**IDS, **SIZES, intermediate_size=48),
    "bloom": lambda: hf.BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: hf.FalconConfig(**IDS, **SIZES),
    "mpt": lambda: hf.MptConfig(**IDS, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    # Its states are projected to another size than the layers have.
    "opt": lambda: hf.OPTConfig(
        **IDS, **SIZES, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=128
    ),
    "neo": lambda: hf.GPTNeoConfig(
        **IDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
    ),
}


def start(family: str, folder: Path) -> Model:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    recipe = ModelRecipe(path=str(folder), dtype="float32")
    spec = RewardSpec(model=recipe, end_tokens={2: "<eos>"})
    return Model.reward(load_model(recipe).base_model, spec).eval()


def scores(model: Model) -> torch.Tensor:
    batch = collate(tiny_pairs(4), layout="plain", pad_id=0, keep_last=True)
    with torch.no_grad():
        return rewards_of(model, batch)


def theirs(folder: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    pairs = tiny_pairs(4)
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    rows = [torch.tensor([*prompt.ids, *response.ids]) for prompt, response in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_head_is_the_classifier_of_its_family(family: str, tmp_path: Path) -> None:
    model = start(family, tmp_path / "base")
    want = scores(model)
    assert want.std() > 0.05
    save_reward_model(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / CONFIG).read_text())["files"] == "classifier"
    torch.testing.assert_close(theirs(tmp_path / "saved"), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores(load_reward_model(tmp_path / "saved")), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_others_trained_scores_as_in_transformers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = FAMILIES[family]()
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "public")
    model = load_reward_model(tmp_path / "public")
    torch.testing.assert_close(scores(model), theirs(tmp_path / "public"), atol=1e-5, rtol=1e-5)
    # Saved by us it is read where it was before.
    save_reward_model(model, tmp_path / "again")
    again = load_reward_model(tmp_path / "again")
    assert again.spec.whole_rendering
    torch.testing.assert_close(scores(again), scores(model))


def test_the_list_of_families_is_tried_whole() -> None:
    tried = {type(make()).__name__.removesuffix("Config") for make in FAMILIES.values()}
    assert {name.removesuffix("ForSequenceClassification") for name in SCORE_ON_LAST_STATE} <= tried


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_training_goes_on_from_a_reward_models_backbone(
    family: str, pooling: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a new head, which is said; a vocabulary head it has where that is the embeddings."""
    model = start(family, tmp_path / "base")
    model.spec = dataclasses.replace(model.spec, pooling=pooling)
    save_reward_model(model, tmp_path / "saved")
    document: dict[str, Any] = {
        "output_dir": tmp_path / "run",
        "model": {"path": str(tmp_path / "saved"), "dtype": "float32"},
        "data": {"train": [{"path": "x.jsonl"}]},
    }
    build_reward_model(RewardRecipe.model_validate(document))
    assert "any head of its own is left out" in caplog.text
    recipe = RewardRecipe.model_validate(document | {"regularise": {"likelihood": {}}})
    if family == "qwen3":
        assert build_reward_model(recipe).vocabulary_head().weight.shape == (VOCABULARY, 32)
    else:
        with pytest.raises(ModelError, match="has no vocabulary head"):
            build_reward_model(recipe)


def test_an_encoder_is_no_reward_model_of_this_kind(tmp_path: Path) -> None:
    config = hf.BertConfig(**IDS, **SIZES, intermediate_size=48, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="`type: classifier`"):
        load_reward_model(tmp_path / "bert")


def test_adapters_on_a_classifiers_backbone_load_again(tmp_path: Path) -> None:
    save_reward_model(start("llama", tmp_path / "base"), tmp_path / "saved")
    document: dict[str, Any] = {
        "output_dir": tmp_path / "run",
        "model": {"path": str(tmp_path / "saved"), "dtype": "float32", "lora": {"r": 2}},
        "data": {"train": [{"path": "x.jsonl"}]},
    }
    model = build_reward_model(RewardRecipe.model_validate(document)).eval()
    save_reward_model(model, tmp_path / "adapter")
    torch.testing.assert_close(scores(load_reward_model(tmp_path / "adapter")), scores(model))
