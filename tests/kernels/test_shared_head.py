"""When the frozen-head operator may be used, and that it is not where it would be wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from palate.kernels import Head, RefHidden, shares_frozen_head, token_stats
from palate.testing import token_stats_oracle

WEIGHT = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BIAS = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
HEAD = Head(weight=WEIGHT, bias=BIAS, scale=0.5)

SAME = {
    "itself": HEAD,
    "a view of the same memory": Head(weight=WEIGHT.view(9, 9), bias=BIAS.view(9), scale=0.5),
}
OTHER = {
    "equal values elsewhere": dataclasses.replace(HEAD, weight=WEIGHT.clone()),
    "first rows": dataclasses.replace(HEAD, weight=WEIGHT[:8], bias=BIAS[:8]),
    "transposed": dataclasses.replace(HEAD, weight=WEIGHT.T),
    "no bias": dataclasses.replace(HEAD, bias=None),
    "another bias": dataclasses.replace(HEAD, bias=-BIAS),
    "another scale": dataclasses.replace(HEAD, scale=1.0),
    "a cap": dataclasses.replace(HEAD, softcap=3.0),
}


@pytest.mark.parametrize("name", SAME)
def test_one_memory_is_one_head(name: str) -> None:
    assert shares_frozen_head(HEAD) and shares_frozen_head(HEAD, SAME[name])
    bare = dataclasses.replace(HEAD, bias=None)
    assert shares_frozen_head(bare, dataclasses.replace(SAME[name], bias=None))


@pytest.mark.parametrize("name", OTHER)
def test_another_head_is_not_shared_either_way(name: str) -> None:
    assert not shares_frozen_head(HEAD, OTHER[name])
    assert not shares_frozen_head(OTHER[name], HEAD)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_trained_head_is_not_frozen(part: str) -> None:
    trained = getattr(HEAD, part).clone().requires_grad_()
    assert not shares_frozen_head(dataclasses.replace(HEAD, **{part: trained}))


def test_a_capped_head_is_not_linear() -> None:
    assert not shares_frozen_head(dataclasses.replace(HEAD, softcap=3.0))


@pytest.mark.parametrize("name", [*SAME, *(name for name in OTHER if name != "first rows")])
@pytest.mark.parametrize("kl", [False, True])
def test_frozen_heads_of_any_kind_equal_the_oracle(name: str, kl: bool) -> None:
    g = torch.Generator().manual_seed(1)
    hidden, ref_hidden = torch.randn(2, 4, 9, generator=g, dtype=torch.float64)
    options = {
        "hidden": hidden.requires_grad_(),
        "head": HEAD,
        "targets": torch.tensor([0, 3, 8, 5]),
        "reference": RefHidden(hidden=ref_hidden, head=(SAME | OTHER)[name]),
        "kl": kl,
    }
    stats, oracle = token_stats(**options), token_stats_oracle(**options)
    for field in ("logp", "ref_logp", "kl"):
        got, want = getattr(stats, field), getattr(oracle, field)
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert not stats.ref_logp.requires_grad
