"""From the recipe's prompts to encoded ones: read, selected, held out, mixed, all accounted for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from palate.data.curation.base import MakeScorer
from palate.data.encode import Encoder
from palate.data.image_account import describe_texts
from palate.data.ledger import Role, spread
from palate.data.mixture import row_keys, select
from palate.data.prompts.candidates import Candidate, Reading, distinct, readings
from palate.data.prompts.schema import PolicyPrompt, PolicyPrompts
from palate.data.prompts.selection import selected
from palate.data.split import split_by_prompt
from palate.errors import DataError
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.prompts import PromptsRecipe

HELD_OUT = "also a held-out prompt"


def read_prompts(
    recipe: PromptsRecipe, encoder: Encoder, *, seed: int, make_scorer: MakeScorer | None = None
) -> PolicyPrompts:
    """Reads, encodes, selects and splits the prompts of a recipe.

    Of the encoder's limits `max_prompt_tokens`, `prompt` and `max_image_tokens` count.

    Args:
        seed: of drawing rows, tasks, the mixture and what is held out.
        make_scorer: makes the scorers that `select` names; `palate.rewards.make_scorer` is one.

    Raises:
        DataError: a source that cannot be read, has columns that nothing reads, or of which nothing
            is left.
        RecipeError: options that do not fit a source.
        ModelError: the chat template cannot be used.
        PalateError: `select` names a scorer, and there is none here, or it refuses.
    """
    by_role: dict[Role, list[Reading]] = {
        "train": readings(recipe.train, "train", encoder, seed),
        "eval": readings(recipe.eval, "eval", encoder, seed),
    }
    train, held = (_chosen(read, seed, make_scorer) for read in by_role.values())
    if recipe.eval_fraction is not None:
        train, held = _split(train, recipe.eval_fraction)
    else:
        train = _without(train, held)
    mixture: dict[str, Any] | None = None
    if recipe.mixture is not None:
        names = list(dict.fromkeys(reading.ledger.name for reading in by_role["train"]))
        train, mixture = _mixed(train, names, recipe.mixture, seed)
    for candidate in (*train, *held):
        candidate.take()
    prompts = _with_unique_ids([candidate.prompt for candidate in (*train, *held)])
    asked, held_out = prompts[: len(train)], prompts[len(train) :]
    every = [reading for read in by_role.values() for reading in read]
    report = {
        "kind": "prompts",
        "sources": [{**reading.ledger.entry(), **reading.account} for reading in every],
        "mixture": mixture,
        "train": _described(asked),
        "eval": _described(held_out) if held_out else None,
        "images": describe_texts([[prompt.tokens] for prompt in prompts], encoder.images),
    }
    return PolicyPrompts(
        train=asked,
        eval=held_out,
        report=report,
        quarantine=[line for reading in every for line in reading.ledger.quarantine],
    )


def _chosen(read: Sequence[Reading], seed: int, make_scorer: MakeScorer | None) -> list[Candidate]:
    """The distinct prompts of a role that its sources' `select` takes.

    Raises:
        DataError: nothing is left.
    """
    candidates = distinct(c for reading in read for c in reading.candidates)
    left: list[Candidate] = []
    for reading in read:
        of_source = [c for c in candidates if c.ledger is reading.ledger]
        if reading.source.select is not None:
            of_source, reading.account["select"] = selected(
                of_source, reading.source.select, seed=seed, make_scorer=make_scorer
            )
        left += of_source
    if read and not left:
        raise _nothing_left(read)
    return left


def _split(
    candidates: Sequence[Candidate], fraction: float
) -> tuple[list[Candidate], list[Candidate]]:
    """Those to train on and those held out, by prompt."""
    keys = np.array([candidate.key for candidate in candidates], np.uint64)
    out = split_by_prompt(keys, fraction, where="prompts.eval_fraction").tolist()
    pairs = list(zip(candidates, out, strict=True))
    return [c for c, is_out in pairs if not is_out], [c for c, is_out in pairs if is_out]


def _without(train: Sequence[Candidate], held: Sequence[Candidate]) -> list[Candidate]:
    """The prompts to train on that are not held out too, as a text or in tokens.

    Raises:
        DataError: nothing is left.
    """
    keys = {candidate.key for candidate in held}
    tokens = {candidate.prompt.tokens for candidate in held}
    left = []
    for candidate in train:
        if candidate.key in keys or candidate.prompt.tokens in tokens:
            candidate.drop(HELD_OUT)
        else:
            left.append(candidate)
    if not left:
        raise DataError("every prompt of `prompts.train` is also a held-out prompt")
    return left


def _mixed(
    train: Sequence[Candidate], names: Sequence[str], recipe: MixtureRecipe, seed: int
) -> tuple[list[Candidate], dict[str, Any]]:
    """What the mixture takes, and its account."""
    place = {name: i for i, name in enumerate(names)}
    tokens = recipe.unit == "tokens"
    selection = select(
        source=np.array([place[candidate.ledger.name] for candidate in train]),
        key=row_keys(seed, (candidate.prompt.id for candidate in train)),
        size=np.array([len(c.prompt.tokens) if tokens else 1 for c in train]),
        names=names,
        recipe=recipe,
        counted_in="tokens" if tokens else "prompts",
        where="prompts.mixture",
    )
    taken = []
    for candidate, is_taken in zip(train, selection.mask.tolist(), strict=True):
        if is_taken:
            taken.append(candidate)
        else:
            candidate.ledger.not_selected += 1
    return taken, selection.account


def _with_unique_ids(prompts: Sequence[PolicyPrompt]) -> list[PolicyPrompt]:
    """Ids are unique within a source; sources of one name may repeat them."""
    seen: set[str] = set()
    unique = []
    for prompt in prompts:
        new, n = prompt.id, 1
        while new in seen:
            n += 1
            new = f"{prompt.id}#{n}"
        seen.add(new)
        unique.append(prompt if new == prompt.id else dataclasses.replace(prompt, id=new))
    return unique


def _described(prompts: Sequence[PolicyPrompt]) -> dict[str, Any]:
    """Numbers, tokens and lengths of one split."""
    lengths = [len(prompt.tokens) for prompt in prompts]
    return {
        "prompts": len(prompts),
        "by_source": dict(Counter(prompt.source for prompt in prompts)),
        "tokens": {"prompt": sum(lengths)},
        "length": {"prompt": spread(lengths)},
    }


def _nothing_left(read: Sequence[Reading]) -> DataError:
    reasons = sum((reading.ledger.dropped for reading in read), Counter[str]())
    listed = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
    names = ", ".join(reading.ledger.name for reading in read)
    role = read[0].ledger.role
    return DataError(f"nothing usable is left of the {role} prompts ({names}): {listed}")
