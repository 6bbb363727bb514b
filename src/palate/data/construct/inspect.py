"""Looking at data without building anything: what reads it, what is usable, what is suspicious."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.construct.auditing import audit
from palate.data.construct.curate import Curation
from palate.data.construct.folder import BuildFolder
from palate.data.construct.ingest import QUARANTINE, blocks_of, images_of
from palate.data.construct.pictures import write_pictures
from palate.data.construct.pool import Pool
from palate.data.construct.progress import Bars
from palate.data.construct.quarantine import Quarantine, join
from palate.data.construct.sources import (
    Opened,
    beyond_limits,
    entries,
    open_sources,
    stage_all,
)
from palate.data.construct.state import joined
from palate.data.containers import source_name
from palate.data.curation import build_steps
from palate.data.curation.base import Means
from palate.recipes.construct import BuildSource
from palate.recipes.curation import (
    Contradictions,
    Decontaminate,
    Empty,
    EvaluationFile,
    ExactDuplicates,
    NearDuplicates,
    Refusals,
    Templates,
)
from palate.recipes.images import ImagesRecipe
from palate.recipes.pairing import PairingRecipe
from palate.store.files import read_json, write_json
from palate.store.pictures import NAME as PICTURES
from palate.store.versions import __version__

# Nothing is dropped: ties are shown, and each step counts what it would drop.
_PAIRING = PairingRecipe(ties="as_ties", flips="keep")
_STEPS = (
    Empty(),
    ExactDuplicates(),
    NearDuplicates(),
    Contradictions(),
    Templates(),
    Refusals(),
)
_KINDS = {
    "pair": "pairs",
    "rated": "rated answers",
    "unpaired": "unpaired feedback",
    "demonstration": "demonstrations",
    "answers": "answers that nobody judged",
}


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        folder: with report.html and data.json. report: the content of data.json.
    """

    folder: Path
    report: dict[str, Any]

    def lines(self) -> list[str]:
        """A few lines on each source, for a terminal."""
        found = []
        for source in self.report["sources"]:
            kind = _KINDS[source["kind"]]
            found.append(f"{source['path']}: {source['format']} ({kind}): {source['recognised']}")
            found.append(
                f"  {source['read']:,} read = {source['kept']:,} usable"
                f" + {sum(source['rejected'].values()):,} rejected"
                f" + {sum(source['dropped'].values()):,} without a pair"
                + (f" + {source['merged']:,} merged" if source["merged"] else "")
                + (f" + {source['not_selected']:,} not drawn" if source["not_selected"] else "")
            )
            lost = {**source["rejected"], **source["dropped"]}
            found += [f"    {count:,}: {reason}" for reason, count in lost.items()]
        for step in self.report["steps"]:
            if count := sum(step["dropped"].values()):
                found.append(f"  {step['name']}: {count:,} of {step['before']:,} pairs")
        return found


def inspect(
    sources: Sequence[BuildSource],
    out: Path | None,
    *,
    against: Sequence[str],
    seed: int,
    workers: int | None,
    code: dict[str, Any],
    finish: Callable[[Path], object],
) -> Inspection:
    """Reads sources as a build would and runs the steps that find faults, without dropping a pair.

    Args:
        out: folder of the report, default `<name>.inspect`; an earlier report there is replaced.
        against: evaluation files.
        finish: called with the folder before it is put in its place; writes the report.

    Raises:
        DataError: a source that cannot be read. RunError: `out` holds something else.
    """
    if out is None:
        name = source_name(sources[0]) if len(sources) == 1 else "data"
        out = Path(f"{name}.inspect")
    folder = BuildFolder(out, replaces=is_inspection)
    with folder.opened(resume=False), Pool(workers) as pool, ExitStack() as stack:
        bars = Bars()
        stack.enter_context(bars.shown())
        opened = open_sources(sources, folder.staged, seed)
        origins = [one.origin for one in opened]
        staged = stage_all(
            opened,
            folder.staged,
            pool,
            bars,
            seed=seed,
            pairing=_PAIRING,
            images=ImagesRecipe(),
            makes_pairs=lambda one: one.stream.reader.kind in ("pair", "rated"),
        )
        state = joined([source.arrays for source in staged])
        beyond_limits(opened, staged, state, seed)
        blocks = blocks_of(staged)
        found = audit(blocks, state, seed, pool, bars, "audit")
        recipes = _steps(opened, against)
        with Quarantine(folder.staged / QUARANTINE) as quarantine:
            names = [one.source.name or "" for one in opened]
            curation = Curation(blocks, state, names, quarantine, bars, apply=False)
            means = Means(seed=seed, scratch=folder.staged)
            dumped = [recipe.model_dump(mode="json") for recipe in recipes]
            curation.run(build_steps(recipes, means), dumped)
        held = np.zeros(len(state), dtype=np.bool_)
        report: dict[str, Any] = {
            "kind": "inspect",
            "palate": __version__,
            "code": code,
            "sources": entries(origins, staged, state, held, []),
            "steps": curation.entries,
            "mixture": None,
            "images": images_of(staged),
            "train": None,
            "eval": None,
            "audit": {"before": found.result(), "after": None},
        }
        parts = [source.folder / QUARANTINE for source in staged]
        join([*parts, folder.staged / QUARANTINE], folder.out / QUARANTINE)
        write_json(folder.out / "data.json", report)
        write_pictures(
            folder.out,
            staged,
            report["audit"]["before"],
            staged=folder.staged,
            limits=ImagesRecipe(),
            seed=seed,
        )
        finish(folder.out)
        folder.finish()
    return Inspection(out, report)


def is_inspection(folder: Path) -> bool:
    """Whether a folder holds an earlier inspection and nothing of anybody else's."""
    names = {path.name for path in folder.iterdir()}
    if not names <= {"data.json", PICTURES, "report.html", QUARANTINE} or "data.json" not in names:
        return False
    found = read_json(folder / "data.json")
    return isinstance(found, dict) and found.get("kind") == "inspect"


def _steps(opened: Sequence[Opened], against: Sequence[str]) -> list[Any]:
    steps: list[Any] = list(_STEPS)
    if against:
        files = tuple(EvaluationFile(path=path) for path in against)
        steps.append(Decontaminate(against=files))
    return steps
