"""How tiles are multiplied: the precision setting of the CPU library, and operands in place."""

from __future__ import annotations

import pytest
import torch

from palate.kernels.tiles import WeightTiles, exact_products, logits, spans

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (torch.bfloat16, CPU, "bf16"),
        # Other operands are not bf16 anyway: reading them as such would round them.
        (torch.float32, CPU, None),
        (torch.float64, CPU, None),
        (torch.float16, CPU, None),
        (torch.bfloat16, CUDA, None),
    ],
)
def test_only_products_of_bf16_read_bf16(
    dtype: torch.dtype, device: torch.device, expected: str | None
) -> None:
    before = setting()
    with exact_products(dtype, device):
        assert setting() == (expected or before)
    assert setting() == before


def test_the_setting_comes_back_after_an_error() -> None:
    before = setting()
    with pytest.raises(KeyError), exact_products(torch.bfloat16, CPU):
        raise KeyError
    assert setting() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tiles_of_a_head_are_its_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    tiles = WeightTiles(weight, 4)
    for start, stop in spans(10, 4):
        rows = tiles.operand(start, stop)
        assert torch.equal(rows, weight[start:stop].to(rows.dtype))
        assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_products_go_where_they_are_told() -> None:
    hidden, rows = torch.randn(2, 3), torch.randn(5, 3)
    out = torch.empty(2, 5)
    assert logits(hidden, rows, out) is out
    torch.testing.assert_close(out, hidden @ rows.T)
    # A buffer of another dtype cannot take them.
    wide = logits(hidden.double(), rows.double(), out)
    assert wide is not out and wide.dtype == torch.float64
    torch.testing.assert_close(logits(hidden, rows), out)
