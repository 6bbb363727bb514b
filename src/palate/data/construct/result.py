"""data.json and lineage.json of a build."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.ingest import Account
from palate.data.construct.process import CHAT, IMAGES, MARGIN
from palate.data.construct.state import LIMIT, MIXTURE, State
from palate.recipes.construct import BuildSource, DataBuildRecipe
from palate.store.versions import __version__


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a source's records are from and what reads them.

    Attributes:
        kind: of the rows. format: name of the reader. why: how it was found.
        sha256: of its files, None of hub data. available: records there are.
    """

    source: BuildSource
    kind: str
    format: str
    why: str
    licence: str
    sha256: str | None
    available: int


def source_entry(
    origin: Origin,
    account: Account,
    state: State,
    first: int,
    held: npt.NDArray[np.bool_],
    steps: Sequence[str],
) -> dict[str, Any]:
    """The entry of a source: read = kept + rejected + dropped + merged + not_selected, in rows, and
    pairs_made = pairs + pairs_dropped + pairs_not_selected.

    Args:
        first: number of its first pair.
        steps: names of the curation steps.
    """
    last = first + account.pairs
    rows, pairs = state.row_counts(first, last), state.counts(first, last)
    kept, dropped, not_selected = _split(rows, steps)
    pairs_kept, pairs_dropped, pairs_not_selected = _split(pairs, steps)
    kept += account.counted
    dropped.update(account.dropped)
    total = kept + not_selected + dropped.total() + account.rejected.total() + account.merged
    assert account.read == total, f"{origin.source.name}: {account.read} read, {total} accounted"
    made = pairs_kept + pairs_not_selected + pairs_dropped.total()
    assert account.pairs == made, f"{origin.source.name}: {account.pairs} pairs, {made} accounted"
    entry: dict[str, Any] = {
        "name": origin.source.name,
        "path": origin.source.path,
        "kind": origin.kind,
        "format": origin.format,
        "recognised": origin.why,
        "licence": origin.licence or None,
        "sha256": origin.sha256,
        "available": origin.available,
        "read": account.read,
        "kept": kept,
        "rejected": _counts(account.rejected),
        "dropped": _counts(dropped),
        "merged": account.merged,
        "not_selected": not_selected,
        "responses_left_out": _counts(account.left_out),
        "scored_by": _counts(account.scored_by),
        "flips": _counts(account.flips),
        "pairs_made": account.pairs,
        "pairs_refused": _counts(account.refused),
        "pairs_dropped": _counts(pairs_dropped),
        "pairs_not_selected": pairs_not_selected,
        "pairs": pairs_kept,
        "pairs_eval": int((held[first:last] & state.kept[first:last]).sum()),
    }
    for name, flag in (("conversational", CHAT), ("with_images", IMAGES), ("with_margin", MARGIN)):
        entry[name] = int(((state.flags[first:last] & flag > 0) & state.kept[first:last]).sum())
    return entry


def _split(
    found: Counter[tuple[int | str, str] | None], steps: Sequence[str]
) -> tuple[int, Counter[str], int]:
    """Kept, dropped by reason, not selected."""
    dropped: Counter[str] = Counter()
    not_selected = 0
    for status, count in found.items():
        if status is None:
            continue
        stage, reason = status
        if stage in (MIXTURE, LIMIT):
            not_selected += count
        else:
            assert isinstance(stage, int)
            dropped[f"{steps[stage]}: {reason}"] += count
    return found[None], dropped, not_selected


def lineage(
    recipe: DataBuildRecipe, origins: Sequence[Origin], files: dict[str, str], code: dict[str, Any]
) -> dict[str, Any]:
    """The content of lineage.json.

    Args:
        files: digests of the data files written. code: version of this code.
    """
    return {
        "palate": __version__,
        "code": code,
        "verb": "data build",
        "recipe": recipe_digest(recipe),
        "seed": recipe.seed,
        "data": [
            {"name": o.source.name, "path": o.source.path, "sha256": o.sha256} for o in origins
        ],
        "files": files,
    }


def recipe_digest(recipe: DataBuildRecipe) -> str:
    """Hex SHA-256 of all in a recipe that the result depends on."""
    kept = recipe.model_dump(mode="json", exclude={"output_dir", "resume", "workers"})
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
