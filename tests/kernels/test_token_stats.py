"""Every operator against the float64 oracle on full logits."""

from __future__ import annotations

import itertools

import pytest
import torch

from palate.kernels import (
    Head,
    RefHidden,
    RefLogps,
    RefSummary,
    TokenStats,
    summarise,
    tiles,
    token_stats,
)
from palate.kernels import general as general_module
from palate.kernels.frozen import stream
from palate.testing import token_stats_oracle

FIELDS = ("logp", "kl", "reverse_kl", "entropy")


def problem(n=7, v=37, d=5, dtype=torch.float64, bias=False, seed=0, scale_logits=3.0):
    g = torch.Generator().manual_seed(seed)

    def rand(*shape, s=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * s).to(dtype)

    return {
        "hidden": rand(n, d),
        "ref_hidden": rand(n, d),
        "weight": rand(v, d, s=scale_logits / d**0.5),
        "ref_weight": rand(v, d, s=scale_logits / d**0.5),
        "bias": rand(v) if bias else None,
        "ref_bias": rand(v) if bias else None,
        "targets": torch.randint(v, (n,), generator=g),
        "up": torch.randn(4, n, generator=g, dtype=torch.float64),
    }


def small_tiles(monkeypatch, tokens, vocabulary):
    monkeypatch.setattr(tiles, "CPU_TILE_TOKENS", tokens)
    monkeypatch.setattr(tiles, "CPU_TILE_VOCABULARY", vocabulary)


def combine(stats: TokenStats, up: torch.Tensor) -> torch.Tensor:
    total = None
    for name, u in zip(FIELDS, up, strict=True):
        value = getattr(stats, name)
        if value is not None:
            part = (value * u.to(value.dtype)).sum()
            total = part if total is None else total + part
    return total


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 4.0), (2.0, 2.0)])
@pytest.mark.parametrize("tile", [(3, 8), (100, 100), (1, 37)])
def test_general_equals_oracle(monkeypatch, bias, scale, softcap, tile):
    small_tiles(monkeypatch, *tile)
    x = problem(bias=bias)
    leaves = {k: x[k].clone().requires_grad_() for k in ("hidden", "weight")}
    if bias:
        leaves["bias"] = x["bias"].clone().requires_grad_()
    head = Head(weight=leaves["weight"], bias=leaves.get("bias"), scale=scale, softcap=softcap)
    ref = RefHidden(
        hidden=x["ref_hidden"],
        head=Head(weight=x["ref_weight"], bias=x["ref_bias"], scale=scale, softcap=softcap),
    )
    options = {"kl": True, "reverse_kl": True, "entropy": True}
    ours = token_stats(
        hidden=leaves["hidden"], head=head, targets=x["targets"], reference=ref, **options
    )
    oracle = token_stats_oracle(
        hidden=leaves["hidden"], head=head, targets=x["targets"], reference=ref, **options
    )
    for name in (*FIELDS, "ref_logp"):
        torch.testing.assert_close(getattr(ours, name), getattr(oracle, name), rtol=0, atol=1e-10)
    for chosen in ((1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        up = x["up"] * torch.tensor(chosen).unsqueeze(1)
        up[:, 2] = 0.0  # a row without upstream
        got = torch.autograd.grad(combine(ours, up), leaves.values(), retain_graph=True)
        want = torch.autograd.grad(combine(oracle, up), leaves.values(), retain_graph=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", ["live", "summary"])
def test_frozen_shared_head_equals_oracle(monkeypatch, scale, bias, how):
    small_tiles(monkeypatch, 3, 8)
    x = problem(bias=bias)
    hidden = x["hidden"].clone().requires_grad_()
    head = Head(weight=x["weight"], bias=x["bias"], scale=scale)
    live = RefHidden(hidden=x["ref_hidden"], head=head)
    ref = live
    if how == "summary":
        ref = summarise(hidden=x["ref_hidden"], head=head, targets=x["targets"])
    ours = token_stats(hidden=hidden, head=head, targets=x["targets"], reference=ref, kl=True)
    oracle = token_stats_oracle(
        hidden=hidden, head=head, targets=x["targets"], reference=live, kl=True
    )
    for name in ("logp", "kl", "ref_logp"):
        torch.testing.assert_close(getattr(ours, name), getattr(oracle, name), rtol=0, atol=1e-10)
    got = torch.autograd.grad(combine(ours, x["up"]), hidden)[0]
    want = torch.autograd.grad(combine(oracle, x["up"]), hidden)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_gradcheck():
    x = problem(n=3, v=11, d=4)
    up = x["up"]

    def general(hidden, weight):
        ref = RefHidden(hidden=x["ref_hidden"], head=Head(weight=x["ref_weight"]))
        stats = token_stats(
            hidden=hidden, head=Head(weight=weight), targets=x["targets"], reference=ref,
            kl=True, reverse_kl=True, entropy=True,
        )  # fmt: skip
        return combine(stats, up)

    assert torch.autograd.gradcheck(
        general, (x["hidden"].requires_grad_(), x["weight"].clone().requires_grad_())
    )
    head = Head(weight=x["weight"].detach())
    summary = summarise(hidden=x["ref_hidden"], head=head, targets=x["targets"])

    def frozen(hidden):
        return combine(
            token_stats(hidden=hidden, head=head, targets=x["targets"], reference=summary, kl=True),
            up,
        )

    assert torch.autograd.gradcheck(frozen, (x["hidden"],))


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_precision(frozen):
    """Within 1e-4 nats of the oracle on the same bf16 weights, bias below 1e-5."""
    x = problem(n=400, v=5003, d=64, dtype=torch.bfloat16, seed=3, scale_logits=8.0)
    near = x["hidden"] + 0.05 * torch.randn(x["hidden"].shape, generator=torch.manual_seed(1))
    hidden = near.to(torch.bfloat16).requires_grad_()
    head = Head(weight=x["weight"] if frozen else x["weight"].requires_grad_())
    ref = RefHidden(hidden=x["hidden"], head=Head(weight=x["weight"].detach()))
    options = {"targets": x["targets"], "reference": ref, "kl": True}
    ours = token_stats(hidden=hidden, head=head, **options)
    oracle = token_stats_oracle(hidden=hidden, head=head, **options)
    assert oracle.kl.mean() > 0.005
    for name in ("logp", "ref_logp", "kl"):
        error = getattr(ours, name).double() - getattr(oracle, name)
        assert error.abs().max() < 1e-4, name
        assert error.mean().abs() < 1e-5, name
    up = x["up"][:, :400]
    leaves = (hidden,) if frozen else (hidden, head.weight)
    got = torch.autograd.grad(combine(ours, up), leaves)
    want = torch.autograd.grad(combine(oracle, up), leaves)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() / b.norm() < 1e-2


def test_rows_without_upstream_cost_nothing(monkeypatch):
    """The backward pass multiplies only rows that carry gradient, and p only where KL does."""
    x = problem(n=8, v=64, d=4, dtype=torch.float32)
    hidden, weight = x["hidden"].requires_grad_(), x["weight"].requires_grad_()
    ref = RefHidden(hidden=x["ref_hidden"], head=Head(weight=x["ref_weight"]))
    stats = token_stats(
        hidden=hidden, head=Head(weight=weight), targets=x["targets"], reference=ref, kl=True
    )
    seen: list[int] = []
    product = general_module.logits

    def spy(h, rows, out=None):
        seen.append(h.shape[0])
        return product(h, rows, out)

    monkeypatch.setattr(general_module, "logits", spy)
    g_logp = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])
    g_kl = torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0])
    ((stats.logp * g_logp).sum() + (stats.kl * g_kl).sum()).backward()
    assert sorted(seen) == [2, 2, 3]
    assert torch.equal(hidden.grad[5:], torch.zeros(3, 4))


def test_no_expected_row_of_the_head_unless_asked():
    """It costs a second product, which a forward pass without gradient and KL does not need."""
    x = problem()
    head = Head(weight=x["weight"])
    _, lse, mean = stream(x["hidden"], head, x["targets"], mean=False, memory_mb=1)
    assert mean is None
    torch.testing.assert_close(lse, (x["hidden"] @ x["weight"].T).logsumexp(-1))


def test_no_graph_without_grad():
    x = problem(dtype=torch.float32)
    with torch.no_grad():
        stats = token_stats(
            hidden=x["hidden"].requires_grad_(), head=Head(weight=x["weight"]), targets=x["targets"]
        )
    assert stats.logp.grad_fn is None


@pytest.mark.parametrize("frozen", [False, True])
def test_extreme_gaps_are_finite(frozen):
    """A 120-nat gap makes softmax().log() infinite and 0 * inf nan; here nothing is."""
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    hidden = torch.tensor([[120.0, 0.0], [0.0, -120.0]], requires_grad=True)
    head = Head(weight=weight if frozen else weight.clone().requires_grad_())
    ref = RefHidden(hidden=torch.tensor([[-120.0, 0.0], [0.0, 120.0]]), head=Head(weight=weight))
    stats = token_stats(
        hidden=hidden, head=head, targets=torch.tensor([1, 2]), reference=ref, kl=True
    )
    (stats.logp.sum() + stats.kl.sum()).backward()
    assert torch.isfinite(stats.kl).all() and torch.isfinite(stats.logp).all()
    torch.testing.assert_close(stats.kl.detach(), torch.tensor([240.0, 120.0]), atol=1, rtol=0)
    assert torch.isfinite(hidden.grad).all()


def test_excluded_tokens_count_nothing():
    """A bias of -inf removes a token on both sides: 0 log 0 = 0, also in the gradient."""
    x = problem(bias=True)
    x["bias"][4] = x["ref_bias"][4] = float("-inf")
    targets = torch.where(x["targets"] == 4, 0, x["targets"])
    hidden, weight = x["hidden"].requires_grad_(), x["weight"].requires_grad_()
    ref = RefHidden(hidden=x["ref_hidden"], head=Head(weight=x["ref_weight"], bias=x["ref_bias"]))
    options = {
        "targets": targets,
        "reference": ref,
        "kl": True,
        "reverse_kl": True,
        "entropy": True,
    }
    ours = token_stats(hidden=hidden, head=Head(weight=weight, bias=x["bias"]), **options)
    keep = [i for i in range(37) if i != 4]
    small = token_stats_oracle(
        hidden=hidden,
        head=Head(weight=weight[keep], bias=x["bias"][keep]),
        targets=torch.tensor([keep.index(int(t)) for t in targets]),
        reference=RefHidden(
            hidden=x["ref_hidden"],
            head=Head(weight=x["ref_weight"][keep], bias=x["ref_bias"][keep]),
        ),
        kl=True, reverse_kl=True, entropy=True,
    )  # fmt: skip
    for name in (*FIELDS, "ref_logp"):
        torch.testing.assert_close(getattr(ours, name), getattr(small, name), rtol=0, atol=1e-10)
    got = torch.autograd.grad(combine(ours, x["up"]), (hidden, weight))
    want = torch.autograd.grad(combine(small, x["up"]), (hidden, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_constant_added_to_all_logits_changes_nothing():
    x = problem(bias=True)
    ref = RefHidden(hidden=x["ref_hidden"], head=Head(weight=x["ref_weight"], bias=x["ref_bias"]))
    options = {
        "targets": x["targets"],
        "reference": ref,
        "kl": True,
        "reverse_kl": True,
        "entropy": True,
    }
    a = token_stats(hidden=x["hidden"], head=Head(weight=x["weight"], bias=x["bias"]), **options)
    b = token_stats(
        hidden=x["hidden"], head=Head(weight=x["weight"], bias=x["bias"] + 7), **options
    )
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-10)


def test_empty_input_gives_differentiable_zeros():
    hidden = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    for weight in (torch.randn(9, 4), torch.randn(9, 4, requires_grad=True)):
        ref = RefHidden(hidden=torch.zeros(0, 4), head=Head(weight=weight.detach()))
        stats = token_stats(
            hidden=hidden, head=Head(weight=weight), targets=none, reference=ref, kl=True
        )
        (stats.logp.sum() + stats.kl.sum()).backward()
        assert stats.kl.shape == (0,)


@pytest.mark.parametrize(("kl", "reverse"), [(True, False), (False, True)])
def test_a_reference_that_cannot_answer_is_refused(kl, reverse):
    x = problem()
    head = Head(weight=x["weight"])
    common = {
        "hidden": x["hidden"],
        "head": head,
        "targets": x["targets"],
        "kl": kl,
        "reverse_kl": reverse,
    }
    for ref in (None, RefLogps(logp=torch.zeros(7))):
        with pytest.raises(ValueError, match="needs RefHidden"):
            token_stats(reference=ref, **common)
    summary = summarise(hidden=x["ref_hidden"], head=head, targets=x["targets"])
    assert isinstance(summary, RefSummary)
    if reverse:
        with pytest.raises(ValueError, match="needs RefHidden"):
            token_stats(reference=summary, **common)
    trained = Head(weight=x["weight"].clone().requires_grad_())
    with pytest.raises(ValueError, match="frozen"):
        token_stats(reference=summary, **(common | {"head": trained}))


@pytest.mark.parametrize("memory_mb", [1, 4, 64])
def test_tiles_stay_within_the_budget(memory_mb):
    for tokens, vocabulary, buffers, device in itertools.product(
        (1, 77, 2048, 50_000), (300, 152_064), (1, 4), ("cpu", "cuda")
    ):
        size = tiles.plan(
            tokens=tokens,
            vocabulary=vocabulary,
            buffers=buffers,
            memory_mb=memory_mb,
            device=device,
        )
        assert isinstance(size.tokens, int) and isinstance(size.vocabulary, int)
        assert 1 <= size.tokens <= tokens and 1 <= size.vocabulary <= vocabulary
        assert 4 * buffers * size.tokens * size.vocabulary <= memory_mb * 2**20


@pytest.mark.parametrize(
    ("device", "tokens", "vocabulary", "buffers", "memory_mb", "expected"),
    [
        # 64 MiB of float32 numbers: a tile of the cache's size, and many fit.
        ("cpu", 2048, 152_064, 1, 256, (512, 2048)),
        ("cpu", 100, 300, 1, 256, (100, 300)),
        # 2^16 numbers a tile: columns stay, rows give way.
        ("cpu", 2048, 152_064, 4, 1, (32, 2048)),
        # 2^13 numbers: columns are a sixteenth of them.
        ("cpu", 2048, 152_064, 32, 1, (16, 512)),
        ("cuda", 1000, 8192, 1, 256, (1000, 8192)),
        # 2^22 numbers: 50,000 rows are halved until 1024 are left, columns take the rest.
        ("cuda", 50_000, 152_064, 4, 64, (782, 5363)),
        # 2^26 numbers: 6,250 rows of 10,737 columns are wide enough.
        ("cuda", 50_000, 152_064, 1, 256, (6250, 10_737)),
        # 2^14 numbers: 64 columns are the least.
        ("cuda", 1000, 152_064, 16, 1, (256, 64)),
        ("cuda", 0, 300, 1, 1, (1, 300)),
    ],
)
def test_tiles_are_of_the_cache_or_wide(device, tokens, vocabulary, buffers, memory_mb, expected):
    size = tiles.plan(
        tokens=tokens, vocabulary=vocabulary, buffers=buffers, memory_mb=memory_mb, device=device
    )
    assert (size.tokens, size.vocabulary) == expected
    assert isinstance(size.tokens, int) and isinstance(size.vocabulary, int)
