"""Reward models: one score in every layout, heads and poolings as defined."""

from __future__ import annotations

import math

import pytest
import torch

from palate.data.items import Item, Ranks, Tokens
from palate.data.layouts import collate
from palate.models.check import layout_check
from palate.models.heads import ACTIVATIONS, Attention, RewardHead
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.recipes.reward import HeadRecipe
from palate.recipes.schema import ModelRecipe
from tiny import FAMILIES, rewards_of, tiny_model, tiny_pairs

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def reward_model(family="llama", *, pooling="token", dtype=torch.float32, **head):
    torch.manual_seed(5)
    spec = RewardSpec(model=ModelRecipe(path="tiny"), head=HeadRecipe(**head), pooling=pooling)
    model = Model.reward(tiny_model(family, dtype=dtype, spread=2.0).base_model, spec)
    if pooling == "attention":
        torch.nn.init.normal_(model.reward_head.pooling.query)
    return model.eval()


def alone(model, prompt, response):
    """The definition: one sequence, no padding, no batch."""
    ids = torch.tensor([[*prompt.ids, *response.ids]])
    states = model.base(input_ids=ids).last_hidden_state[0, len(prompt) :]
    if isinstance(model.reward_head.pooling, Attention):
        weight = (states @ model.reward_head.pooling.query / math.sqrt(states.shape[1])).softmax(0)
        pooled = (weight[:, None] * states).sum(0)
    else:
        pooled = states[-1] if model.spec.pooling == "token" else states.mean(0)
    return model.reward_head.head(pooled)


def wanted(model, pairs):
    return torch.stack([alone(model, *s) for pair in pairs for s in pair.sequences])


def laid_out(model, items, layout):
    return collate(items, layout=layout, pad_id=0, keep_last=True)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_the_score_of_the_sequence_alone(family, layout):
    model = reward_model(family, layers=2)
    pairs = tiny_pairs(6)
    want = wanted(model, pairs)
    assert want.std() > 0.1
    got = rewards_of(model, laid_out(model, pairs, layout))
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("pooling", ["token", "mean", "attention"])
def test_every_pooling_in_every_layout_and_its_gradients(pooling, layout):
    model = reward_model("gemma3", pooling=pooling, layers=2, dtype=torch.float64).double()
    pairs = tiny_pairs(5)
    up = torch.randn(10, generator=torch.manual_seed(1), dtype=torch.float64)
    leaves = list(model.parameters())
    want = torch.autograd.grad((wanted(model, pairs) * up).sum(), leaves, allow_unused=True)
    got = rewards_of(model, laid_out(model, pairs, layout))
    got = torch.autograd.grad((got * up).sum(), leaves, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_shared_rows_hold_several_items():
    model = reward_model("mistral")
    pairs = tiny_pairs(8)
    singles = [Item.of(*sequence) for pair in pairs for sequence in pair.sequences]
    shared = laid_out(model, singles, "shared").inputs["input_ids"]
    plain = laid_out(model, pairs, "plain").inputs["input_ids"]
    assert shared.shape[1] == plain.shape[1]
    assert shared.shape[0] < plain.shape[0]


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_ranked_lists(layout):
    model = reward_model("gemma3")
    pairs = tiny_pairs(4)
    lists = [
        Item.of(
            p.prompts[0],
            *(*p.responses, Tokens((7, 8, 2)))[: 2 + i % 2],
            label=Ranks((1, 2, 2)[: 2 + i % 2]),
        )
        for i, p in enumerate(pairs)
    ]
    batch = laid_out(model, lists, layout)
    want = wanted(model, lists)
    torch.testing.assert_close(rewards_of(model, batch), want, **CLOSE)
    assert batch.item.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert batch.rank.tolist() == [1, 2, 1, 2, 2, 1, 2, 1, 2, 2]


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_batch_size_order_and_padding_change_nothing(layout):
    model = reward_model("qwen3")
    rows = [Item.of(p.prompts[0], p.responses[0]) for p in tiny_pairs(7)]
    whole = rewards_of(model, laid_out(model, rows, layout))
    torch.testing.assert_close(
        rewards_of(model, laid_out(model, rows[::-1], layout)).flip(0), whole
    )
    singles = torch.cat([rewards_of(model, laid_out(model, [row], layout)) for row in rows])
    torch.testing.assert_close(singles, whole, **CLOSE)
    other = collate(rows, layout=layout, pad_id=9, keep_last=True)
    torch.testing.assert_close(rewards_of(model, other), whole)


def test_scores_do_not_depend_on_the_side_of_the_padding():
    model = reward_model("gemma3")
    batch = laid_out(model, tiny_pairs(4), "plain")
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    width = ids.shape[1]
    shift = width - mask.sum(1)
    turned = (torch.arange(width) - shift[:, None]) % width
    left = {name: value.gather(1, turned) for name, value in batch.inputs.items()}
    assert left["attention_mask"][:, -1].all() and not left["attention_mask"].all()
    ends = batch.ends + shift
    moved = type(batch)(**{**vars(batch), "inputs": left, "ends": ends})
    torch.testing.assert_close(rewards_of(model, moved), rewards_of(model, batch), **CLOSE)


def test_the_end_must_be_run():
    model = reward_model()
    with pytest.raises(ValueError, match="keep_last"):
        rewards_of(model, collate(tiny_pairs(2), layout="plain", pad_id=0))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_heads(activation):
    torch.manual_seed(0)
    head = RewardHead(400, HeadRecipe(layers=3, activation=activation, width=300, dropout=0.5))
    assert [tuple(layer.weight.shape) for layer in head.layers] == [
        (300, 400),
        (300, 300),
        (1, 300),
    ]
    assert head.layers[0].weight.std().item() == pytest.approx(401**-0.5, rel=0.05)
    assert all(layer.bias.abs().sum() == 0 for layer in head.layers)
    x = torch.randn(5, 400, dtype=torch.bfloat16)
    once, again = head(x), head(x)
    assert once.dtype == torch.float32 and once.shape == (5,)
    assert not torch.equal(once, again)
    head.eval()
    a = ACTIVATIONS[activation]()
    want = x.float()
    for i, layer in enumerate(head.layers):
        want = (want if i == 0 else a(want)) @ layer.weight.T
    torch.testing.assert_close(head(x), want.squeeze(-1))


def test_the_start_of_a_head_may_be_given():
    torch.manual_seed(0)
    head = RewardHead(300, HeadRecipe(layers=2, width=400, init_deviation=0.02))
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.1) for layer in head.layers)


@pytest.mark.parametrize("pooling", ["token", "mean", "attention"])
def test_mixed_precision_leaves_pooling_and_head_in_float32(pooling):
    """As under `accelerate launch --mixed_precision bf16`, states given."""
    model = reward_model(pooling=pooling, layers=2)
    batch = laid_out(model, tiny_pairs(3), "plain")
    with torch.no_grad():
        states = model.base(**batch.inputs).last_hidden_state.reshape(
            -1, model.backbone.hidden_size
        )
        want = model.reward_head.head(model.reward_head.pooling(states, batch))
        with torch.autocast("cpu", torch.bfloat16):
            got = model.reward_head.head(model.reward_head.pooling(states, batch))
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_a_linear_head_has_no_bias_unless_asked():
    assert RewardHead(8, HeadRecipe()).is_linear
    assert not RewardHead(8, HeadRecipe(bias=True)).is_linear
    assert not RewardHead(8, HeadRecipe(layers=2, bias=False)).is_linear


def test_the_layout_check_sees_a_backbone_that_ignores_the_mask(monkeypatch):
    model = reward_model("llama")
    found = layout_check(model)
    assert found.ok and found.max_abs_difference < 1e-4
    forward = model.base.forward

    def careless(**kwargs):
        # Of positions that restart transformers would make a mask of its own.
        return forward(input_ids=kwargs["input_ids"], use_cache=False)

    monkeypatch.setattr(model.base, "forward", careless)
    found = layout_check(model)
    assert not found.ok and "see one another" in found.reason
