"""Hidden factors of a study's runs, and what its policies wrote: told beside the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.store.files import read_json
from palate.study.graph import Run
from palate.study.outcomes import Rows, samples_of
from palate.study.plan import Plan
from palate.study.study import Study

PROMPTS = 6
"""Whose samples are shown side by side."""


def lineage_entries(study: Study, plan: Plan) -> list[dict[str, Any]]:
    """Of each cell's first run, step by step: base model, feedback and its lengths, code, scorers.

    A stage that is not finished has no entry.
    """
    return [
        {"cell": dict(cell.choices), "steps": dict(_of_run(study, run))}
        for cell, run in plan.first_runs.items()
    ]


def _of_run(study: Study, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    for step, key in run.stages.items():
        folder = study.root / key
        lineage, data = _json(folder / "lineage.json"), _json(folder / "data.json")
        if lineage is None:
            continue
        train = (data or {}).get("train") or {}
        tokens = train.get("length") or {}
        yield (
            step,
            {
                "base": (lineage.get("base_model") or {}).get("path"),
                "base_digest": (lineage.get("base_model") or {}).get("digest"),
                "scorers": [m for m in lineage.get("models") or [] if m.get("role")],
                "sources": [
                    {"name": s.get("name"), "sha256": s.get("sha256"), "items": s.get("items")}
                    for s in (data or {}).get("sources") or []
                ],
                "pairs": train.get("pairs"),
                "longer_is_chosen": train.get("longer_is_chosen"),
                "mean_tokens": {side: of["mean"] for side, of in tokens.items() if "mean" in of},
                "longer_wins": _longer_wins(_json(folder / "evaluation.json")),
                "commit": (lineage.get("code") or {}).get("commit"),
            },
        )


def _longer_wins(evaluation: dict[str, Any] | None) -> dict[str, float]:
    """Source -> accuracy of "the longer one wins" on the pairs that an evaluation measures on."""
    policies = (evaluation or {}).get("policies") or []
    preference = (policies[-1].get("preference") or {}) if policies else {}
    return {
        name: of["length_baseline"]
        for name, of in preference.items()
        if name != "all" and "length_baseline" in of
    }


def sample_entries(study: Study, plan: Plan) -> list[dict[str, Any]]:
    """The first prompts of the samples, each with what every cell's first run answered."""
    prompts: dict[tuple[str, str], dict[str, Any]] = {}
    for run in plan.first_runs.values():
        for step, key in run.stages.items():
            samples, references = _samples(study.root / key)
            for row in (*references, *samples):
                prompt = (step, row["prompt_id"])
                if row["index"] or (prompt not in prompts and len(prompts) >= PROMPTS):
                    continue
                entry = prompts.setdefault(
                    prompt, {"prompt": row["prompt"], "reference": None, "cells": []}
                )
                if row["policy"] == "reference":
                    entry["reference"] = row["response"]
                else:
                    shown = {"cell": dict(run.cell.choices), "seed": run.seed}
                    numbers = {name: row[name] for name in ("reward", "kl", "tokens")}
                    entry["cells"].append(shown | {"response": row["response"]} | numbers)
    return list(prompts.values())


def _samples(folder: Path) -> tuple[Rows, Rows]:
    """None of a step that draws none, or that is not finished."""
    with suppress(RunError):
        return samples_of(folder)
    return [], []


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file) if file.exists() else None
    except RunError:
        return None
