"""Adapters share one base model, and leave it as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from palate.data.items import Item
from palate.data.layouts import collate
from palate.evaluate.loading import PolicyLoader, grouped
from palate.evaluate.targets import Target
from palate.models.loading import load_policy, load_trained
from palate.models.model import Model
from palate.models.reference import AdapterOff
from palate.recipes.schema import LoraRecipe, ModelRecipe
from tiny import token_stats_of
from tiny_text import save_tiny

ITEM = Item.of((1, 40, 50), (60, 70, 80, 2))


@pytest.fixture
def batch():
    return collate([ITEM], layout="plain", pad_id=0)


def adapter(base, folder, seed, **lora):
    policy = load_policy(ModelRecipe(path=str(base), dtype="float32", lora=LoraRecipe(r=2, **lora)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=generator)
    policy.save(folder)
    return folder


def target(base, folder, **changes):
    values = {
        "name": folder.name,
        "label": folder.name,
        "run": None,
        "checkpoint": None,
        "folder": folder,
        "model": ModelRecipe(path=str(base), dtype="float32", lora=LoraRecipe(r=2)),
        "loss": None,
        "reference": str(base),
    }
    return Target(**values | changes)


@torch.no_grad()
def logp(policy, batch):
    return token_stats_of(policy, batch).logp


def test_adapters_one_after_another_over_one_base(tmp_path, batch):
    base = save_tiny(tmp_path / "base")
    targets = [target(base, adapter(base, tmp_path / f"a{i}", i)) for i in range(3)]
    assert grouped(targets) == [targets]
    loader = PolicyLoader(targets[0].model, targets[0].reference)
    plain = logp(Model.policy(loader.base()), batch)
    held = id(loader.base())
    for one, policy, reference in loader.policies(targets):
        expected = logp(load_trained(one.folder, targets[0].model), batch)
        torch.testing.assert_close(logp(policy, batch), expected)
        assert not torch.allclose(expected, plain)
        assert isinstance(reference, AdapterOff)
        stats = token_stats_of(policy, batch, reference=reference.inputs(batch, kl=True), kl=True)
        torch.testing.assert_close(stats.ref_logp, plain)
        assert id(policy.base) == held
    torch.testing.assert_close(logp(Model.policy(loader.base()), batch), plain)
    torch.testing.assert_close(logp(loader.reference().policy, batch), plain)


def test_full_models_stand_beside_their_reference(tmp_path, batch):
    base = save_tiny(tmp_path / "base")
    other = save_tiny(tmp_path / "tuned", seed=5)
    targets = [
        target(base, other),
        dataclasses.replace(target(base, other), folder=None, name="base"),
    ]
    loader = PolicyLoader(targets[0].model, str(base))
    found = {
        one.name: (
            logp(policy, batch),
            token_stats_of(policy, batch, reference.inputs(batch, kl=True)),
        )
        for one, policy, reference in loader.policies(targets)
    }
    assert not torch.allclose(found["tuned"][0], found["tuned"][1].ref_logp)
    torch.testing.assert_close(found["base"][0], found["base"][1].ref_logp)


def test_another_reference_stays_itself_under_adapters(tmp_path, batch):
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", seed=5)
    one = target(base, adapter(base, tmp_path / "a", 0), reference=str(other))
    loader = PolicyLoader(one.model, str(other))
    expected = logp(load_policy(ModelRecipe(path=str(other), dtype="float32")), batch)
    for _, policy, reference in loader.policies([one]):
        stats = token_stats_of(policy, batch, reference=reference.inputs(batch, kl=False))
        torch.testing.assert_close(stats.ref_logp, expected)


def test_groups_are_by_base_and_reference(tmp_path):
    base, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", seed=5)
    a, b = target(base, tmp_path / "a"), target(other, tmp_path / "b")
    c, d = target(base, tmp_path / "c"), target(base, tmp_path / "d", reference=None)
    assert grouped([a, b, c, d]) == [[a, c], [b], [d]]
