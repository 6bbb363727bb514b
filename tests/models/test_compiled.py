"""Models whose norms and feed-forwards are compiled give the numbers of their own code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CohereConfig, GlmConfig
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.glm.modeling_glm import GlmAttention
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from palate.kernels import cpu
from palate.kernels.cpu import layers
from palate.models.compiled import kernels_of, own_layers, use_compiled, use_packed
from palate.models.loading import load_model
from palate.recipes.schema import ModelRecipe
from tiny import COMMON, VOCABULARY, tiny_model

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"no compiled kernels on this machine: {cpu.why_not()}"
)


def taken(model: nn.Module) -> list[str]:
    """Classes of the modules that were taken over."""
    return [type(m).__name__ for m in model.modules() if "_palate_own_class" in vars(m)]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention", "Embedding"}),
        (
            "gemma3",
            {"Gemma3RMSNorm", "Gemma3MLP", "Gemma3Attention", "Gemma3TextScaledWordEmbedding"},
        ),
    ],
)
def test_states_and_gradients_are_the_models_own(
    family: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Heads of 8 numbers are too small for compiled rotary positions.
    monkeypatch.setitem(COMMON, "head_dim", 32)
    tiny_model(family).save_pretrained(tmp_path)
    turned: list[int] = []
    rotated = layers.rotated
    monkeypatch.setattr(layers, "rotated", lambda *x: turned.append(1) or rotated(*x))
    model: Any = load_model(ModelRecipe(path=str(tmp_path), dtype="bfloat16"))
    assert set(taken(model)) == names
    exact: Any = load_model(ModelRecipe(path=str(tmp_path), dtype="float32"))
    assert not taken(exact)
    turned.clear()
    # A cache of the one's numbers is none of the other's.
    assert kernels_of(model) == kernels_of(exact) + " and compiled layers"
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))

    def measured(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        states.float().square().mean().backward()
        gradients = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
        return {"states": states.detach().float()} | gradients

    compiled = measured(model)
    assert len(turned) == 2 * model.config.num_hidden_layers
    with own_layers(model):
        assert not [m for m in model.modules() if type(m).forward.__module__.startswith("palate")]
        own = measured(model)
    assert len(turned) == 2 * model.config.num_hidden_layers
    right = measured(exact)
    assert compiled.keys() == own.keys() == right.keys()

    def off(side: dict[str, torch.Tensor]) -> float:
        errors = [(side[n] - right[n]).norm() / right[n].norm().clamp(min=1e-9) for n in right]
        return float(torch.stack(errors).square().mean().sqrt())

    # As far from float32 as the model's own code in the same dtype, and no further.
    assert off(compiled) < 1.3 * off(own) < 0.2


def test_the_gradient_of_tied_embeddings_is_dense_and_the_same(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path)
    model: Any = load_model(ModelRecipe(path=str(tmp_path), dtype="bfloat16"))
    exact: Any = load_model(ModelRecipe(path=str(tmp_path), dtype="float32"))
    ids = torch.tensor([[3, 5, *[3] * 60, 7]])

    def gradient(model: Any, with_head: bool) -> torch.Tensor:
        model.zero_grad()
        for _ in range(2):  # added up over micro-batches
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state
            (model.lm_head(states) if with_head else states).square().sum().backward()
        grad: torch.Tensor = model.lm_head.weight.grad
        assert grad.layout == torch.strided
        return grad.double()

    for with_head in (True, False):
        right = gradient(exact, with_head)
        off = (gradient(model, with_head) - right).norm() / right.norm()
        with own_layers(model):
            own = (gradient(model, with_head) - right).norm() / right.norm()
        assert off < own


def test_weights_are_packed_for_few_rows_and_numbers_stay_the_same() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48).bfloat16()
    twin = copy.deepcopy(layer)
    assert use_packed(nn.ModuleList([layer, nn.Linear(4, 4)])) == 1 and use_packed(layer) == 0

    def packed() -> bool:
        return "_palate_packed" in vars(layer)

    for rows in (1, 5, 128, 129):
        x = torch.randn(2, rows, 64).bfloat16()[:, :rows]
        with torch.no_grad():
            assert torch.equal(layer(x[:1]), twin(x[:1]))
        assert packed()
    for side in (layer, twin):
        with torch.no_grad():
            side.weight.mul_(-2)
    with torch.inference_mode():
        assert torch.equal(layer(x[0, :3]), twin(x[0, :3]))
    # Where it is trained nothing is held twice.
    assert torch.equal(layer(x[0, :3]), twin(x[0, :3])) and not packed()
    with torch.no_grad():
        assert torch.equal(layer(x[0]), twin(x[0])) and not packed()


def test_a_copy_and_a_saved_model_are_as_before(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "a")
    model: Any = load_model(ModelRecipe(path=str(tmp_path / "a"), dtype="bfloat16"))
    twin = copy.deepcopy(model)
    ids = torch.randint(VOCABULARY, (1, 20))
    with torch.no_grad():
        twin.model.norm.weight.mul_(2.0)
        assert not torch.equal(twin(ids).logits, model(ids).logits)
        twin.model.norm.weight.copy_(model.model.norm.weight)
        assert torch.equal(twin(ids).logits, model(ids).logits)
    assert isinstance(model.model.norm, LlamaRMSNorm) and use_compiled(model) == 0
    model.save_pretrained(tmp_path / "b")
    assert "palate" not in (tmp_path / "b" / "config.json").read_text()
    again: Any = load_model(ModelRecipe(path=str(tmp_path / "b"), dtype="bfloat16"))
    assert again.state_dict().keys() == model.state_dict().keys()


class ClampedMLP(LlamaMLP):
    """As gpt-oss does it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.act_fn(self.gate_proj(x)).clamp(max=7.0)
        return self.down_proj(gate * self.up_proj(x))


class ScaledRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * 1.02


class LayerRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


def test_positions_of_another_kind_are_left_alone() -> None:
    """Those that turn a part of each head, or neighbouring numbers."""
    for config, attention in ((GlmConfig, GlmAttention), (CohereConfig, CohereAttention)):
        module = attention(config(hidden_size=64, num_attention_heads=2, head_dim=32), 0)
        assert use_compiled(module.bfloat16()) == 0


@pytest.mark.parametrize("family", ["norm", "mlp"])
def test_what_only_looks_like_it_is_left_alone(family: str) -> None:
    torch.manual_seed(0)
    if family == "norm":
        wrong: list[nn.Module] = [ScaledRMSNorm(32), LayerRMSNorm(32)]
        right: nn.Module = LlamaRMSNorm(32)
    else:
        config = tiny_model("llama").config
        wrong, right = [ClampedMLP(config)], LlamaMLP(config)
    assert use_compiled(nn.ModuleList(wrong).bfloat16()) == 0
    assert use_compiled(nn.ModuleList([right]).bfloat16()) == 1
    assert use_compiled(nn.ModuleList([type(right)(32) if family == "norm" else right])) == 0


def test_inputs_that_the_kernels_do_not_take_go_through_the_models_own_code() -> None:
    module = LlamaRMSNorm(32).bfloat16()
    assert use_compiled(module) == 1
    x = torch.randn(4, 32)
    with own_layers(module):
        right = module(x)
    assert torch.equal(module(x), right)
