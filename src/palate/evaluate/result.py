"""What evaluations return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Where an evaluation is, and the content of its evaluation.json."""

    path: Path
    evaluation: dict[str, Any]
