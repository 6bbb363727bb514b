"""Tensors as the compiled library takes them."""

from __future__ import annotations

import ctypes

from torch import Tensor


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where its values lie; null of None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
