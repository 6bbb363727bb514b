"""Prompts that a policy answers, ready to be sampled from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from palate.data.items import Prompt, Tokens, sequence_key
from palate.data.schema import Content


@dataclass(frozen=True, kw_only=True)
class PolicyPrompt:
    """A prompt as token ids, as scorers read it, and what its row says besides.

    Attributes:
        id: unique among the prompts of a run. source: name of the data set.
        content: text, or chat turns that end with the user's; images know where they lie.
        tokens: as training on it sees it; of a model that sees with its images.
        columns: of the row, for rewards (answer, ground truth, rubric ...); a column without a
            value is not among them.
    """

    id: str
    source: str
    content: Content
    tokens: Tokens
    columns: Mapping[str, Any] = field(default_factory=dict)

    def to_sample(self) -> Prompt:
        """What an engine is asked."""
        return Prompt(tokens=self.tokens, content=self.content)


def prompts_digest(prompts: Iterable[PolicyPrompt]) -> str:
    """Hex SHA-256 of prompts and of what rewards read beside them, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(sequence_key(prompt.tokens, Tokens(())).encode())
        digest.update(repr((prompt.id, sorted(prompt.columns.items()))).encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class PolicyPrompts:
    """The prompts of a run.

    Attributes:
        train, eval: no two have equal tokens, and none of `train` equals one of `eval`; `eval` is
            empty where nothing is held out.
        report: the content of data.json.
        quarantine: the lines of quarantine.jsonl: what was rejected or dropped.
    """

    train: list[PolicyPrompt]
    eval: list[PolicyPrompt]
    report: dict[str, Any]
    quarantine: list[dict[str, Any]]
