"""FlexAttention over blocks of shared rows, on the CPU, against dense masks in torch's kernel."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from palate.data.items import Item, PairLabel
from palate.data.layouts import collate
from palate.models import block_attention
from palate.models.attention import NAME, use_rows
from palate.models.check import layout_check
from palate.models.model import Model
from tiny import CONFIGS, VOCABULARY, tiny_model

# Said by torch's compiler of its own look at the queries.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an accelerator runs, with the scores made whole: the kernel itself needs a GPU."""
    compiled = torch.compile(flex.flex_attention, dynamic=True, backend="eager")
    monkeypatch.setattr(block_attention, "DEVICES", {"cpu"})
    monkeypatch.setattr(block_attention, "LEAST_HEAD", 8)
    monkeypatch.setattr(block_attention, "_compiled", lambda: compiled)
    # Gradients are refused there for want of a kernel, not of the formula.
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    counters.clear()
    yield
    torch._dynamo.reset()


def pairs(count: int, longest: int = 60) -> list[Item]:
    rng = random.Random(count)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, longest)))

    return [Item.of(ids(), ids(), ids(), label=PairLabel(), id=str(i)) for i in range(count)]


def structure_of(items: list[Item], window: int) -> Tensor:
    inputs = collate(items, layout="shared", pad_id=0).inputs
    until, positions = inputs["visible_until"], inputs["position_ids"]
    lines = [until, positions, torch.full_like(until, window)]
    return torch.stack(lines, dim=1).unsqueeze(1)


def visible(structure: Tensor) -> Tensor:
    """[R, T, T], place by place."""
    out = torch.zeros(len(structure), *[structure.shape[-1]] * 2, dtype=torch.bool)
    for r, (until, positions, windows) in enumerate(structure[:, 0].tolist()):
        for q in range(len(until)):
            for k in range(q + 1):
                near = not windows[k] or positions[q] - positions[k] < windows[k]
                out[r, q, k] = q == k or (q < until[k] and near)
    return out


def dense(model: Model) -> Model:
    plain = copy.deepcopy(model)
    plain.base.set_attn_implementation("sdpa")
    return plain


@pytest.mark.parametrize("window", [None, 0, 40])
def test_blocks_cover_what_is_visible_and_no_more_than_they_must(window: int | None) -> None:
    structure = structure_of(pairs(5, 250), window or 0)
    if window is None:
        setattr(structure, block_attention.WINDOWED, False)
    rows, width = len(structure), structure.shape[-1]
    assert rows > 1 and width > 2 * block_attention.BLOCK and width % block_attention.BLOCK
    seen = visible(structure)
    table = block_attention.block_mask(structure)
    count = -(-width // block_attention.BLOCK)
    padded = torch.zeros(rows, count * block_attention.BLOCK, count * block_attention.BLOCK)
    padded[:, :width, :width] = seen
    blocks = padded.bool().unflatten(2, (count, -1)).unflatten(1, (count, -1)).transpose(2, 3)
    listed = torch.zeros(2, rows, count, count, dtype=torch.bool)
    for which, (counts, order) in enumerate(
        [
            (table.kv_num_blocks, table.kv_indices),
            (table.full_kv_num_blocks, table.full_kv_indices),
        ]
    ):
        for r in range(rows):
            for q in range(count):
                listed[which, r, q, order[r, 0, q, : counts[r, 0, q]].long()] = True
    partial, full = listed
    assert not (partial & full).any()
    assert blocks[full].all(), "a block taken as wholly visible hides something"
    assert not blocks[~(partial | full)].any(), "a block that is left out shows something"
    if not window:
        assert full.any() and (partial | full).equal(blocks.any(-1).any(-1))
    else:
        # The ends of a window are found by the positions at the ends of blocks.
        assert (partial | full).sum() < torch.ones(rows, count, count).tril().sum()
    # Tensors without numbers: nothing of the table is looked at to make it.
    assert block_attention.block_mask(structure.to("meta")).kv_indices.shape == (
        rows,
        1,
        *[count] * 2,
    )
    place = torch.arange(width)
    r = torch.arange(rows)[:, None, None]
    assert table.mask_mod(r, 0, place[:, None], place).equal(seen)


@pytest.mark.parametrize(
    ("family", "count"), [("llama", 9), ("mistral", 9), ("gemma3", 1), ("gemma3", 9)]
)
@pytest.mark.usefixtures("on_cpu")
def test_states_and_gradients_are_those_of_dense_masks(family: str, count: int) -> None:
    model = tiny_model(family)
    use_rows(model)
    policy = Model.policy(model)
    assert model.config._attn_implementation == NAME
    batch = collate(pairs(count), layout="shared", pad_id=0)
    results = []
    for each in (policy, dense(policy)):
        states = each.hidden(batch)
        states.square().sum().backward()
        results.append((states.detach(), each.base.get_input_embeddings().weight.grad))
    assert counters["stats"]["unique_graphs"] >= 1, "nothing went by blocks"
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)


@pytest.mark.usefixtures("on_cpu")
def test_one_kernel_serves_all_lengths_and_one_table_all_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    use_rows(model)
    policy = Model.policy(model)
    built, make = [], block_attention._block_mask
    monkeypatch.setattr(
        block_attention, "_block_mask", lambda *a, **k: built.append(a) or make(*a, **k)
    )
    with torch.no_grad():
        # Sizes that are equal at first count as one: here no table has as many blocks as heads.
        for count in (7, 9, 12, 15):
            policy.hidden(collate(pairs(count), layout="shared", pad_id=0))
    assert len({a[0].shape for a in built}) == len(built) == 4
    # Rows are packed into one: without padding, so that nothing of it is attended either.
    assert all(len(a[0]) == 1 and (a[0] > 0).all() for a in built)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("on_cpu")
def test_soft_capped_scores() -> None:
    g = torch.manual_seed(0)
    structure = structure_of(pairs(4), 0)
    rows, width = len(structure), structure.shape[-1]
    q, k, v = (torch.randn(rows, h, width, 16, generator=g) for h in (4, 2, 2))
    got = block_attention.block_attention(q, k, v, structure, scale=2.0, softcap=3.0)
    scores = 3.0 * torch.tanh(2.0 * q @ k.repeat_interleave(2, 1).transpose(2, 3) / 3.0)
    scores = scores.masked_fill(~visible(structure)[:, None], -torch.inf)
    want = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("on_cpu")
def test_heads_that_do_not_fit_get_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    use_rows(model)
    policy = Model.policy(model)
    batch = collate(pairs(9), layout="shared", pad_id=0)
    with torch.no_grad():
        want = policy.hidden(batch)
        assert counters["stats"]["unique_graphs"] == 1
        monkeypatch.setattr(block_attention, "LEAST_HEAD", 16)
        counters.clear()
        assert not block_attention.takes_blocks(model.config, model.dtype)
        masks = []
        hook = model.model.layers[0].register_forward_pre_hook(
            lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True
        )
        torch.testing.assert_close(policy.hidden(batch), want, atol=1e-4, rtol=1e-4)
        hook.remove()
    assert masks[0].dtype == torch.float32 and not counters["stats"]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_check_of_a_run_refuses_what_looks_ahead(bidirectional: bool) -> None:
    config = CONFIGS["gemma3"]()
    config.use_bidirectional_attention = bidirectional
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    use_rows(model)
    verdict = layout_check(Model.policy(model), longest=40)
    assert verdict.ok is not bidirectional
    assert not bidirectional or "self_attn (Gemma3Attention) sees later tokens" in verdict.words


@pytest.mark.usefixtures("on_cpu")
def test_the_check_of_a_run_guards_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma3")
    use_rows(model)
    assert layout_check(Model.policy(model), longest=40).ok
    assert counters["stats"]["unique_graphs"] >= 1
    make = block_attention._block_mask
    monkeypatch.setattr(
        block_attention,
        "_block_mask",
        lambda u, *lines, **k: make(torch.full_like(u, u.shape[1]), *lines, **k),
    )
    broken = layout_check(Model.policy(model), longest=40)
    assert not broken.ok and "responses see one another" in broken.words
