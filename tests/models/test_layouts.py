"""Plain and shared layouts, live and cached reference, trained and frozen head: one result."""

from __future__ import annotations

import copy

import pytest
import torch

from palate.data.layouts import collate
from palate.kernels import Head, RefHidden
from palate.models.adapters import add_lora
from palate.models.cache import cached_reference, needed_format
from palate.models.check import head_check, layout_check
from palate.models.model import Model
from palate.models.reference import AdapterOff, FrozenCopy, StartingPolicy
from palate.recipes.schema import LoraRecipe
from palate.testing import token_stats_oracle
from tiny import FAMILIES, tiny_model, tiny_pairs, token_stats_of

# The models' norms and rotary embeddings are float32 inside, whatever the weights are.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def wide(family: str) -> torch.dtype:
    """float64, but for soft-capped attention, which casts its masked scores to float32: -inf."""
    return torch.float32 if family == "gemma2" else torch.float64


def perturbed(model, scale=0.02):
    """A copy moved away from the reference: at the start all KLs are zero."""
    other = copy.deepcopy(model)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other


def oracle(policy, reference, pairs):
    """The definition, sequence by sequence: no padding, no batch, full logits in float64."""
    parts = []
    for pair in pairs:
        for prompt, response in ((p.ids, r.ids) for p, r in pair.sequences):
            ids = torch.tensor([[*prompt, *response]])
            start = len(prompt) - 1
            hidden = policy.base.base_model(input_ids=ids).last_hidden_state[0, start:-1]
            with torch.no_grad():
                ref = reference.base.base_model(input_ids=ids).last_hidden_state[0, start:-1]
            parts.append(
                token_stats_oracle(
                    hidden=hidden,
                    head=policy.vocabulary_head(),
                    targets=torch.tensor(response),
                    reference=RefHidden(hidden=ref, head=reference.vocabulary_head()),
                    kl=True,
                )
            )
    return {f: torch.cat([getattr(p, f) for p in parts]) for f in ("logp", "ref_logp", "kl")}


def assert_stats(stats, want):
    for name, value in want.items():
        torch.testing.assert_close(getattr(stats, name).double(), value.double(), **CLOSE)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_layout_equals_the_oracle(family, layout):
    model = tiny_model(family, dtype=wide(family))
    reference = FrozenCopy(Model.policy(copy.deepcopy(model)), digest="")
    policy = Model.policy(perturbed(model))
    pairs = tiny_pairs()
    batch = collate(pairs, layout=layout, pad_id=0)
    stats = token_stats_of(policy, batch, reference=reference.inputs(batch, kl=True), kl=True)
    want = oracle(policy, reference.policy, pairs)
    assert want["kl"].mean() > 0.01
    assert_stats(stats, want)
    up = torch.randn(3, len(stats.logp), generator=torch.manual_seed(1), dtype=torch.float64)
    leaves = [p for p in policy.parameters() if p.requires_grad]
    got = torch.autograd.grad((stats.logp * up[0] + stats.kl * up[1]).sum(), leaves)
    expected = torch.autograd.grad((want["logp"] * up[0] + want["kl"] * up[1]).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2"])
def test_frozen_head_with_adapters_equals_the_oracle(family, layout):
    torch.manual_seed(0)
    policy = Model.policy(
        add_lora(tiny_model(family, dtype=wide(family)), LoraRecipe(r=4)).to(wide(family))
    )
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    reference = AdapterOff(policy, digest="")
    base = Model.policy(tiny_model(family, dtype=wide(family)))
    pairs = tiny_pairs()
    batch = collate(pairs, layout=layout, pad_id=0)
    stats = token_stats_of(policy, batch, reference=reference.inputs(batch, kl=True), kl=True)
    want = oracle(policy, base, pairs)
    assert want["kl"].mean() > 0.01
    assert_stats(stats, want)
    leaves = [p for p in policy.parameters() if p.requires_grad]
    got = torch.autograd.grad((stats.logp + stats.kl).sum(), leaves)
    expected = torch.autograd.grad((want["logp"] + want["kl"]).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize(
    ("family", "lora", "kl", "format"),
    [
        ("llama", True, True, "summary"),
        ("gemma3", False, True, "hidden"),
        ("gemma2", True, True, "hidden"),
        ("qwen3", False, False, "logps"),
    ],
)
def test_cached_equals_live(tmp_path, family, lora, kl, format, layout):
    torch.manual_seed(0)
    model = tiny_model(family, dtype=wide(family))
    policy = Model.policy(add_lora(model, LoraRecipe(r=4)).to(wide(family)) if lora else model)
    live = FrozenCopy(Model.policy(tiny_model(family, dtype=wide(family))), digest="d")
    source = AdapterOff(policy, digest="d") if lora else StartingPolicy(policy, digest="d")
    assert needed_format(policy, kl=kl) == format
    pairs = tiny_pairs(6)
    options = {"folder": tmp_path, "format": format, "layout": layout, "pad_id": 0}
    first = cached_reference(source, pairs[:4], batch_size=3, **options)
    assert (first.counts.cached, first.counts.computed) == (0, 4)
    cache = cached_reference(source, pairs, batch_size=3, **options)
    assert (cache.counts.cached, cache.counts.computed) == (4, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    batch = collate([pairs[i] for i in (5, 0, 2)], layout=layout, pad_id=0)
    a = token_stats_of(policy, batch, reference=cache.inputs(batch, kl=kl), kl=kl)
    # The live reference's head is another tensor, so this is the general operator.
    b = token_stats_of(policy, batch, reference=live.inputs(batch, kl=kl), kl=kl)
    for name in ("logp", "ref_logp", *(["kl"] if kl else [])):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **CLOSE)
    if kl:
        assert a.kl.mean() > 1e-3


def test_a_cache_of_other_weights_is_not_used_and_a_wrong_one_is_refused(tmp_path):
    from palate.errors import ModelError, RunError

    policy = Model.policy(tiny_model())
    options = {
        "folder": tmp_path,
        "format": "logps",
        "layout": "plain",
        "pad_id": 0,
    }
    pairs = tiny_pairs(3)
    cached_reference(StartingPolicy(policy, digest="a"), pairs, **options)
    other = cached_reference(StartingPolicy(policy, digest="b"), pairs, **options)
    assert other.counts.cached == 0
    with torch.no_grad():
        policy.backbone.vocabulary_module().weight.mul_(1.5)
    with pytest.raises(ModelError, match="off the live reference"):
        cached_reference(StartingPolicy(policy, digest="a"), pairs, **options)
    shard = next(other.folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(RunError, match="not a readable cache shard"):
        cached_reference(StartingPolicy(policy, digest="b"), pairs, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_start_of_run_checks_pass(family):
    policy = Model.policy(tiny_model(family))
    head_check(policy)
    check = layout_check(policy)
    assert check.ok and check.reason is None and check.max_abs_difference < 1e-3


def test_layout_check_sees_a_backbone_that_ignores_the_mask(monkeypatch):
    policy = Model.policy(tiny_model("llama"))
    forward = policy.base.base_model.forward

    def careless(**kwargs):
        kwargs.pop("attention_mask", None)
        return forward(**kwargs)

    monkeypatch.setattr(policy.base.base_model, "forward", careless)
    check = layout_check(policy)
    assert not check.ok and "off the plain ones" in check.reason


def test_head_check_refuses_unknown_transforms(monkeypatch):
    from palate.errors import ModelError

    policy = Model.policy(tiny_model("gemma2"))
    uncapped = Head(weight=policy.backbone.vocabulary_module().weight)
    monkeypatch.setattr(Model, "vocabulary_head", lambda self: uncapped)
    with pytest.raises(ModelError, match="transforms its logits"):
        head_check(policy)


def test_masked_positions_may_hold_anything():
    """Padding never reaches the head: garbage ids there change nothing."""
    policy = Model.policy(tiny_model(dtype=torch.float64))
    pairs = tiny_pairs()
    for layout in ("plain", "shared"):
        a = token_stats_of(policy, collate(pairs, layout=layout, pad_id=0))
        b = token_stats_of(policy, collate(pairs, layout=layout, pad_id=77))
        torch.testing.assert_close(a.logp, b.logp, **CLOSE)


def test_pairs_in_any_order_give_the_same_numbers():
    policy = Model.policy(tiny_model(dtype=torch.float64))
    pairs = tiny_pairs()
    sums = {}
    for order in (pairs, pairs[::-1]):
        batch = collate(order, layout="shared", pad_id=0)
        logp = torch.zeros(10, dtype=torch.float64).index_add(
            0, batch.segment, token_stats_of(policy, batch).logp
        )
        for i, pair in enumerate(order):
            sums.setdefault(pair.id, []).append(logp[2 * i : 2 * i + 2])
    for a, b in sums.values():
        torch.testing.assert_close(a, b, **CLOSE)
