"""Whether the programs can be used on a device: tried once there, and compared with float64."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from palate.errors import ModelError
from palate.kernels.cpu.build import SWITCH, Unavailable, switch
from palate.kernels.triton import head

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def takes(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor | None = None,
    ref_weight: Tensor | None = None,
) -> bool:
    """Whether hidden states and weights are such as the programs take."""
    device = hidden.device
    if device.type != "cuda" and not (device.type == "cpu" and head.interpreted()):
        return False
    tensors = [t for t in (hidden, weight, ref_hidden, ref_weight) if t is not None]
    return (
        len(hidden) > 0
        and all(t.dtype in DTYPES and t.device == device and t.stride(-1) == 1 for t in tensors)
        and hidden.dtype == weight.dtype
        and (ref_hidden is None or ref_weight is None or ref_hidden.dtype == ref_weight.dtype)
        and why_not(device) is None
    )


@cache
def why_not(device: torch.device) -> str | None:
    """Why the programs are not used on this device, in words; None where they are.

    The first call compiles them for one small problem and waits for its results.

    Raises:
        ModelError: they cannot be used and `PALATE_COMPILED=1` wants them.
    """
    if switch() == "0":
        return f"{SWITCH}=0"
    from palate.kernels.cpu.check import check_head

    # The first call comes from inside a pass that has no gradients, or no versions.
    with torch.inference_mode(False), torch.enable_grad():
        try:
            check_head(head, device)
            return None
        except ImportError:
            wrong = "Triton is not installed"
        except Unavailable as error:
            wrong = str(error)
        # Triton's compiler, the C compiler that it calls, and the driver raise what they like.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            wrong = f"Triton cannot be used on {device}: {type(error).__name__}: {lines[0]}"
    if switch() == "1":
        raise ModelError(f"{SWITCH}=1, but {wrong}")
    note = "the vocabulary head runs on torch's own operators, which take longer: "
    logging.getLogger("palate").warning("%s%s", note, wrong)
    return wrong
