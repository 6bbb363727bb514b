"""The compiled head's functions on tensors; `general` and `frozen` say what they compute."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from palate.kernels.cpu.build import available, library
from palate.kernels.cpu.tensors import pointer
from palate.kernels.stats import Head

KL, REVERSE_KL, ENTROPY = 1, 2, 4


class _HeadArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "weight", "bias")),
        ("n", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


_UPSTREAM = (
    "logp", "kl", "reverse_kl", "entropy", "lse", "ref_lse", "mean_gap", "mean_logit", "slope"
)  # fmt: skip


class _Upstream(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _UPSTREAM)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Results of a forward pass, float32 [n]; None where they were not asked for."""

    logp: Tensor
    lse: Tensor
    target_logit: Tensor
    ref_logp: Tensor | None = None
    ref_lse: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    mean_gap: Tensor | None = None
    entropy: Tensor | None = None
    mean_logit: Tensor | None = None


def takes(*tensors: Tensor | None) -> bool:
    """Whether hidden states and weights are such as the compiled head takes."""
    return (
        all(
            t is None
            or (t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous())
            for t in tensors
        )
        and tensors[0] is not None
        and tensors[0].shape[0] > 0
        and available()
    )


class _Args:
    """A head and hidden states as the library takes them, which lives as long as its tensors."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden = hidden.detach()
        self.weight = head.weight.detach()
        self.bias = None if head.bias is None else head.bias.detach().float().contiguous()
        self.struct = _HeadArgs(
            self.hidden.data_ptr(),
            self.weight.data_ptr(),
            pointer(self.bias),
            *self.hidden.shape,
            head.scale,
            head.softcap or 0.0,
        )


def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    kl: bool = False,
    reverse_kl: bool = False,
    entropy: bool = False,
) -> Forward:
    """As `general.general_stats`, with what its backward pass needs."""
    policy = _Args(hidden, head)
    reference = None if ref_hidden is None or ref_head is None else _Args(ref_hidden, ref_head)
    wanted = {
        "logp": True,
        "lse": True,
        "target_logit": True,
        "ref_logp": reference is not None,
        "ref_lse": reference is not None,
        "kl": kl,
        "reverse_kl": reverse_kl,
        "mean_gap": reverse_kl,
        "entropy": entropy,
        "mean_logit": entropy,
    }
    results = {
        name: torch.empty(len(hidden), dtype=torch.float32) if asked else None
        for name, asked in wanted.items()
    }
    targets = targets.contiguous()
    _check(targets, head)
    library().palate_head_forward(
        ctypes.byref(policy.struct),
        None if reference is None else ctypes.byref(reference.struct),
        pointer(targets),
        ctypes.c_int64(head.weight.shape[0]),
        KL * kl + REVERSE_KL * reverse_kl + ENTROPY * entropy,
        torch.get_num_threads(),
        *(pointer(tensor) for tensor in results.values()),
    )
    return Forward(**results)  # type: ignore[arg-type]


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    upstream: dict[str, Tensor | None],
    ref_hidden: Tensor | None,
    ref_head: Head | None,
    need: tuple[bool, bool, bool],
    memory_mb: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states (float32), weight (its dtype) and bias (float32).

    Args:
        hidden: [n, d] of the tokens that have a gradient, those with the reference first.
        upstream: float32 by name of `_Upstream`.
        ref_hidden: [n_ref, d_ref], of the first n_ref tokens; None where there are none.
        need: which gradients are wanted.
    """
    policy = _Args(hidden, head)
    reference = None if ref_hidden is None or ref_head is None else _Args(ref_hidden, ref_head)
    kept = {n: None if v is None else v.float().contiguous() for n, v in upstream.items()}
    up = _Upstream(*(pointer(kept.get(name)) for name in _UPSTREAM))
    d_hidden = torch.empty(hidden.shape, dtype=torch.float32) if need[0] else None
    d_weight = torch.empty_like(head.weight) if need[1] else None
    d_bias = torch.empty(head.weight.shape[0], dtype=torch.float32) if need[2] else None
    targets = targets.contiguous()
    library().palate_head_backward(
        ctypes.byref(policy.struct),
        None if reference is None else ctypes.byref(reference.struct),
        ctypes.byref(up),
        pointer(targets),
        ctypes.c_int64(head.weight.shape[0]),
        ctypes.c_int64(memory_mb << 20),
        torch.get_num_threads(),
        *(pointer(tensor) for tensor in (d_hidden, d_weight, d_bias)),
    )
    return d_hidden, d_weight, d_bias


def expected(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    exact: bool,
    memory_mb: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logp [n], logsumexp [n], expected row of the weight [n, d]), float32.

    Args:
        exact: probabilities meet the weight with 17 bits instead of 8.
    """
    policy = _Args(hidden, head)
    logp, lse = torch.empty(2, len(hidden), dtype=torch.float32)
    mean = torch.empty(hidden.shape, dtype=torch.float32)
    targets = targets.contiguous()
    _check(targets, head)
    library().palate_head_expected(
        ctypes.byref(policy.struct),
        pointer(targets),
        ctypes.c_int64(head.weight.shape[0]),
        int(exact),
        ctypes.c_int64(memory_mb << 20),
        torch.get_num_threads(),
        *(pointer(tensor) for tensor in (logp, lse, mean)),
    )
    return logp, lse, mean


def draw(
    hidden: Tensor,
    head: Head,
    uniform: Tensor,
    *,
    never: Tensor,
    ends: Tensor,
    early: Tensor,
) -> tuple[Tensor, Tensor]:
    """The token of each row at which the cumulative distribution passes `uniform`, in order of id.

    Args:
        uniform: [n] float64 in [0, 1).
        never: int64 ids that are not drawn. ends: ids that are not drawn in rows that are `early`,
            [n] bool.

    Returns:
        [n] int64 ids, and [n] float32, the log-probability of each.
    """
    policy = _Args(hidden, head)
    token = torch.empty(len(hidden), dtype=torch.int64)
    logp = torch.empty(len(hidden), dtype=torch.float32)
    library().palate_head_draw(
        ctypes.byref(policy.struct),
        ctypes.c_int64(head.weight.shape[0]),
        pointer(uniform),
        pointer(never),
        ctypes.c_int64(len(never)),
        pointer(ends),
        ctypes.c_int64(len(ends)),
        pointer(early),
        torch.get_num_threads(),
        pointer(token),
        pointer(logp),
    )
    return token, logp


def logits(hidden: Tensor, head: Head) -> Tensor:
    """[n, vocabulary] float32 logits."""
    policy = _Args(hidden, head)
    out = torch.empty(len(hidden), len(head.weight), dtype=torch.float32)
    library().palate_head_logits(
        ctypes.byref(policy.struct),
        ctypes.c_int64(len(head.weight)),
        torch.get_num_threads(),
        pointer(out),
    )
    return out


def _check(targets: Tensor, head: Head) -> None:
    """Raises IndexError where torch would: the library reads where it is told."""
    if targets.dtype != torch.int64:
        raise IndexError(f"targets are int64, not {targets.dtype}")
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(head.weight)):
        raise IndexError(f"a target outside the vocabulary of {len(head.weight)}")
