"""All golden cases, by name."""

from __future__ import annotations

from golden import judges, preference, rewards, scorers
from golden.running import Case

CASES: dict[str, Case] = {
    **preference.cases(),
    **rewards.cases(),
    **scorers.cases(),
    **judges.cases(),
}
