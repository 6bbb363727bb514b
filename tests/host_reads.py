"""Which operators would make a host wait for its device: those whose result it must know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")


class HostReads(TorchDispatchMode):
    """Within it `names` gathers every such operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        # An index of booleans asks how many of them are true.
        masks = name.startswith("index") and any(
            getattr(t, "dtype", None) == torch.bool
            for given in args
            for t in (given if isinstance(given, list | tuple) else [given])
        )
        if name.startswith(WAITS) or masks:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
