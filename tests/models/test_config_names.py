"""Configurations that older readers take for what they are, and newer ones go on reading."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from palate.models.config_names import add_older_names
from tiny import COMMON, CONFIGS

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


def test_adapters_have_no_configuration(tmp_path):
    add_older_names(tmp_path)
    assert not list(tmp_path.iterdir())
