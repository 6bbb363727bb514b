"""What a curation step is: it looks at blocks of pairs, then judges every pair. Text is only read.

What a step does depends on the pairs and their places alone, not on how they are cut into blocks.
It keeps numpy arrays, a few bytes a pair, and no object a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from palate.data.curation.text import as_text
from palate.data.schema import Preference
from palate.data.scorer import Scorer


@dataclass(frozen=True)
class Block:
    """Consecutive pairs that no earlier step has dropped.

    Attributes:
        first: place of its first row among all rows.
        index: place of each row among all rows, rising; rows dropped earlier leave gaps.
        rows: of kind pair.
    """

    first: int
    index: list[int]
    rows: list[Preference]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompts as one text each; see `curation.text.as_text`."""
        return [as_text(row.prompt) for row in self.rows]

    @cached_property
    def chosen(self) -> list[str]:
        """Chosen responses as one text each."""
        return [as_text(row.responses[0].content) for row in self.rows]

    @cached_property
    def rejected(self) -> list[str]:
        """Rejected responses as one text each."""
        return [as_text(row.responses[1].content) for row in self.rows]


@dataclass(frozen=True)
class Keep:
    """The pair stays as it is."""


@dataclass(frozen=True)
class Dropped:
    """The pair goes.

    Attributes:
        reason: without values of the row, so that equal reasons can be counted.
    """

    reason: str


@dataclass(frozen=True)
class Changed:
    """The pair stays with other `extra` fields; texts, labels and images are the same.

    Attributes:
        row: what replaces it. note: what was done, without values of the row.
    """

    row: Preference
    note: str


Judgement = Keep | Dropped | Changed
KEEP = Keep()


class Step(Protocol):
    """One line of a recipe's `curate`, at work.

    The caller shows all blocks `passes` times over in the same order, with `end_of_pass` after
    each, then has each block judged once. A step is used for one set of pairs.

    Attributes:
        name: the recipe's `step`.
        passes: looks over all rows that it needs before it judges; 0: each row by itself.
    """

    name: str
    passes: int

    def look(self, block: Block) -> None:
        """Takes notes of a block."""
        ...

    def end_of_pass(self) -> None:
        """All blocks have been looked at once more."""
        ...

    def judge(self, block: Block) -> list[Judgement]:
        """What becomes of each row, in the order of the block."""
        ...

    def account(self) -> dict[str, Any]:
        """What the audit shows beside the counts by reason; JSON values, of what was judged."""
        ...


class RowStep:
    """Base of steps that judge every row by itself."""

    name: str
    passes = 0

    def look(self, block: Block) -> None:
        raise AssertionError(f"{self.name} takes no look before it judges")

    def end_of_pass(self) -> None:
        raise AssertionError(f"{self.name} takes no look before it judges")

    def account(self) -> dict[str, Any]:
        return {}


MakeScorer = Callable[[Any], Scorer]
"""From the `reward` of a step's recipe to what scores; `palate.rewards.make_scorer` is one."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a step may use besides the pairs.

    Attributes:
        seed: of the recipe.
        scratch: folder for temporary files, deleted by the step; None: the system's.
        make_scorer: builds the rewards that recipes name; None: there are none.
    """

    seed: int = 0
    scratch: Path | None = None
    make_scorer: MakeScorer | None = None
