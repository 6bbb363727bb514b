"""Prompts that may be taken, with the rows they are from: sources read, presented and encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from palate.data.containers import named
from palate.data.content import prompt_key
from palate.data.encode import Drop, Encoder
from palate.data.images import image_root, rooted
from palate.data.items import Tokens
from palate.data.ledger import Ledger, Role
from palate.data.prompts.files import read_file
from palate.data.prompts.generated import generate
from palate.data.prompts.present import OWN_SYSTEM, has_system, presented
from palate.data.prompts.schema import PolicyPrompt
from palate.data.schema import Content, Preference
from palate.data.stream import ReadResult
from palate.recipes.prompts import GeneratedSource, PromptSource

NO_PROMPT = "a text without a prompt"
EQUAL = "equal to an earlier prompt"
EQUAL_WITH_OTHERS = "equal to an earlier prompt, with other columns"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A prompt, the row it is from, and its source's account.

    Attributes:
        key: of its text and images as the source has them, see `content.prompt_key`.
        cut: to the limit of tokens.
    """

    prompt: PolicyPrompt
    row: Preference
    key: int
    cut: bool
    ledger: Ledger

    def drop(self, reason: str) -> None:
        """It is not taken, for this reason."""
        self.ledger.drop(self.row.row, reason)

    def take(self) -> None:
        """It is taken."""
        self.ledger.keep(1, ["prompt"] if self.cut else [])


@dataclasses.dataclass(kw_only=True)
class Reading:
    """What a source gave.

    Attributes:
        candidates: in the order of the source.
        account: of its data.json entry what the ledger does not have.
    """

    source: PromptSource | GeneratedSource
    ledger: Ledger
    candidates: list[Candidate]
    account: dict[str, Any]


def readings(
    sources: Sequence[PromptSource | GeneratedSource], role: Role, encoder: Encoder, seed: int
) -> list[Reading]:
    """The sources of a role, read and encoded; what is lost is in their ledgers.

    Raises:
        DataError, RecipeError: a source that cannot be used.
        ModelError: the chat template cannot be used.
    """
    return [_reading(source, role, encoder, seed) for source in _named(sources)]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Of equal prompts, by tokens and images, the first.

    Samples are drawn by the prompt: equal prompts would have equal samples.
    """
    first: dict[Tokens, Candidate] = {}
    for candidate in candidates:
        earlier = first.setdefault(candidate.prompt.tokens, candidate)
        if earlier is not candidate:
            equal = earlier.prompt.columns == candidate.prompt.columns
            candidate.drop(EQUAL if equal else EQUAL_WITH_OTHERS)
    return list(first.values())


def _named(
    sources: Sequence[PromptSource | GeneratedSource],
) -> Iterator[PromptSource | GeneratedSource]:
    """The sources, each with a name."""
    files = named([source for source in sources if isinstance(source, PromptSource)])
    taken = {file.name for file in files}
    rest = iter(files)
    for source in sources:
        if isinstance(source, PromptSource):
            yield next(rest)
            continue
        name, n = source.name or source.task, 1
        while source.name is None and name in taken:
            n += 1
            name = f"{source.task} {n}"
        taken.add(name)
        yield source.model_copy(update={"name": name})


def _reading(
    source: PromptSource | GeneratedSource, role: Role, encoder: Encoder, seed: int
) -> Reading:
    assert source.name is not None
    if isinstance(source, PromptSource):
        result, path = read_file(source, seed=seed), source.path
        root = image_root(path)
    else:
        result, path = generate(source, seed=seed, role=role), f"{source.library}: {source.task}"
        root = Path()
    ledger = Ledger(name=source.name, path=path, role=role, result=result)
    rows: list[Preference] = []
    contents: list[Content] = []
    for row in result.rows:
        if row.prompt == "":
            ledger.drop(row.row, NO_PROMPT)
        elif source.system is not None and has_system(row.prompt):
            ledger.drop(row.row, OWN_SYSTEM)
        else:
            rows.append(rooted(row, root))
            contents.append(presented(rows[-1].prompt, source, source.name))
    candidates = []
    encoded = encoder.encode_prompts(contents, root)
    for row, content, made in zip(rows, contents, encoded, strict=True):
        if isinstance(made, Drop):
            ledger.drop(row.row, made.reason)
            continue
        prompt = PolicyPrompt(
            id=row.id,
            source=row.source,
            content=content,
            tokens=made.tokens,
            columns=row.extra or {},
        )
        key = prompt_key(row.prompt, seed, row.source)
        candidates.append(Candidate(prompt=prompt, row=row, key=key, cut=made.cut, ledger=ledger))
    account = {"columns": _filled(result)}
    return Reading(source=source, ledger=ledger, candidates=candidates, account=account)


def _filled(result: ReadResult) -> dict[str, int]:
    """Name -> in how many rows a column for rewards has a value."""
    filled: dict[str, int] = {}
    for row in result.rows:
        for name in row.extra or {}:
            filled[name] = filled.get(name, 0) + 1
    return filled
