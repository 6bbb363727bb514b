"""Where things are kept that can be made again: models that were prepared, kernels compiled."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/palate/<kind>`, or the platform's usual place for a cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "palate" / kind
