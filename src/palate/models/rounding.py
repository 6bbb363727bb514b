"""How far rounding alone moves a model's numbers: the yardstick of the start-of-run checks.

No constant serves all models: in bfloat16 the log-probs of one differ by thousandths of a nat from
one order of summation to another, those of the next by tenths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def rounded_otherwise(model: nn.Module, seed: int) -> Iterator[None]:
    """Rounds differently while the block runs: outputs of all layers that have weights are moved.

    Each number moves by a random share, at most half the distance of 1 to the next number of its
    dtype, which is what another kernel, or another order of summation, may do to it.
    """
    handles = [
        module.register_forward_hook(_Mover(seed + k))
        for k, module in enumerate(model.modules())
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Mover:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if self._generator is None:
            self._generator = torch.Generator(output.device).manual_seed(self.seed)
        wide = torch.promote_types(output.dtype, torch.float32)
        # Families compute norms and rotations in float32, also where the weights are float64.
        eps = max(torch.finfo(output.dtype).eps, torch.finfo(torch.float32).eps)
        share = torch.rand(
            output.shape, generator=self._generator, dtype=wide, device=output.device
        )
        return (output.to(wide) * (1 + eps * (share - 0.5))).to(output.dtype)
