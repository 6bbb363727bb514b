"""Link functions: from the trained argument a of a pair (positive = ranked right) to its loss.

All take and return [B]; none reduces.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic(a: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(a) - e log sigmoid(-a); e = `label_smoothing`, cDPO where above 0."""
    loss = -logsigmoid(a)
    if label_smoothing == 0.0:
        return loss
    return (1.0 - label_smoothing) * loss - label_smoothing * logsigmoid(-a)


def robust(a: Tensor, *, label_smoothing: float) -> Tensor:
    """[-(1 - e) log sigmoid(a) + e log sigmoid(-a)] / (1 - 2 e), arXiv:2403.00409.

    Its expectation over labels flipped with probability e is the logistic loss of the clean label.
    """
    keep = (1.0 - label_smoothing) * logsigmoid(a)
    return (label_smoothing * logsigmoid(-a) - keep) / (1.0 - 2.0 * label_smoothing)


def hinge(a: Tensor) -> Tensor:
    """max(0, 1 - a)."""
    return (1.0 - a).relu()


def square(a: Tensor, *, beta: float) -> Tensor:
    """(a / beta - 1 / (2 beta)) ** 2, arXiv:2310.12036 Eq. 17; a / beta is the log-ratio margin."""
    return ((a - 0.5) / beta).square()
