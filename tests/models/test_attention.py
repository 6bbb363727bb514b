"""Attention row by row: the same numbers, whatever stands beside a row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from model_families import WINDOW, family_model
from palate.data.items import Item, PairLabel
from palate.data.layouts import collate
from palate.models.attention import NAME, row_lengths, use_rows
from palate.models.loading import load_model
from palate.models.model import Model
from palate.recipes.schema import ModelRecipe
from tiny import FAMILIES, VOCABULARY, tiny_model, tiny_pairs


def both(family: str, tmp_path, dtype: str = "float32") -> tuple[Model, Model]:
    """A model with rows attention, and the same with torch's alone."""
    tiny_model(family).save_pretrained(tmp_path)
    own = load_model(ModelRecipe(path=str(tmp_path), dtype=dtype))
    plain = load_model(ModelRecipe(path=str(tmp_path), dtype=dtype))
    if plain.config._attn_implementation == NAME:
        plain.set_attn_implementation("sdpa")
    return Model.policy(own), Model.policy(plain)


def hidden(policy: Model, pairs, layout: str) -> list[Tensor]:
    """Hidden states of each sequence."""
    batch = collate(pairs, layout=layout, pad_id=0)
    found = policy.hidden(batch)
    return [found[batch.segment == s] for s in range(batch.n_sequences)]


@contextmanager
def _calls(module: torch.nn.Module, seen: list[tuple[int, ...]]) -> Iterator[None]:
    """The shape of each input of a module."""
    hook = module.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    yield
    hook.remove()


def long_pairs(count: int) -> list[Item]:
    """Pairs of 8 to 40 tokens a part; products of two or three rows take a kernel of their own."""
    rng = random.Random(0)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(8, 40)))

    return [Item.of(ids(), ids(), ids(), label=PairLabel(), id=str(i)) for i in range(count)]


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_torchs(family, layout, tmp_path):
    own, plain = both(family, tmp_path)
    pairs = tiny_pairs(5)
    found = []
    for policy in (own, plain):
        states = torch.cat(hidden(policy, pairs, layout))
        states.square().sum().backward()
        gradient = policy.base.get_input_embeddings().weight.grad
        found.append((states.detach(), gradient.clone()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_row_is_the_same_bits_in_any_batch(family, layout, tmp_path):
    own, _ = both(family, tmp_path, "bfloat16")
    assert own.config._attn_implementation == NAME
    pairs = long_pairs(6)
    with torch.no_grad():
        together = hidden(own, pairs, layout)
        for i, pair in enumerate(pairs):
            alone = hidden(own, [pair], layout)
            assert torch.equal(alone[0], together[2 * i])
            assert torch.equal(alone[1], together[2 * i + 1])


def test_shared_rows_run_no_padding(tmp_path):
    own, plain = both("llama", tmp_path)
    pairs = long_pairs(6)
    batch = collate(pairs, layout="shared", pad_id=0)
    real, places = int((batch.inputs["visible_until"] > 0).sum()), batch.inputs["input_ids"].numel()
    assert real < places
    seen = []
    for policy in (own, plain):
        embed = policy.base.get_input_embeddings()
        with torch.no_grad(), _calls(embed, seen):
            assert len(policy.hidden(batch)) == len(batch.predict)
    # With a kernel that makes a mask of a row, one long row would cost more than short ones.
    assert seen == [(1, real), tuple(batch.inputs["input_ids"].shape)]


def test_a_saved_model_names_no_kernel_of_ours(tmp_path):
    own, _ = both("llama", tmp_path / "a")
    own.save(tmp_path / "b")
    assert NAME not in (tmp_path / "b" / "config.json").read_text()


def test_soft_capped_scores_are_capped(tmp_path):
    own, _ = both("gemma2", tmp_path)
    assert own.config._attn_implementation == "eager"


@pytest.mark.parametrize("additive", [False, True])
def test_lengths_of_rows(additive):
    width, lengths = 6, [6, 4, 1, 2]
    order = torch.arange(width)
    causal = order[:, None] >= order[None, :]
    alone = torch.eye(width, dtype=torch.bool)
    rows = [(causal & (order < n)[:, None]) | alone for n in lengths]
    mask = torch.stack(rows)[:, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert row_lengths(mask) == lengths


@pytest.mark.parametrize("padding", [0, 9])
def test_a_row_may_end_where_a_chunk_begins(padding):
    """Its last token sees itself alone, and is no padding for that."""
    ids = torch.randint(3, VOCABULARY, (2, WINDOW + 1 + padding))
    mask = torch.ones_like(ids)
    mask[0, WINDOW + 1 :] = 0
    options = {"attention_mask": mask if padding else None, "use_cache": False}
    model = family_model("llama4_text")
    with torch.no_grad():
        want = model(input_ids=ids, **options).logits[0, : WINDOW + 1]
        use_rows(model)
        got = model(input_ids=ids, **options).logits[0, : WINDOW + 1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
