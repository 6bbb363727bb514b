"""Adapters and the base weights they belong to: named when saved, compared when read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GraniteMoeConfig,
    JambaConfig,
    Qwen2MoeConfig,
)
from transformers.models.mixtral import MixtralConfig

from palate.errors import ModelError
from palate.evaluate.loading import PolicyLoader
from palate.evaluate.targets import Target
from palate.models.adapters import add_lora, holds_adapters
from palate.models.loading import load_model, load_policy, load_trained, weights_digest
from palate.models.model import Model
from palate.models.reward import build_reward_model
from palate.models.reward_files import load_reward_model, save_reward_model
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import LoraRecipe, ModelRecipe
from palate.train import merge
from palate.train.merge import merge_adapters
from tiny import tiny_model
from tiny_text import save_tiny, tiny_tokenizer

IDS = torch.arange(3, 40)[None]


def recipe_of(base: Path | str, **lora: Any) -> ModelRecipe:
    return ModelRecipe(path=str(base), dtype="float32", lora=LoraRecipe(r=4, **lora))


def trained(recipe: ModelRecipe) -> Model:
    """A policy with adapters that do something, as after a run."""
    policy = load_policy(recipe)
    policy.base_digest = weights_digest(policy.hf)
    draw_adapters(policy.hf)
    return policy.eval()


def draw_adapters(hf: nn.Module) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def logits(hf: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return hf.eval()(input_ids=IDS).logits


def read_whole(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one model in two revisions, of which `main` is the second."""
    root = tmp_path / "hub" / "models--some--base"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        save_tiny(root / "snapshots" / commit, seed=seed)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("b" * 40)
    (root / "refs" / "v1").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("palate.data.containers.hub.unreachable", lambda: True)
    return root


@pytest.mark.parametrize("revision", ["a" * 40, "v1"])
def test_adapters_name_the_revision_of_their_base(hub: Path, revision: str, tmp_path: Path) -> None:
    recipe = recipe_of("some/base").model_copy(update={"revision": revision})
    policy = trained(recipe)
    policy.save(tmp_path / "model")
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    # The commit, which stays when the name moves.
    assert config["revision"] == "a" * 40
    merged = read_whole(merge_adapters(tmp_path / "model", tmp_path / "whole"))
    torch.testing.assert_close(logits(merged), logits(policy.hf), atol=1e-4, rtol=1e-4)
    old = read_whole(hub / "snapshots" / ("a" * 40))
    apart = PeftModel.from_pretrained(old, tmp_path / "model")
    torch.testing.assert_close(logits(apart), logits(policy.hf), atol=1e-4, rtol=1e-4)


def test_a_reference_under_the_models_own_name_has_its_revision(hub: Path) -> None:
    recipe = ModelRecipe(path="some/base", revision="a" * 40, dtype="float32")
    assert torch.equal(logits(load_model(recipe, "some/base")), logits(load_model(recipe)))


def test_another_base_than_that_of_training_is_refused(tmp_path: Path) -> None:
    """Wherever the base is loaded again: merged, loaded, evaluated."""
    base, folder = save_tiny(tmp_path / "base"), tmp_path / "run" / "model"
    recipe = recipe_of(base)
    trained(recipe).save(folder)
    load_trained(folder, recipe)
    save_tiny(base, seed=1)
    message = r"model: was trained on other weights than .*base holds now \(digest [0-9a-f]{12} the"
    with pytest.raises(ModelError, match=message):
        load_trained(folder, recipe)
    for dtype in (None, "bfloat16"):  # rounded, they are compared in the dtype of training
        with pytest.raises(ModelError, match=message):
            merge_adapters(folder, tmp_path / "whole", dtype=dtype)
    assert not (tmp_path / "whole").exists()
    target = Target(
        name="run",
        label="run",
        run=tmp_path / "run",
        checkpoint=1,
        folder=folder,
        model=recipe,
        loss=None,
        reference=None,
    )
    with pytest.raises(ModelError, match=message):
        list(PolicyLoader(recipe, None).policies([target]))


def test_a_base_in_another_dtype_is_compared_in_that_of_training(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    recipe = recipe_of(base).model_copy(update={"dtype": "bfloat16"})
    policy = trained(recipe)
    policy.save(tmp_path / "model")
    whole = read_whole(merge_adapters(tmp_path / "model", tmp_path / "whole", dtype="float32"))
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("backbone", ["trained", "frozen"])
def test_another_base_of_a_reward_model_is_refused(backbone: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    lora = {} if backbone == "frozen" else {"lora": {"r": 4}}
    recipe = RewardRecipe.model_validate(
        {
            "output_dir": tmp_path / "run",
            "model": {"path": str(base), "dtype": "float32", **lora},
            "backbone": backbone,
            "data": {"train": [{"path": "rows.jsonl"}]},
        }
    )
    model = build_reward_model(recipe)
    model.base_digest = weights_digest(model.hf)
    save_reward_model(model, tmp_path / "model", complete=False)
    load_reward_model(tmp_path / "model")
    save_tiny(base, seed=1)
    with pytest.raises(ModelError, match=r"model: was trained on other weights than .*base holds"):
        load_reward_model(tmp_path / "model")


def tied_adapters(folder: Path, target: str, **more: Any) -> nn.Module:
    """Adapters on one of two modules whose weights are the same, saved by PEFT itself."""
    base = read_whole(save_tiny(folder / "base", family="qwen3"))
    assert base.config.tie_word_embeddings
    targets = [target, "q_proj"] if not more else ["q_proj"]
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is tried here
        hf = get_peft_model(base, config)
    draw_adapters(hf)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    hf.peft_config["default"].base_model_name_or_path = str(folder / "base")
    hf.save_pretrained(folder / "model", save_embedding_layers=False)
    return hf


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("kept_whole", [False, True])
def test_tied_embeddings_are_untied_where_adapters_change_one(
    target: str, kept_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = tied_adapters(tmp_path, target, **({"modules_to_save": [target]} if kept_whole else {}))
    if not kept_whole:  # PEFT unties whole modules by itself
        with (
            monkeypatch.context() as patch,
            pytest.raises(ModelError, match="log-probs are not the adapters'"),
        ):
            patch.setattr(merge, "_untie", lambda base: None)
            merge_adapters(tmp_path / "model", tmp_path / "whole")
        assert not (tmp_path / "whole").exists()
    whole = read_whole(merge_adapters(tmp_path / "model", tmp_path / "whole"))
    assert not whole.config.tie_word_embeddings
    torch.testing.assert_close(logits(whole), logits(hf), atol=1e-4, rtol=1e-4)
    # The adapters came without a tokenizer: it is the base's.
    assert (tmp_path / "whole/tokenizer.json").exists()


def test_adapters_on_inner_layers_leave_the_embeddings_tied(tmp_path: Path) -> None:
    recipe = recipe_of(save_tiny(tmp_path / "base", family="qwen3"))
    trained(recipe).save(tmp_path / "model")
    whole = read_whole(merge_adapters(tmp_path / "model", tmp_path / "whole"))
    assert whole.config.tie_word_embeddings


def test_adapters_that_do_not_fit_their_base_are_refused(tmp_path: Path) -> None:
    trained(recipe_of(save_tiny(tmp_path / "base"))).save(tmp_path / "model")
    config = tmp_path / "base" / "config.json"
    document = json.loads(config.read_text())
    short = AutoModelForCausalLM.from_config(
        read_whole(tmp_path / "base").config.__class__(**document | {"num_hidden_layers": 2})
    )
    short.save_pretrained(tmp_path / "short")
    said = json.loads((tmp_path / "model/adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(tmp_path / "short")
    (tmp_path / "model/adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError):
        merge_adapters(tmp_path / "model", tmp_path / "whole")
    # Of others, who keep no digest.
    hf = PeftModel.from_pretrained(read_whole(tmp_path / "base"), tmp_path / "model")
    hf.save_pretrained(tmp_path / "others")
    said = json.loads((tmp_path / "others/adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(tmp_path / "short")
    (tmp_path / "others/adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"of its weights do not fit .*short: .*layers\.2"):
        merge_adapters(tmp_path / "others", tmp_path / "whole")


def test_adapters_of_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    trained(recipe_of(save_tiny(tmp_path / "base"))).save(folder)
    config = folder / "adapter_config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ModelError, match="adapters of a model for SEQ_CLS"):
        merge_adapters(folder, tmp_path / "whole")
    config.write_text(json.dumps(document | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        merge_adapters(folder, tmp_path / "whole")


def test_a_model_with_adapters_beside_it_is_refused(tmp_path: Path) -> None:
    """transformers would put them into it, and training on top of them."""
    base = save_tiny(tmp_path / "base")
    trained(recipe_of(base)).save(base)
    assert holds_adapters(base)
    with pytest.raises(ModelError, match="holds adapters beside a model"):
        load_model(ModelRecipe(path=str(base)))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_vocabulary_head_takes_no_adapters(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family=family)
    with pytest.raises(ModelError, match=r"target_modules: the vocabulary head \(lm_head\) can"):
        load_policy(recipe_of(base, target_modules=["q_proj", "lm_head"]))


def test_a_target_that_names_nothing_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    with pytest.raises(ModelError, match="target_modules: c_attn: no such layer"):
        load_policy(recipe_of(base, target_modules=["q_proj", "c_attn"]))
    recipe = RewardRecipe.model_validate(
        {
            "output_dir": tmp_path / "run",
            "model": recipe_of(base, target_modules=["q_proj", "lm_head"]).model_dump(),
            "data": {"train": [{"path": "rows.jsonl"}]},
        }
    )
    with pytest.raises(ModelError, match="target_modules: lm_head: no such layer"):
        build_reward_model(recipe)


def test_adapters_of_others_on_the_head_are_not_read_without_them(tmp_path: Path) -> None:
    tied_adapters(tmp_path, "lm_head")
    recipe = ModelRecipe(path=str(tmp_path / "base"), dtype="float32")
    with pytest.raises(ModelError, match=r"vocabulary head \(lm_head\) can have no adapters"):
        load_trained(tmp_path / "model", recipe).vocabulary_head()


SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MIXTURES = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "jamba": JambaConfig(
        **SIZES, num_experts=4, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4
    ),
    "granite_moe": GraniteMoeConfig(**SIZES, num_local_experts=4),
}


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_of_experts_get_no_adapters(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_config(MIXTURES[family])
    # What chooses experts has an output for each of them, or one for a shared one.
    routers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features in (1, 4)
    }
    with caplog.at_level("WARNING", "palate"):
        hf = add_lora(model, LoraRecipe(r=2))
    adapted = {
        name.partition(".lora_")[0].removeprefix("base_model.model.")
        for name, _ in hf.named_parameters()
        if "lora_" in name
    }
    assert adapted and not adapted & routers
    assert any("get no adapters: they choose" in line for line in caplog.messages) == bool(routers)


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_weights_without_a_place_are_refused(auto: Any, tmp_path: Path) -> None:
    """Layers that the configuration does not know, and parts of a head."""
    config = tiny_model("llama").config
    config.num_labels = 1
    model = auto.from_config(config)
    if auto is AutoModelForSequenceClassification:
        model.score = nn.Linear(32, 1, bias=True)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load: Any = load_reward_model
    name = r"score\.bias"
    if auto is AutoModelForCausalLM:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 2}))
        name = r"model\.layers\.2\.input_layernorm\.weight"

        def load(path: Path) -> Any:
            return load_model(ModelRecipe(path=str(path)))

    with pytest.raises(ModelError, match=rf"weights {name}.* have no place in Llama"):
        load(tmp_path)


def test_a_head_that_is_only_called_tied_is_read_as_it_is(tmp_path: Path) -> None:
    """transformers reads both of two tensors that differ, whatever the configuration says."""
    model = read_whole(save_tiny(tmp_path / "base", family="qwen3"))
    model.config.tie_word_embeddings = False
    head = model.lm_head.weight.detach() + 1.0
    model.lm_head.weight = nn.Parameter(head)
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    recipe = RewardRecipe.model_validate(
        {
            "output_dir": tmp_path / "run",
            "model": {"path": str(tmp_path / "base"), "dtype": "float32"},
            "regularise": {"likelihood": {}},
            "data": {"train": [{"path": "rows.jsonl"}]},
        }
    )
    assert torch.equal(build_reward_model(recipe).vocabulary_head().weight, head)
