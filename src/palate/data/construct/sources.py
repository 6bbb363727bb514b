"""The sources of a build: their readers, their pairs on disk, and their entries in data.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.construct.ingest import Source
from palate.data.construct.pool import Pool
from palate.data.construct.process import SourceSpec
from palate.data.construct.progress import Bars
from palate.data.construct.result import Origin, source_entry
from palate.data.construct.state import LIMIT, State
from palate.data.containers import named
from palate.data.ledger import digest
from palate.data.pairing import needs_pairing
from palate.data.stream import RowStream, drawn
from palate.errors import DataError, RecipeError
from palate.recipes.construct import BuildSource
from palate.recipes.images import ImagesRecipe
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.pairing import PairingRecipe
from palate.store.stages import Results, Stage, run_stages

_NO_PAIRS = {
    "unpaired": "unpaired feedback; a build makes pairs",
    "demonstration": "demonstrations; a build makes pairs",
    "answers": "answers that nobody judged; a build makes pairs",
}
_NOT_DRAWN = "beyond `limit`"


@dataclass(frozen=True)
class Opened:
    """A source, open."""

    source: BuildSource
    stream: RowStream

    @cached_property
    def origin(self) -> Origin:
        reader = self.stream.reader
        return Origin(
            source=self.source,
            kind=reader.kind,
            format=reader.name,
            why=self.stream.why,
            licence=self.source.licence or reader.licence,
            sha256=digest(self.stream.records.files),
            available=self.stream.available,
        )


def open_sources(sources: Sequence[BuildSource], scratch: Path, seed: int) -> list[Opened]:
    """Opens the sources and finds their readers.

    Args:
        scratch: folder for unpacked copies.
    """
    return [
        Opened(source, RowStream(source, seed=seed, scratch=scratch)) for source in named(sources)
    ]


def check_kinds(opened: Sequence[Opened], pairing: PairingRecipe | None) -> None:
    """Raises where a source cannot give pairs, or needs a pairing, or has no use for its own."""
    for one in opened:
        reader, name = one.stream.reader, one.source.name or one.source.path
        kind = reader.kind
        if kind in _NO_PAIRS:
            raise DataError(f"'{name}' ({reader.name}) holds {_NO_PAIRS[kind]}")
        own = one.source.pairing
        if kind == "rated" and own is None and pairing is None:
            raise RecipeError(str(needs_pairing(name)).replace("to `data`", "to the source"))
        if kind == "pair" and own is not None and own.of_ratings:
            keys = ", ".join(own.of_ratings)
            raise RecipeError(f"`pairing` of '{name}': it holds pairs, no ratings; delete {keys}")
    rated = any(one.stream.reader.kind == "rated" and one.source.pairing is None for one in opened)
    if pairing is not None and not rated and pairing.of_ratings:
        keys = ", ".join(pairing.of_ratings)
        raise RecipeError(f"`pairing`: no source without its own holds ratings; delete {keys}")


def stage_all(
    opened: Sequence[Opened],
    staged: Path,
    pool: Pool,
    bars: Bars,
    *,
    seed: int,
    pairing: PairingRecipe | None,
    images: ImagesRecipe,
    measure: MixtureRecipe | None = None,
    makes_pairs: Callable[[Opened], bool] = lambda _: True,
    key: Callable[[Opened], Any] | None = None,
) -> list[Source]:
    """Every source staged, in order; a stage each.

    Args:
        staged: folder of the blocks.
        pairing: of sources that have none of their own. images: limits.
        makes_pairs: False for sources whose rows are only counted.
        key: what the staged blocks of a source depend on, as JSON: those that an interrupted build
            has left are taken up. None: nothing is kept for a later build.
    """
    found: dict[str, Source] = {}
    stages = []
    for number, one in enumerate(opened):
        name = one.source.name or ""
        spec = SourceSpec(
            parser=one.stream.parser,
            pairing=one.source.pairing or pairing or PairingRecipe(),
            seed=seed,
            image_root=_image_root(one.source, staged),
            images=images,
            store=staged,
            measure=measure if measure is not None and measure.unit == "tokens" else None,
            pairs=makes_pairs(one),
        )
        advance = bars.start(f"reading {name}", len(one.stream))
        stage = f"source{number:03}"
        source = found[stage] = Source(spec, staged / stage, advance=advance)

        def run(
            _: Path, __: Results, source: Source = source, one: Opened = one
        ) -> dict[str, Any] | None:
            source.read(one.stream, pool)
            return None if key is None else source.dump()

        inputs = None if key is None else key(one)
        stages.append(Stage(name=stage, inputs=inputs, run=run, always=key is None))
    for name, record in run_stages(stages, staged).items():
        if not found[name].arrays:
            found[name].restore(record.result)
    return list(found.values())


def _image_root(source: BuildSource, staged: Path) -> Path:
    if source.image_root is not None:
        return source.image_root.expanduser()
    path = Path(source.path).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    # Data of the hub brings its images along: no path of it leads to a file here.
    return staged / "no images"


def beyond_limits(
    opened: Sequence[Opened], sources: Sequence[Source], state: State, seed: int
) -> None:
    """Marks what is beyond the `limit` of formats with an answer a record.

    It is drawn among rows once they are whole.
    """
    first = 0
    for one, source in zip(opened, sources, strict=True):
        last = first + source.account.pairs
        limit, rows = one.source.limit, source.account.rows
        if one.stream.reader.grouped and limit is not None and limit < rows:
            beyond = np.ones(rows, dtype=np.bool_)
            beyond[drawn(rows, limit, seed, source.spec.name)] = False
            places = np.flatnonzero(beyond[state.of_row[first:last]]) + first
            state.status[places] = state.code(LIMIT, _NOT_DRAWN)
        first = last


def entries(
    origins: Sequence[Origin],
    sources: Sequence[Source],
    state: State,
    held: npt.NDArray[np.bool_],
    steps: Sequence[str],
) -> list[dict[str, Any]]:
    """The entries of the sources in data.json.

    Args:
        steps: names of the curation steps.
    """
    found = []
    first = 0
    for origin, source in zip(origins, sources, strict=True):
        found.append(source_entry(origin, source.account, state, first, held, steps))
        first += source.account.pairs
    return found
