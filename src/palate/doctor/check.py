"""One line of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table. A `problem` would stop a run; a `note` would not."""

    name: str
    state: State
    text: str
