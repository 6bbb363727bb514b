"""The compiled head of CPUs against the float64 oracle, and what happens where it cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from head_cases import EVERY, NATS, SHARE, compare, problem, wide
from palate.errors import ModelError
from palate.kernels import Head, RefHidden, RefSummary, cpu, summarise, token_stats
from palate.kernels.cpu import build, check
from palate.testing import token_stats_oracle

compiled = pytest.mark.skipif(
    not cpu.available(), reason=f"no compiled head on this machine: {cpu.why_not()}"
)


@compiled
@pytest.mark.parametrize(
    ("n", "words", "width"),
    # One token; tails of words, of tokens and of an odd width; more tokens than one product takes.
    [(1, 50, 16), (5, 127, 8), (64, 128, 128), (70, 513, 33), (17, 1000, 7), (600, 300, 160)],
)
def test_any_number_of_tokens_words_and_components(n: int, words: int, width: int) -> None:
    compare(problem(n, words, width, bias=True))


@compiled
@pytest.mark.parametrize("head", [{"scale": 0.25}, {"softcap": 5.0}, {"bias": True, "scale": 1.5}])
def test_options_of_a_head(head: dict[str, Any]) -> None:
    compare(problem(**head))


@compiled
def test_a_reference_of_another_width() -> None:
    compare(problem(ref_width=24, bias=True), nats=5e-5)


@compiled
@pytest.mark.parametrize("asked", [("logp",), ("logp", "kl"), ("logp", "entropy"), ("reverse_kl",)])
@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("weight", "bias")])
def test_any_statistic_trains_any_part(asked: tuple[str, ...], trained: tuple[str, ...]) -> None:
    compare(problem(bias=True), asked, trained)


@compiled
def test_rows_without_a_gradient_and_rows_without_the_reference() -> None:
    up = torch.zeros(4, 70)
    up[0, :40] = 1.0
    up[1, 20:50] = 1.0
    compare(problem(), up=up)
    x = problem()
    hidden = x["hidden"].clone().requires_grad_()
    stats = token_stats(**x | {"hidden": hidden}, kl=True)
    ((stats.logp * up[0]).sum() + (stats.kl * up[1]).sum()).backward()
    assert torch.equal(hidden.grad[50:], torch.zeros_like(hidden[50:]))


@compiled
def test_words_that_are_left_out_count_nothing() -> None:
    """Bias -inf in the whole first tile, and in single words of others."""
    x = problem(bias=True, words=600)
    gone = [*range(130), 200, 599]
    for head in (x["head"], x["reference"].head):
        head.bias[gone] = float("-inf")
    x["targets"] = x["targets"].clamp(min=300, max=500)
    up = torch.randn(4, 70, generator=torch.Generator().manual_seed(1))
    hidden = x["hidden"].clone().requires_grad_()
    stats = token_stats(**x | {"hidden": hidden}, kl=True, reverse_kl=True, entropy=True)
    kept = [i for i in range(600) if i not in gone]
    part = x | {
        "hidden": x["hidden"].double().requires_grad_(),
        "targets": torch.tensor([kept.index(int(y)) for y in x["targets"]]),
        "head": Head(weight=x["head"].weight[kept].double(), bias=x["head"].bias[kept].double()),
        "reference": RefHidden(
            hidden=x["reference"].hidden.double(),
            head=Head(
                weight=x["reference"].head.weight[kept].double(),
                bias=x["reference"].head.bias[kept].double(),
            ),
        ),
    }
    right = token_stats_oracle(**part, kl=True, reverse_kl=True, entropy=True)
    for name in EVERY:
        got, want = getattr(stats, name), getattr(right, name)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=NATS)
    got, want = (
        torch.autograd.grad(
            sum((getattr(s, k) * u).sum() for k, u in zip(EVERY, up, strict=True)), h
        )[0]
        for s, h in ((stats, hidden), (right, part["hidden"]))
    )
    assert (got.double() - want).norm() / want.norm() < SHARE


@compiled
@pytest.mark.parametrize("size", [1.0, 4.0, 12.0])
def test_logits_of_any_range(size: float) -> None:
    """At 12 they reach 170, of a policy as far from its reference as training takes it."""
    x = problem(width=256, words=2000, size=size)
    weight = x["head"].weight
    moved = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.01
    x["reference"] = RefHidden(hidden=x["hidden"], head=Head(weight=moved.bfloat16()))
    compare(x, nats=1e-4, memory_mb=64)


@compiled
def test_logits_that_rise_from_block_to_block() -> None:
    """By more than exp can take, so that what was summed before must fade."""
    x = problem(words=3000, width=16)
    for head in (x["head"], x["reference"].head):
        head.weight[:, 0] = (60 * torch.arange(3000) // 128).bfloat16()
    x["hidden"][:, 0] = x["reference"].hidden[:, 0] = torch.tensor([1.0, 0.0]).repeat(35)
    compare(x, nats=2e-3)
    frozen = x | {"reference": RefHidden(hidden=x["reference"].hidden, head=x["head"])}
    compare(frozen, ("logp", "kl"), ("hidden",), nats=2e-3)


@compiled
@pytest.mark.parametrize("head", [{}, {"bias": True, "scale": 0.5}])
@pytest.mark.parametrize(("n", "words", "width"), [(70, 333, 48), (9, 5000, 33), (300, 3000, 160)])
def test_a_frozen_head_that_is_shared(head: dict[str, Any], n: int, words: int, width: int) -> None:
    x = problem(n, words, width, **head)
    x["reference"] = RefHidden(hidden=x["reference"].hidden, head=x["head"])
    compare(x, ("logp", "kl"), ("hidden",))
    compare(x, ("logp",), ("hidden",))
    summary = summarise(
        hidden=x["reference"].hidden, head=x["head"], targets=x["targets"], memory_mb=1
    )
    assert isinstance(summary, RefSummary)
    right = token_stats_oracle(
        hidden=x["hidden"].double(),
        head=wide(x["head"]),
        targets=x["targets"],
        reference=RefHidden(hidden=x["reference"].hidden.double(), head=wide(x["head"])),
        kl=True,
    )
    stats = token_stats(**x | {"reference": summary}, kl=True)
    torch.testing.assert_close(stats.kl.double(), right.kl, rtol=0, atol=NATS)
    torch.testing.assert_close(summary.logp.double(), right.ref_logp, rtol=0, atol=NATS)


@compiled
def test_sums_over_a_large_vocabulary_have_no_bias() -> None:
    x = problem(64, 200_000, 32)
    found = token_stats(**x, kl=True)
    right = token_stats_oracle(
        hidden=x["hidden"].double(),
        head=wide(x["head"]),
        targets=x["targets"],
        reference=RefHidden(hidden=x["reference"].hidden.double(), head=wide(x["reference"].head)),
        kl=True,
    )
    for name in ("logp", "kl"):
        off = getattr(found, name).double() - getattr(right, name)
        assert off.abs().max() < 1e-5 and off.mean().abs() < 1e-6, name


@compiled
def test_the_number_of_threads_changes_nothing_but_rounding() -> None:
    x = problem(100, 2000, 64)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            hidden = x["hidden"].clone().requires_grad_()
            weight = x["head"].weight.clone().requires_grad_()
            stats = token_stats(**x | {"hidden": hidden, "head": Head(weight=weight)}, kl=True)
            (stats.logp.sum() + stats.kl.sum()).backward()
            results.append((stats.logp, stats.kl, hidden.grad, weight.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)


@compiled
def test_what_is_not_a_number_is_not_hidden() -> None:
    x = problem()
    x["hidden"][3] = float("nan")
    hidden = x["hidden"].clone().requires_grad_()
    weight = x["head"].weight.clone().requires_grad_()
    stats = token_stats(**x | {"hidden": hidden, "head": Head(weight=weight)}, kl=True)
    assert stats.logp.isnan().nonzero().flatten().tolist() == [3]
    stats.logp.sum().backward()
    assert hidden.grad[3].isnan().all() and not hidden.grad[4].isnan().any()
    assert weight.grad.isnan().any()


@compiled
@pytest.mark.parametrize("target", [-1, 333])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    x = problem()
    x["targets"][5] = target
    for reference in (x["reference"], None):
        with pytest.raises(IndexError, match="outside the vocabulary of 333"):
            token_stats(**x | {"reference": reference})


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[pytest.MonkeyPatch]:
    """As in a process that has not looked for the compiled head, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.why_not.cache_clear()
    build.library.cache_clear()
    yield monkeypatch
    build.why_not.cache_clear()
    build.library.cache_clear()


def test_the_switch(anew: pytest.MonkeyPatch) -> None:
    anew.setenv(build.SWITCH, "0")
    assert cpu.why_not() == "PALATE_COMPILED=0"
    stats = token_stats(**problem())
    assert stats.logp.dtype == torch.float32
    build.why_not.cache_clear()
    anew.setenv(build.SWITCH, "yes")
    with pytest.raises(ModelError, match="PALATE_COMPILED is 0 or 1, not 'yes'"):
        cpu.why_not()


def test_without_a_compiler_torch_does_it_and_that_is_said_once(
    anew: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    anew.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    anew.setenv("CXX", "no-such-compiler")
    anew.setattr(logging.getLogger("palate"), "propagate", True)
    x = problem()
    for _ in range(2):
        token_stats(**x)
    (record,) = [r for r in caplog.records if "compiled ones" in r.getMessage()]
    assert "cannot be compiled" in record.getMessage()
    assert list((tmp_path / "palate" / "kernels").iterdir()) == []
    build.why_not.cache_clear()
    build.library.cache_clear()
    anew.setenv(build.SWITCH, "1")
    with pytest.raises(ModelError, match="PALATE_COMPILED=1, but kernels cannot be compiled"):
        token_stats(**x)


FAULTS = {
    "head.cpp": ("q.lse - q.mean[1]", "q.lse - 1.001f * q.mean[1]"),
    "attention.cpp": ("< int32_t(a.window)", "<= int32_t(a.window)"),
    "layers.cpp": ("mean * v));", "1.1f * mean * v));"),
}


@compiled
def test_wrong_results_are_found_before_they_are_used(anew: pytest.MonkeyPatch) -> None:
    """As another libtorch, or a compiler with a bug, would give them."""
    sources = build.sources()
    for file, (right, wrong) in FAULTS.items():
        assert right in sources[file]
        sources[file] = sources[file].replace(right, wrong)
    anew.setattr(build, "sources", lambda: sources)
    assert "entropy is off by" in (cpu.why_not() or "")
    with pytest.raises(build.Unavailable, match="attention: values are off by"):
        check._check_attention()
    with pytest.raises(build.Unavailable, match="a norm: gradient 0 are off by"):
        check._check_layers()
