"""Models that cannot be loaded: one clear line, at once."""

from __future__ import annotations

import socket

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, OPTConfig

from palate.errors import ModelError
from palate.models.loading import hub_is_needed_and_absent, load_model, load_tokenizer
from palate.recipes.schema import ModelRecipe
from tiny import CONFIGS, FAMILIES


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_a_hub_name_without_a_hub(load, no_network):
    recipe = ModelRecipe(path="someone/no-such-model")
    with pytest.raises(ModelError, match=r"someone/no-such-model: no such folder, not in the "):
        load(recipe)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
@pytest.mark.parametrize("load", [load_tokenizer, load_model])
def test_a_folder_that_is_not_there(load, path):
    with pytest.raises(ModelError, match=r"no such folder$"):
        load(ModelRecipe(path=path))


def test_folders_need_no_hub(tmp_path, no_network):
    assert not hub_is_needed_and_absent(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(
            vocab_size=60,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            dropout=0.5,
            attention_dropout=0.5,
        ),
        GPTBigCodeConfig(
            vocab_size=60,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_inner=16,
            resid_pdrop=0.5,
            embd_pdrop=0.5,
            attn_pdrop=0.5,
        ),
    ],
    ids=["opt", "gpt_bigcode"],
)
def test_no_dropout_is_left_in_training(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(ModelRecipe(path=str(tmp_path), dtype="float32"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        calm = model.eval()(ids).logits
        assert torch.equal(model.train()(ids).logits, calm)


def test_a_checkpoint_without_the_vocabulary_head_is_no_language_model(tmp_path):
    whole = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    whole.model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights lm_head\.weight for LlamaForCausalLM"):
        load_model(ModelRecipe(path=str(tmp_path)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_of_any_family_is_read(family, tmp_path):
    whole = AutoModelForCausalLM.from_config(CONFIGS[family]())
    whole.save_pretrained(tmp_path)
    read = load_model(ModelRecipe(path=str(tmp_path), dtype="float32"))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), read.parameters(), strict=True)
    )
