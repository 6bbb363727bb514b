"""Saved reward models: bit-equal when loaded, and equal in plain transformers and PEFT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, dynamic_module_utils

from palate.data.layouts import collate
from palate.errors import ModelError, RunError
from palate.models.adapters import add_lora
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward_config import RewardSpec, Scale
from palate.models.reward_files import (
    CONFIG,
    HEAD,
    load_reward_model,
    load_reward_weights,
    save_reward_model,
)
from palate.recipes.reward import HeadRecipe
from palate.recipes.schema import LoraRecipe, ModelRecipe
from tiny import rewards_of, tiny_model, tiny_pairs

OTHERS = """
import json, sys
sys.modules["palate"] = None  # importing it would fail
import torch
from transformers import AutoModelForSequenceClassification
folder, kind = sys.argv[1:3]
rows = json.load(sys.stdin)
if kind == "adapter":
    from peft import AutoPeftModelForSequenceClassification
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"
model.eval()
width = max(map(len, rows))
found = []
for left in (False, True):
    pad = lambda x: [0] * (width - len(x)) + x if left else x + [0] * (width - len(x))
    ids = torch.tensor([pad(r) for r in rows])
    mask = torch.tensor([pad([1] * len(r)) for r in rows])
    with torch.no_grad():
        found.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist())
print(json.dumps(found))
"""


def built(folder: Path, family: str = "llama", *, lora: bool = False, pooling="token", **head):
    source = folder / f"base-{family}"
    if not source.exists():
        tiny_model(family, spread=2.0).save_pretrained(source)
    recipe = ModelRecipe(path=str(source), dtype="float32", lora=LoraRecipe(r=4) if lora else None)
    backbone = load_model(recipe).base_model
    hf = add_lora(backbone, recipe.lora, task="FEATURE_EXTRACTION") if lora else backbone
    torch.manual_seed(3)
    spec = RewardSpec(
        model=recipe,
        head=HeadRecipe(**head),
        pooling=pooling,
        end_tokens={2: "<eos>"},
        scale=Scale(mean=0.25, deviation=2.0, n=9),
    )
    model = Model.reward(hf, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "query" in name):
                parameter.normal_(std=0.3)
    return model.eval()


def scores(model: Model) -> torch.Tensor:
    batch = collate(tiny_pairs(5), layout="plain", pad_id=0, keep_last=True)
    with torch.no_grad():
        return rewards_of(model, batch)


def assert_equal(a: Model, b: Model) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def scores_elsewhere(folder: Path, kind: str) -> torch.Tensor:
    """Padded on the right and on the left, in a process that cannot import palate: [2, S]."""
    pairs = tiny_pairs(5)
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    rows = [[*prompt.ids, *response.ids] for prompt, response in sequences]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run(
        [sys.executable, "-c", OTHERS, str(folder), kind],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return torch.tensor(json.loads(out.stdout))


CASES = [
    {},
    {"layers": 2},
    {"pooling": "mean"},
    {"pooling": "attention", "layers": 2, "activation": "tanh", "width": 7},
    {"bias": True},
]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_loaded_is_bit_equal(case, lora, tmp_path):
    model = built(tmp_path, lora=lora, **case)
    want = scores(model)
    save_reward_model(model, tmp_path / "saved")
    loaded = load_reward_model(tmp_path / "saved")
    assert_equal(loaded, model)
    assert loaded.spec == model.spec
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors"}
    # Into a model that is there already, as a resumed run does.
    other = built(tmp_path, lora=lora, **case)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    load_reward_weights(other, tmp_path / "saved")
    assert_equal(other, model)
    torch.testing.assert_close(scores(loaded), want)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_plain_transformers_gives_the_same_scores(family, tmp_path):
    model = built(tmp_path, family)
    want = scores(model)
    save_reward_model(model, tmp_path / "saved")
    for got in scores_elsewhere(tmp_path / "saved", "whole"):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_peft_gives_the_same_scores_head_included(tmp_path):
    model = built(tmp_path, lora=True)
    want = scores(model)
    save_reward_model(model, tmp_path / "saved")
    for got in scores_elsewhere(tmp_path / "saved", "adapter"):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_merging_keeps_the_scores(case, tmp_path):
    model = built(tmp_path, lora=True, **case)
    want = scores(model)
    model.backbone.merge_adapters()
    assert not model.has_adapters
    torch.testing.assert_close(scores(model), want, atol=1e-5, rtol=1e-5)
    save_reward_model(model, tmp_path / "merged")
    torch.testing.assert_close(
        scores(load_reward_model(tmp_path / "merged")), want, atol=1e-5, rtol=1e-5
    )


def test_the_head_stays_float32_beside_a_bfloat16_backbone(tmp_path):
    model = built(tmp_path)
    model.hf.to(torch.bfloat16)
    save_reward_model(model, tmp_path / "saved")
    stored = load_file(tmp_path / "saved/model.safetensors")
    assert stored["score.weight"].dtype == torch.float32
    assert stored["model.norm.weight"].dtype == torch.bfloat16
    loaded = load_reward_model(tmp_path / "saved", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert_equal(loaded, model)


def test_a_checkpoint_of_a_frozen_backbone_is_its_head(tmp_path):
    model = built(tmp_path, layers=2)
    model.hf.requires_grad_(False)
    save_reward_model(model, tmp_path / "step", complete=False)
    assert sorted(p.name for p in (tmp_path / "step").iterdir()) == sorted([CONFIG, HEAD])
    assert_equal(load_reward_model(tmp_path / "step"), model)
    save_reward_model(model, tmp_path / "whole")
    assert_equal(load_reward_model(tmp_path / "whole"), model)


def test_models_that_others_trained(tmp_path):
    torch.manual_seed(0)
    config = tiny_model("qwen3").config
    config.num_labels = 1
    theirs = AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "public")
    model = load_reward_model(tmp_path / "public")
    assert model.spec.whole_rendering and model.dtype == torch.float32
    ids = torch.tensor([[1, 5, 9, 7, 2]])
    pair = tiny_pairs(1)[0]
    batch = collate([pair], layout="plain", pad_id=0, keep_last=True)
    for response, ours in zip(
        (pair.responses[0].ids, pair.responses[1].ids), rewards_of(model, batch), strict=True
    ):
        ids = torch.tensor([[*pair.prompts[0].ids, *response]])
        with torch.no_grad():
            torch.testing.assert_close(theirs(input_ids=ids).logits[0, 0], ours)
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="3 labels"):
        load_reward_model(tmp_path / "three")


def test_loaded_scores_do_not_depend_on_the_batch_in_bfloat16(tmp_path):
    """The attention of the training, row by row: the same states beside any other row."""
    model = built(tmp_path)
    save_reward_model(model, tmp_path / "saved")
    save_reward_model(built(tmp_path, lora=True), tmp_path / "adapter")
    for name in ("saved", "adapter"):
        loaded = load_reward_model(tmp_path / name, dtype="bfloat16")
        pairs = tiny_pairs(6, longest=60)
        with torch.no_grad():
            whole, single = (
                [
                    rewards_of(loaded, collate(own, layout="plain", pad_id=0, keep_last=True))
                    for own in cut
                ]
                for cut in ([pairs], [[pair] for pair in pairs])
            )
        alone = torch.cat(single)
        # In float32 the head rounds, too.
        torch.testing.assert_close(whole[0], alone, atol=1e-6, rtol=0)


CODE = """
from pathlib import Path
Path({ran!r}).write_text("")
from transformers import LlamaConfig
class Config(LlamaConfig):
    model_type = "own"
"""
"""Leaves a file where it is run."""


def rewrite(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_a_folder_cannot_say_that_its_code_is_trusted(tmp_path):
    save_reward_model(built(tmp_path, layers=2), tmp_path / "saved")
    rewrite(tmp_path / "saved" / CONFIG, model={"path": "x", "trust_remote_code": True})
    with pytest.raises(ModelError, match=r"needs code .* `trust_remote_code: true`"):
        load_reward_model(tmp_path / "saved")


def test_code_that_a_configuration_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, ran = tmp_path / "saved", tmp_path / "ran"
    save_reward_model(built(tmp_path, layers=2), folder)
    rewrite(folder / "config.json", model_type="own", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text(CODE.format(ran=str(ran)))
    with pytest.raises(ModelError, match="contains custom code"):
        load_reward_model(folder)
    # One that others trained is told by this configuration alone.
    (folder / CONFIG).rename(tmp_path / CONFIG)
    with pytest.raises(ModelError, match="contains custom code"):
        load_reward_model(folder)
    assert not ran.exists()
    # It would have been: so does whoever trusts it.
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pooling": "last"}, "pooling: expected one of token, mean, attention, got 'last'"),
        ({"forms": ["poem"]}, "forms: expected one of chat, text"),
        ({"files": "pickle"}, "files: expected one of classifier"),
        ({"files": None}, "files: expected one of"),
        ({"end_tokens": [{"id": "x", "text": "y"}]}, "invalid literal"),
        ({"heads": "many"}, "invalid literal"),
        ({"scale": 3}, "mapping"),
        ({"version": 99}, "later version"),
    ],
    ids=str,
)
def test_what_is_said_beside_the_weights_is_checked(change, words, tmp_path):
    save_reward_model(built(tmp_path), tmp_path / "saved")
    file = tmp_path / "saved" / CONFIG
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | change))
    with pytest.raises(ModelError, match=words):
        load_reward_model(tmp_path / "saved")
    (name,) = change
    file.write_text(json.dumps({k: v for k, v in document.items() if k != name}))
    if name not in ("heads",):
        with pytest.raises(ModelError, match=f"not a reward model's: no '{name}'"):
            load_reward_model(tmp_path / "saved")


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_reward_model(tmp_path / "nothing")
    model = built(tmp_path, layers=2)
    save_reward_model(model, tmp_path / "saved")
    (tmp_path / "saved" / HEAD).write_bytes(b"x")
    with pytest.raises(ModelError, match="no readable reward model"):
        load_reward_model(tmp_path / "saved")
    save_file({"head.layers.0.weight": torch.zeros(2)}, tmp_path / "saved" / HEAD)
    with pytest.raises(RunError, match="do not fit"):
        load_reward_weights(model, tmp_path / "saved")
    (tmp_path / "saved" / CONFIG).write_text('{"version": 1}')
    with pytest.raises(ModelError, match="not a reward model's"):
        load_reward_model(tmp_path / "saved")


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_that_are_missing_are_not_drawn_at_random(layers, tmp_path):
    model = built(tmp_path, layers=layers)
    save_reward_model(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    stored = load_file(file)
    (gone,) = (name for name in stored if name.endswith("layers.1.mlp.up_proj.weight"))
    del stored[gone]
    save_file(stored, file, metadata={"format": "pt"})
    for load in (load_reward_model, lambda folder: load_reward_weights(model, folder)):
        with pytest.raises(ModelError, match=f"saved: no weights {gone} for Llama"):
            load(tmp_path / "saved")


def test_a_language_model_that_says_it_has_one_label_is_no_reward_model(tmp_path):
    model = tiny_model("llama")
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "public")
    with pytest.raises(ModelError, match=r"public: no weights score\.weight"):
        load_reward_model(tmp_path / "public")
