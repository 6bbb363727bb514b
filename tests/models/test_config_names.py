"""Configurations that older readers take for what they are, and newer ones go on reading."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaTokenizer,
    Qwen2Tokenizer,
)

from palate.models.config_names import add_older_names, save_tokenizer
from tiny import COMMON, CONFIGS
from tiny_chat import CHATML, byte_tokenizer, spacing_tokenizer

PLAIN = {"rope_type": "default", "rope_theta": 3e5}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CASES = {
    "plain": lambda: LlamaConfig(**COMMON, rope_parameters=PLAIN),
    "scaled": lambda: LlamaConfig(**COMMON, rope_parameters={**LINEAR, "rope_theta": 3e5}),
    "by layer": lambda: Gemma3TextConfig(
        **COMMON,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
        rope_parameters={
            "full_attention": {**LINEAR, "rope_theta": 3e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
        },
    ),
}
OLDER = {
    "plain": {"rope_theta": 3e5},
    "scaled": {"rope_theta": 3e5, "rope_scaling": LINEAR},
    "by layer": {"rope_theta": 3e5, "rope_scaling": LINEAR, "rope_local_base_freq": 7e3},
}


@pytest.mark.parametrize("case", CASES)
def test_the_older_names_are_there_and_change_nothing(case, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CASES[case](), dtype=torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    before = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    own = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_names(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    added = {"torch_dtype", "rope_theta", "rope_scaling", "rope_local_base_freq"} & set(document)
    assert {name: document[name] for name in added} == OLDER[case] | {"torch_dtype": "bfloat16"}
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again["rope_parameters"] == own["rope_parameters"] and again["dtype"] == own["dtype"]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, before)
    add_older_names(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == document


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_read_as_before(family, tmp_path):
    CONFIGS[family]().save_pretrained(tmp_path)
    own = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_names(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key: again[key] for key in own} == own


def test_parts_have_their_own(tmp_path):
    part = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": part, "dtype": "float32"}))
    add_older_names(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["text_config"]["rope_theta"] == 5.0 and document["torch_dtype"] == "float32"


LETTERS = ["▁", *(chr(c) for c in range(33, 127))]


def plain_vocabulary(*special):
    return {token: i for i, token in enumerate([*special, *LETTERS])}


TOKENIZERS = {
    "backend": lambda: byte_tokenizer(template=CHATML),
    "backend, no BOS": lambda: byte_tokenizer(adds_bos=False),
    "backend, spaces": spacing_tokenizer,
    "Llama": lambda: LlamaTokenizer(
        vocab=plain_vocabulary("<unk>", "<s>", "</s>"), merges=[], add_bos_token=True
    ),
    "Llama, no BOS": lambda: LlamaTokenizer(
        vocab=plain_vocabulary("<unk>", "<s>", "</s>"), merges=[], add_bos_token=False
    ),
    "Llama, EOS": lambda: LlamaTokenizer(
        vocab=plain_vocabulary("<unk>", "<s>", "</s>"), merges=[], add_eos_token=True
    ),
    "Qwen": lambda: Qwen2Tokenizer(
        vocab={c: i for i, c in enumerate(["<|endoftext|>", *LETTERS])},
        merges=[],
        extra_special_tokens=["<start>", "<end>"],
    ),
}
WRITTEN = {
    "backend": ("PreTrainedTokenizerFast", True, False),
    "backend, no BOS": ("PreTrainedTokenizerFast", False, False),
    "backend, spaces": ("PreTrainedTokenizerFast", False, False),
    "Llama": ("LlamaTokenizer", True, False),
    "Llama, no BOS": ("LlamaTokenizer", False, False),
    "Llama, EOS": ("LlamaTokenizer", False, True),
    "Qwen": ("Qwen2Tokenizer", False, False),
}
"""Class, and whether texts are begun and ended."""


def behaviour(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["Hello there,  you!", "<start>a<end>\nb</s>", "", "<eos><|endoftext|>"]
    return {
        "class": type(tokenizer),
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        "pair": dict(tokenizer("a", "b")),
        "special": (tokenizer.all_special_tokens, tokenizer.extra_special_tokens),
        "named": tokenizer.special_tokens_map,
        "inputs": tokenizer.model_input_names,
        "template": tokenizer.chat_template,
        "sides": (tokenizer.padding_side, tokenizer.model_max_length, len(tokenizer)),
        "bos": (tokenizer.add_bos_token, tokenizer.add_eos_token),
    }


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("family", [None, *CONFIGS])
def test_a_tokenizer_is_written_in_older_words_and_read_as_before(kind, family, tmp_path):
    tokenizer = TOKENIZERS[kind]()
    for name in ("own", "ours"):
        (tmp_path / name).mkdir()
        if family is not None:
            CONFIGS[family]().save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "own")
    save_tokenizer(tokenizer, tmp_path / "ours")
    assert behaviour(tmp_path / "ours") == behaviour(tmp_path / "own")
    document = json.loads((tmp_path / "ours/tokenizer_config.json").read_text())
    added = (document["tokenizer_class"], document["add_bos_token"], document["add_eos_token"])
    assert added == WRITTEN[kind]
    assert document["model_input_names"] == ["input_ids", "attention_mask"]
    assert "extra_special_tokens" not in document
    extra = ["<start>", "<end>"] if tokenizer.extra_special_tokens else None
    assert document.get("additional_special_tokens") == extra
    # What is read is written again to the same words.
    save_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "ours"), tmp_path / "again")
    assert behaviour(tmp_path / "again") | {"class": None} == behaviour(tmp_path / "own") | {
        "class": None
    }


def test_adapters_have_no_configuration(tmp_path):
    add_older_names(tmp_path)
    assert not list(tmp_path.iterdir())
