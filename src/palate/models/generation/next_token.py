"""From the last hidden state of each row to its next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palate.kernels import Head
from palate.kernels.cpu import head as compiled_head
from palate.kernels.cpu import takes
from palate.kernels.tiles import CPU_TILE_VOCABULARY, WeightTiles, exact_products, operand, spans
from palate.kernels.tiles import logits as products
from palate.models.generation.draws import draw
from palate.models.generation.engine import Sampling


class NextToken:
    """Draws from a vocabulary head.

    Args:
        never: ids that are not drawn. ends: ids that are not drawn before `min_new_tokens`.
    """

    def __init__(
        self, head: Head, sampling: Sampling, *, never: Sequence[int], ends: Sequence[int]
    ) -> None:
        self.is_greedy = sampling.temperature == 0.0
        self.head = head if self.is_greedy else head.at_temperature(sampling.temperature)
        self.sampling = sampling
        self.is_whole = not self.is_greedy and sampling.top_p == 1.0 and sampling.top_k == 0
        vocabulary = len(head.weight)
        self.never = sorted({token for token in never if 0 <= token < vocabulary})
        self.ends = sorted({token for token in ends if 0 <= token < vocabulary})

    def __call__(
        self, states: Tensor, uniform: NDArray[np.float64], written: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """A token for each row, and its log-probability: 0 where the likeliest is taken.

        Args:
            states: [R, d] last hidden states. uniform: [R]. written: tokens of each row so far.
        """
        # A frozen head is multiplied row by row with what is a slice of larger states: minutes.
        states = states.contiguous()
        early = [n < self.sampling.min_new_tokens for n in written]
        if self.is_whole and takes(states, self.head.weight):
            compiled = compiled_head.draw(
                states,
                self.head,
                torch.from_numpy(uniform),
                never=torch.tensor(self.never, dtype=torch.int64),
                ends=torch.tensor(self.ends, dtype=torch.int64),
                early=torch.tensor(early),
            )
            return compiled[0].tolist(), compiled[1].tolist()
        logits = last_logits(states, self.head)
        device = logits.device
        if self.never:
            logits.index_fill_(1, torch.tensor(self.never, device=device), -torch.inf)
        if any(early) and self.ends:
            rows = torch.tensor([i for i, is_early in enumerate(early) if is_early], device=device)
            logits[rows[:, None], torch.tensor(self.ends, device=device)] = -torch.inf
        if self.is_greedy:
            return logits.argmax(-1).tolist(), [0.0] * len(states)
        numbers = torch.from_numpy(uniform).to(device)
        token, logp = draw(logits, numbers, top_p=self.sampling.top_p, top_k=self.sampling.top_k)
        return token.tolist(), logp.tolist()


def last_logits(states: Tensor, head: Head) -> Tensor:
    """[R, V] float32 logits of last hidden states [R, d], which are contiguous."""
    weight = head.weight.detach()
    if takes(states, weight):
        return compiled_head.logits(states, head)
    logits = torch.empty(len(states), len(weight), dtype=torch.float32, device=states.device)
    tiles = WeightTiles(weight, CPU_TILE_VOCABULARY if states.device.type == "cpu" else len(weight))
    with exact_products(states.dtype, states.device):
        given = operand(states)
        for start, stop in spans(len(weight), tiles.width):
            logits[:, start:stop] = products(given, tiles.operand(start, stop))
    if head.bias is not None:
        logits += head.bias.detach()
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits = (logits / head.softcap).tanh_().mul_(head.softcap)
    return logits
