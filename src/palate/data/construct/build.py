"""A build from beginning to end: sources, pairs on disk, curation, mixture, Parquet.

In memory are numbers, with the audit under 150 bytes a pair, and blocks of a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from palate.data.construct import llamafactory
from palate.data.construct.auditing import audit
from palate.data.construct.card import card
from palate.data.construct.columns import Shape
from palate.data.construct.curate import Curation
from palate.data.construct.folder import BuildFolder
from palate.data.construct.ingest import QUARANTINE, Source, blocks_of, images_of
from palate.data.construct.leaks import images_in_both_splits
from palate.data.construct.pictures import write_pictures
from palate.data.construct.pool import Pool
from palate.data.construct.process import CHAT, IMAGES, MARGIN
from palate.data.construct.progress import Bars
from palate.data.construct.quarantine import Quarantine, join
from palate.data.construct.result import Origin, lineage, recipe_digest
from palate.data.construct.sources import (
    beyond_limits,
    check_kinds,
    entries,
    open_sources,
    stage_all,
)
from palate.data.construct.split import hold_out, mix
from palate.data.construct.state import State, joined
from palate.data.construct.write import DATA, SPLITS, Written, write
from palate.data.curation import build_steps
from palate.data.curation.base import Means
from palate.data.mixture import Measure
from palate.errors import DataError
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.curation import Difficulty
from palate.recipes.load import resolve_yaml
from palate.store.digests import sha256_file
from palate.store.files import write_json, write_text


def build(
    recipe: DataBuildRecipe,
    *,
    code: dict[str, Any],
    make_scorer: Callable[[Any], Any] | None = None,
    finish: Callable[[Path], object] | None = None,
) -> Path:
    """Builds the folder of a recipe: Parquet files, data.json, quarantine.jsonl, README.md,
    lineage.json and recipe.yaml. The same recipe and data give the same bytes, whatever `workers`.

    Args:
        code: version of this code, for the lineage.
        make_scorer: makes what a curation step scores with, see `curation.base.Means`.
        finish: called with the folder before it is put in its place; writes the report.

    Returns:
        The folder, `output_dir`.

    Raises:
        RecipeError: keys that do not fit the sources.
        DataError: a source that cannot be read, or of which nothing is left.
        RunError: the output is there already, or cannot be written.
    """
    folder = BuildFolder(recipe.output_dir)
    with folder.opened(resume=recipe.resume), Pool(recipe.workers) as pool, ExitStack() as stack:
        bars = Bars()
        stack.enter_context(bars.shown())
        opened = open_sources(recipe.sources, folder.staged, recipe.seed)
        check_kinds(opened, recipe.pairing)
        # What steps need and lack is said before anything is read.
        means = Means(
            seed=recipe.seed,
            scratch=folder.staged,
            make_scorer=make_scorer,
        )
        steps = build_steps(recipe.curate, means)
        measure = None if recipe.mixture is None else Measure(recipe.mixture)
        origins = [one.origin for one in opened]
        sources = stage_all(
            opened,
            folder.staged,
            pool,
            bars,
            seed=recipe.seed,
            pairing=recipe.pairing,
            images=recipe.images,
            measure=recipe.mixture,
            key=lambda one: _key(recipe, one.origin),
        )
        state = joined([source.arrays for source in sources])
        blocks = blocks_of(sources)
        beyond_limits(opened, sources, state, recipe.seed)
        names = [one.source.name or "" for one in opened]
        before = after = audit(blocks, state, recipe.seed, pool, bars, "audit")
        with Quarantine(folder.staged / QUARANTINE) as quarantine:
            curation = Curation(blocks, state, names, quarantine, bars)
            curation.run(steps, [step.model_dump(mode="json") for step in recipe.curate])
        _check_left(state, sources, curation)
        held = hold_out(state, recipe.output.eval_fraction)
        counted_in = "pairs" if measure is None else measure.counted_in
        mixture = mix(state, held, recipe.mixture, counted_in)
        if recipe.curate or recipe.mixture:
            after = audit(blocks, state, recipe.seed, pool, bars, "audit of the result")
        shape = _shape(recipe, state)
        written = write(
            folder.out,
            blocks,
            state,
            held,
            shape,
            factory=recipe.output.llamafactory,
            store=folder.staged,
            rows_per_file=recipe.output.rows_per_file,
            pool=pool,
            bars=bars,
        )
        step_names = [entry["name"] for entry in curation.entries]
        images = images_of(sources)
        if images is not None:
            images["held_out"] = images_in_both_splits(blocks, state, held)
        report: dict[str, Any] = {
            "kind": "build",
            "sources": entries(origins, sources, state, held, step_names),
            "steps": curation.entries,
            "mixture": mixture,
            "images": images,
            "train": _described(state, ~held),
            "eval": _described(state, held) if recipe.output.eval_fraction is not None else None,
            "output": _output(written, shape, recipe),
            "audit": {"before": before.result(), "after": after.result()},
        }
        parts = [source.folder / QUARANTINE for source in sources]
        join([*parts, folder.staged / QUARANTINE], folder.out / QUARANTINE)
        _describe(folder.out, recipe, report, origins, written, shape, code)
        write_pictures(
            folder.out,
            sources,
            report["audit"]["after"],
            staged=folder.staged,
            limits=recipe.images,
            seed=recipe.seed,
        )
        if finish is not None:
            finish(folder.out)
        folder.finish()
    return recipe.output_dir


def _key(recipe: DataBuildRecipe, origin: Origin) -> list[Any]:
    return [recipe_digest(recipe), origin.source.name, origin.sha256, origin.available]


def _check_left(state: State, sources: Sequence[Source], curation: Curation) -> None:
    if state.kept.any():
        return
    reasons = {
        reason: count
        for source in sources
        for counter in (source.account.rejected, source.account.dropped)
        for reason, count in counter.most_common(2)
    }
    for entry in curation.entries:
        reasons |= {f"{entry['name']}: {reason}": n for reason, n in entry["dropped"].items()}
    most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    listed = "; ".join(f"{reason} ({n})" for reason, n in most)
    names = ", ".join(source.spec.name for source in sources)
    raise DataError(f"no pair is left of {names}: {listed}")


def _shape(recipe: DataBuildRecipe, state: State) -> Shape:
    """What the rows look like: turns where any row has turns or an image."""
    flags = state.flags[state.kept]
    images, margins = bool((flags & IMAGES).any()), (flags & MARGIN) > 0
    # TRL's RewardTrainer takes `margin` for a number in every row.
    margin = "margin" if margins.all() else "partial_margin"
    return Shape(
        chat=images or bool((flags & CHAT).any()),
        images=images,
        embedded=recipe.output.images == "embedded",
        margin=margin if margins.any() and recipe.output.margin else None,
        buckets=tuple(
            dict.fromkeys(step.field for step in recipe.curate if isinstance(step, Difficulty))
        ),
    )


def _described(state: State, mine: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Numbers of one split, of all and by the source that rows name."""
    here = state.kept & mine
    numbers = np.bincount(state.source[here], minlength=len(state.names)).tolist()
    return {
        "pairs": int(here.sum()),
        "prompts": len(np.unique(state.prompts[here])),
        "by_source": dict(zip(state.names, numbers, strict=True)),
    }


def _output(written: Written, shape: Shape, recipe: DataBuildRecipe) -> dict[str, Any]:
    """How the rows are written."""
    column = None if not shape.images else recipe.output.images

    def rows(folder: str) -> dict[str, int]:
        return {s: n for s in SPLITS if (n := written.rows[folder, s])}

    found: dict[str, Any] = {
        "columns": shape.schema.names,
        "chat": shape.chat,
        "image_column": column,
        "margin": shape.margin,
        "buckets": list(shape.buckets),
        "rows": rows(DATA),
        "llamafactory": None,
    }
    if recipe.output.llamafactory:
        found["llamafactory"] = {"rows": rows(llamafactory.FOLDER), "left_out": written.unfit}
    return found


def _describe(
    out: Path,
    recipe: DataBuildRecipe,
    report: dict[str, Any],
    origins: Sequence[Origin],
    written: Written,
    shape: Shape,
    code: dict[str, Any],
) -> None:
    """The files beside the data."""
    text = resolve_yaml(recipe)
    files = {path.relative_to(out).as_posix(): sha256_file(path) for path in written.files}
    name = recipe.output_dir.name
    write_text(out / "recipe.yaml", text)
    write_json(out / "data.json", report)
    write_json(out / "lineage.json", lineage(recipe, origins, files, code))
    splits = report["output"]["rows"]
    write_text(out / "README.md", card(report, name=name, splits=splits, recipe=text))
    if recipe.output.llamafactory:
        info = llamafactory.dataset_info(name, list(splits), shape)
        write_json(out / "dataset_info.json", info)
