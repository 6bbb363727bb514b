"""The Triton kernels against the float64 oracle; `test_triton` runs these in an interpreter.

On a machine with a GPU `pytest tests/kernels/triton_cases.py` runs them there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from head_cases import EVERY, compare, problem, wide
from host_reads import HostReads
from palate.errors import ModelError
from palate.kernels import Head, RefHidden, summarise, token_stats, triton
from palate.kernels.cpu import check as cpu_check
from palate.kernels.triton import available
from palate.kernels.triton import head as head_module
from palate.testing import token_stats_oracle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Values in nats, and gradients as a share of their norm: those are products of what is rounded.
NATS = {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
# The interpreter cuts bfloat16 off where a GPU rounds it.
SHARE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2 if INTERPRETED else 6e-3}

pytestmark = [
    # As on a GPU, whose kernels say nothing of -inf less -inf where the result is not used.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the functions of `palate.kernels.triton` that were called, one at least."""
    names: list[str] = []
    for name in ("forward", "backward", "expected"):
        function = getattr(triton, name)

        def spy(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> Any:
            names.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(triton, name, spy)
    yield names
    assert names, "went to torch"


@contextmanager
def no_waiting() -> Iterator[None]:
    """On a device, an error where the host waits for it."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def check(x: dict[str, Any], *args: Any, **options: Any) -> None:
    dtype = x["hidden"].dtype
    compare(x, *args, **{"nats": NATS[dtype], "share": SHARE[dtype]} | options)


def drawn(n: int = 20, words: int = 150, width: int = 40, **options: Any) -> dict[str, Any]:
    """Small, since each tile takes the interpreter tens of milliseconds."""
    return problem(n, words, width, device=DEVICE, **options)


@pytest.mark.parametrize(
    ("n", "words", "width", "dtype"),
    # One token; tails of words, of tokens and of an odd width; several blocks of each.
    [
        (1, 50, 16, torch.float32),
        (5, 127, 8, torch.float16),
        (64, 64, 128, torch.bfloat16),
        (70, 129, 33, torch.float32),
        (66, 130, 100, torch.float16),
        (150, 200, 80, torch.bfloat16),
    ],
)
def test_any_number_of_tokens_words_and_components(
    n: int, words: int, width: int, dtype: torch.dtype
) -> None:
    check(drawn(n, words, width, bias=True, dtype=dtype))


@pytest.mark.parametrize("head", [{"scale": 0.25}, {"softcap": 5.0}, {"bias": True, "scale": 1.5}])
def test_options_of_a_head(head: dict[str, Any]) -> None:
    check(drawn(**head, dtype=torch.float32))
    check(drawn(**head))


def test_a_reference_of_another_width_and_type() -> None:
    check(drawn(ref_width=24, bias=True, dtype=torch.float32))
    x, narrow = drawn(dtype=torch.float32), drawn(ref_width=24)
    check(x | {"reference": narrow["reference"]})


@pytest.mark.parametrize("asked", [("logp",), ("logp", "kl"), ("entropy",), ("reverse_kl",)])
@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",)])
def test_any_statistic_trains_any_part(asked: tuple[str, ...], trained: tuple[str, ...]) -> None:
    check(drawn(9, 50, 24, bias=True, dtype=torch.float32), asked, trained)


def test_log_probs_and_entropy_without_a_reference() -> None:
    check(drawn(dtype=torch.float32) | {"reference": None}, ("logp", "entropy"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_gradient_and_rows_without_the_reference(dtype: torch.dtype) -> None:
    """Whole blocks of them and parts; what stands in rows without a gradient touches nothing."""
    n = 200
    up = torch.zeros(4, n)
    up[0, 60:180] = 1.0
    up[1, 100:200:2] = -2.0
    x = drawn(n, 64, 16, dtype=dtype)
    check(x, ("logp", "kl"), up=up)
    x["hidden"][:60] = torch.nan
    hidden, weight = (t.clone().requires_grad_() for t in (x["hidden"], x["head"].weight))
    stats = token_stats(**x | {"hidden": hidden, "head": Head(weight=weight)}, kl=True)
    # So that zeros come from nothing but zeros.
    logp, kl = stats.logp[60:], stats.kl[60:]
    up = up[:, 60:].to(DEVICE)
    ((logp * up[0]).sum() + (kl * up[1]).sum()).backward(retain_graph=True)
    assert torch.equal(hidden.grad[:60], torch.zeros_like(hidden[:60]))
    assert torch.equal(hidden.grad[181::2], torch.zeros_like(hidden[181::2]))
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
    hidden.grad = weight.grad = None
    (logp * 0.0).sum().backward()
    for leaf in (hidden, weight):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_rows_without_the_reference_do_not_hear_of_it() -> None:
    x = drawn(dtype=torch.float32)
    x["reference"].hidden[:10] = torch.nan
    leaves = [t.clone().requires_grad_() for t in (x["hidden"], x["head"].weight)]
    options = {"hidden": leaves[0], "head": Head(weight=leaves[1])}
    stats = token_stats(**x | options, kl=True, reverse_kl=True)
    total = stats.logp.sum() + stats.kl[10:].sum() + stats.reverse_kl[10:].sum()
    for gradient in torch.autograd.grad(total, leaves):
        assert gradient.isfinite().all()


def excluded(x: dict[str, Any], gone: list[int], words: int) -> dict[str, Any]:
    """The same problem in float64 without the words `gone`."""
    kept = [i for i in range(words) if i not in gone]

    def small(head: Head) -> Head:
        assert head.bias is not None
        return Head(weight=head.weight[kept].double(), bias=head.bias[kept].double())

    return x | {
        "hidden": x["hidden"].double().requires_grad_(),
        "targets": torch.tensor([kept.index(int(y)) for y in x["targets"]], device=DEVICE),
        "head": small(x["head"]),
        "reference": RefHidden(
            hidden=x["reference"].hidden.double(), head=small(x["reference"].head)
        ),
    }


@pytest.mark.parametrize("shared", [False, True], ids=["general", "frozen"])
def test_words_that_are_left_out_count_nothing(shared: bool) -> None:
    """Bias -inf in the whole first tile, and in single words of others."""
    x = drawn(20, 150, 16, bias=True, dtype=torch.float32)
    gone = [*range(70), 100, 149]
    if shared:
        x["reference"] = RefHidden(hidden=x["reference"].hidden, head=x["head"])
    for head in (x["head"], x["reference"].head):
        head.bias[gone] = float("-inf")
    x["targets"] = x["targets"].clamp(min=101, max=148)
    asked = ("logp", "kl") if shared else EVERY
    options = {name: True for name in asked if name != "logp"}
    hidden = x["hidden"].clone().requires_grad_()
    stats = token_stats(**x | {"hidden": hidden}, **options)
    part = excluded(x, gone, 150)
    right = token_stats_oracle(**part, **options)
    up = torch.randn(4, 20, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for name in asked:
        got, want = getattr(stats, name), getattr(right, name)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    got, want = (
        torch.autograd.grad(
            sum((getattr(s, k) * u).sum() for k, u in zip(EVERY, up, strict=True) if k in asked), h
        )[0]
        for s, h in ((stats, hidden), (right, part["hidden"]))
    )
    assert (got.double() - want).norm() / want.norm() < 1e-5


@pytest.mark.parametrize("size", [1.0, 12.0])
def test_logits_of_any_range(size: float) -> None:
    """At 12 they reach 170, of a policy as far from its reference as training takes it."""
    x = drawn(width=256, size=size)
    weight = x["head"].weight
    moved = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE) * 0.01
    x["reference"] = RefHidden(hidden=x["hidden"], head=Head(weight=(weight + moved).bfloat16()))
    check(x, nats=1e-4)


@pytest.mark.parametrize("rise", [60.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_rise_from_tile_to_tile(rise: float, dtype: torch.dtype) -> None:
    """By more than exp can take, so that what was summed before must fade; others fall, or stay."""
    x = drawn(20, 200, 16, dtype=dtype)
    sides = [(x["hidden"], x["head"]), (x["reference"].hidden, x["reference"].head)]
    for hidden, head in sides:
        head.weight[:, 0] = rise * (torch.arange(200, device=DEVICE) // 64)
        hidden[:, 0] = torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0], device=DEVICE).repeat(4)
    # Logits of 3,000 are 2e-4 apart in float32.
    check(x, nats=2e-3, share=1e-2)
    frozen = x | {"reference": RefHidden(hidden=x["reference"].hidden, head=x["head"])}
    check(frozen, ("logp", "kl"), ("hidden",), nats=2e-3, share=1e-2)


@pytest.mark.parametrize(
    ("n", "words", "width", "dtype", "head"),
    [
        (20, 150, 40, torch.float32, {}),
        (20, 150, 40, torch.float32, {"bias": True, "scale": 0.5}),
        (70, 100, 24, torch.float16, {}),
        (130, 129, 33, torch.bfloat16, {"bias": True, "scale": 0.5}),
    ],
)
def test_a_frozen_head_that_is_shared(
    calls: list[str], n: int, words: int, width: int, dtype: torch.dtype, head: dict[str, Any]
) -> None:
    x = drawn(n, words, width, dtype=dtype, **head)
    x["reference"] = RefHidden(hidden=x["reference"].hidden, head=x["head"])
    check(x, ("logp", "kl"), ("hidden",))
    assert set(calls) == {"expected"}
    check(x, ("logp",), ("hidden",))
    options = {"hidden": x["reference"].hidden, "head": x["head"], "targets": x["targets"]}
    summary = summarise(**options, memory_mb=1)
    right = token_stats_oracle(
        hidden=x["hidden"].double(),
        head=wide(x["head"]),
        targets=x["targets"],
        reference=RefHidden(hidden=x["reference"].hidden.double(), head=wide(x["head"])),
        kl=True,
    )
    stats = token_stats(**x | {"reference": summary}, kl=True)
    torch.testing.assert_close(stats.kl.double(), right.kl, rtol=0, atol=2e-5)
    torch.testing.assert_close(summary.logp.double(), right.ref_logp, rtol=0, atol=2e-5)


def test_rows_that_are_far_apart_in_memory() -> None:
    """As of a layer's output of which every second position is looked at."""
    x = drawn(20, 100, 24, dtype=torch.float32)
    apart = torch.stack([x["hidden"], x["hidden"] + 1.0], 1)
    x["hidden"] = apart[:, 0]
    assert not x["hidden"].is_contiguous() and triton.takes(x["hidden"], x["head"].weight)
    stats, right = (f(**x, kl=True) for f in (token_stats, token_stats_oracle))
    torch.testing.assert_close(stats.kl.double(), right.kl, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_buffer_and_the_parts_change_rounding_only(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The buffer holds some tiles of words or all; a program goes through one or through all."""
    x = drawn(9, 200, 24, dtype=dtype)
    x["head"].weight[150:] *= 2.0
    frozen = x | {"reference": RefHidden(hidden=x["reference"].hidden, head=x["head"])}
    results = []
    for fit in (128, 10_000):
        monkeypatch.setattr(
            head_module, "buffered_words", lambda *, words, fit=fit, **_: min(fit, words + 56)
        )
        monkeypatch.setattr(
            head_module, "tiles_a_program", lambda tiles, *_, fit=fit: min(fit // 128, tiles)
        )
        check(x)
        check(frozen, ("logp", "kl"), ("hidden",))
        results.append([token_stats(**some, kl=True).kl for some in (x, frozen)])
    for several, at_once in zip(*results, strict=True):
        torch.testing.assert_close(several, at_once, rtol=0, atol=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_the_host_asks_for_no_number(trained: bool) -> None:
    x = drawn(dtype=torch.float32)
    head = x["head"]
    x["hidden"].requires_grad_()
    head.weight.requires_grad_(trained)
    reference = RefHidden(hidden=x["reference"].hidden, head=Head(weight=head.weight.detach()))
    assert triton.takes(x["hidden"], head.weight)
    with HostReads() as reads, no_waiting():
        stats = token_stats(**x | {"reference": reference}, kl=True, reverse_kl=trained)
        (stats.logp.sum() + stats.kl.sum()).backward()
    assert reads.names == []


def test_results_are_the_same_every_time() -> None:
    x = drawn(70)
    results = []
    for _ in range(2):
        hidden = x["hidden"].clone().requires_grad_()
        weight = x["head"].weight.clone().requires_grad_()
        stats = token_stats(**x | {"hidden": hidden, "head": Head(weight=weight)}, kl=True)
        (stats.logp.sum() + stats.kl.sum()).backward()
        results.append((stats.logp, stats.kl, hidden.grad, weight.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_what_is_not_a_number_is_not_hidden() -> None:
    x = drawn()
    x["hidden"][3] = float("nan")
    hidden = x["hidden"].clone().requires_grad_()
    weight = x["head"].weight.clone().requires_grad_()
    stats = token_stats(**x | {"hidden": hidden, "head": Head(weight=weight)}, kl=True)
    assert stats.logp.isnan().nonzero().flatten().tolist() == [3]
    stats.logp.sum().backward()
    assert hidden.grad[3].isnan().all() and not hidden.grad[4].isnan().any()
    assert weight.grad.isnan().any()
    frozen = token_stats(**x | {"hidden": hidden, "reference": None})
    assert frozen.logp.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.skipif(not INTERPRETED, reason="a device that met an error can do nothing more")
@pytest.mark.parametrize("target", [-1, 150])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    x = drawn()
    x["targets"][5] = target
    for reference in (x["reference"], None):
        with pytest.raises(RuntimeError):
            token_stats(**x | {"reference": reference})


def test_what_the_kernels_do_not_take_goes_to_torch(calls: list[str]) -> None:
    x = drawn(dtype=torch.float32)
    double = x["hidden"].double(), x["head"].weight.double()
    assert triton.takes(x["hidden"], x["head"].weight)
    assert not triton.takes(*double)
    assert not triton.takes(x["hidden"].bfloat16(), x["head"].weight)
    assert not triton.takes(x["hidden"][:0], x["head"].weight)
    assert not triton.takes(x["hidden"], x["head"].weight.T.contiguous().T)
    assert not triton.takes(x["hidden"], x["head"].weight, x["hidden"].bfloat16(), double[1])
    stats = token_stats(hidden=double[0], head=Head(weight=double[1]), targets=x["targets"])
    assert stats.logp.dtype == torch.float64 and calls == []
    calls.append("none, as it should be")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As in a process that has not tried the kernels."""
    available.why_not.cache_clear()
    yield monkeypatch
    available.why_not.cache_clear()


def test_the_switch(anew: pytest.MonkeyPatch, calls: list[str]) -> None:
    x = drawn(dtype=torch.float32)
    anew.setenv("PALATE_COMPILED", "0")
    assert triton.why_not(torch.device(DEVICE)) == "PALATE_COMPILED=0"
    token_stats(**x, kl=True)
    assert calls == []
    available.why_not.cache_clear()
    anew.setenv("PALATE_COMPILED", "1")
    token_stats(**x, kl=True)
    assert calls == ["forward"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(ImportError("no triton"), "is not installed"), (OSError("no cc\nfoo"), "OSError: no cc")],
)
def test_where_they_cannot_run_torch_does_it_and_that_is_said_once(
    anew: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    calls: list[str],
    error: Exception,
    words: str,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    anew.setattr(cpu_check, "check_head", fails)
    anew.setattr(logging.getLogger("palate"), "propagate", True)
    x = drawn(dtype=torch.float32)
    for _ in range(2):
        token_stats(**x, kl=True)
    assert calls == []
    calls.append("none, as it should be")
    (record,) = [r for r in caplog.records if "vocabulary head" in r.getMessage()]
    assert words in record.getMessage() and "foo" not in record.getMessage()
    available.why_not.cache_clear()
    anew.setenv("PALATE_COMPILED", "1")
    with pytest.raises(ModelError, match=words):
        token_stats(**x, kl=True)


def test_wrong_results_are_found_before_they_are_used(
    anew: pytest.MonkeyPatch, calls: list[str]
) -> None:
    backward = head_module.backward

    def wrong(*args: Any, **options: Any) -> Any:
        hidden, weight, bias = backward(*args, **options)
        return hidden, weight * 1.05, bias

    anew.setattr(head_module, "backward", wrong)
    assert "vocabulary head: weight are off by 4" in str(triton.why_not(torch.device(DEVICE)))
    calls.append("none, as it should be")
