"""`palate data build` and `palate data inspect`: the engine, with reports and models beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palate.data.construct.build import build
from palate.data.construct.inspect import Inspection, inspect
from palate.data.scorer import Scorer
from palate.recipes.construct import BuildSource, DataBuildRecipe
from palate.recipes.curation import LogRatioScores
from palate.recipes.scorers import ClassifierScorer, LexiconScorer
from palate.store.versions import code_version


def build_data(recipe: DataBuildRecipe) -> Path:
    """Builds the folder of a recipe, ready for TRL, `datasets` and `palate tune`.

    Starts processes: a script that calls this needs `if __name__ == "__main__":` around its call.

    Returns:
        The folder, `output_dir`, with its report.html.

    Raises:
        PalateError: a recipe, a source or a folder that cannot be used; nothing is left behind.
    """
    return build(recipe, code=code_version(), make_scorer=_make_scorer, finish=_report)


def inspect_data(
    files: Sequence[str | Path | BuildSource],
    out: str | Path | None = None,
    *,
    against: Sequence[str | Path] = (),
    seed: int = 0,
    workers: int | None = None,
) -> Inspection:
    """Says what is in data files: their format, what of them can be used, and what is wrong.

    Writes report.html and data.json and changes nothing else. Starts processes for large files, as
    `build_data` does.

    Args:
        files: files, folders or hub names; several are looked at together.
        out: folder of the report; default: `<name>.inspect` here. An earlier report is replaced.
        against: evaluation files whose prompts are looked for.
        seed: of what chance decides (which examples are shown, pairs of rated rows).
        workers: processes; default: one a core.

    Raises:
        PalateError: a file that cannot be used.
    """
    sources = [f if isinstance(f, BuildSource) else BuildSource(path=str(f)) for f in files]
    return inspect(
        sources,
        None if out is None else Path(out),
        against=[str(path) for path in against],
        seed=seed,
        workers=workers,
        code=code_version(),
        finish=_report,
    )


def _report(folder: Path) -> None:
    from palate.report import write_audit_report

    write_audit_report(folder)


def _make_scorer(recipe: LexiconScorer | ClassifierScorer | LogRatioScores) -> Scorer:
    # Models are loaded for recipes that score, and for no other.
    from palate.rewards import make_scorer

    return make_scorer(recipe)
