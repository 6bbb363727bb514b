"""Tables of the report as plain values: what differs, what was read, what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from palate.report.points import interval, run_of
from palate.report.reader import Run
from palate.report.style import Style, Styles
from palate.report.words import DASH, number
from palate.store.records import (
    Data,
    Evaluation,
    Policy,
    PreferenceRecord,
    SampleRecord,
    TaskCategories,
)

SHOWN_PROMPTS = 8
"""Prompts of the side-by-side samples: the first of the file, not a selection."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item over several runs; `same` where all runs agree."""

    item: str
    values: tuple[str, ...]

    @property
    def same(self) -> bool:
        return len(set(self.values)) == 1


@dataclass(frozen=True, kw_only=True)
class DataView:
    """Data that one or more runs read alike."""

    runs: tuple[str, ...]
    data: Data


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One policy of an evaluation. `style` is None for policies that no figure shows."""

    policy: Policy
    title: str
    style: Style | None


@dataclass(frozen=True, kw_only=True)
class EvaluationView:
    """Policies that were measured together, on the same pairs and prompts."""

    title: str
    confidence: float
    rows: tuple[PolicyRow, ...]
    reference: PolicyRow | None
    categories: TaskCategories | None = None

    @property
    def last(self) -> tuple[PolicyRow, ...]:
        """The last checkpoint of each policy."""
        by_title = {row.policy.run or row.policy.title: row for row in self.rows}
        return tuple(row for row in self.rows if row in by_title.values())

    @property
    def earlier(self) -> tuple[PolicyRow, ...]:
        """Checkpoints before the last."""
        last = self.last
        return tuple(row for row in self.rows if row not in last)

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the accuracy bars: whole tenths around every interval and one half."""
        values = [0.4, 0.6]
        for _, _, p in self.preferences(self.rows):
            ends = interval(p.accuracy_ci) or ()
            values += [v for v in (*ends, p.accuracy, p.length_baseline) if v is not None]
        finite = [v for v in values if math.isfinite(v)]
        return math.floor(10 * min(finite)) / 10, math.ceil(10 * max(finite)) / 10

    def preferences(
        self, rows: Sequence[PolicyRow]
    ) -> list[tuple[PolicyRow, str, PreferenceRecord]]:
        """(policy, source, result), `all` last and only where there are several sources."""
        results = []
        for row in rows:
            sources = [name for name in row.policy.preference if name != "all"]
            names = sources if len(sources) == 1 else [*sources, "all"]
            for name in names:
                if name in row.policy.preference:
                    results.append((row, name, row.policy.preference[name]))
        return results

    def sampled(self, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
        return [row for row in rows if row.policy.samples is not None]

    def won(self, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
        """Those whose samples were compared with the reference's."""
        known = [(row, row.policy.samples) for row in rows]
        return [row for row, samples in known if samples and samples.win_rate is not None]

    def diverse(self, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
        return [row for row in rows if row.policy.samples and row.policy.samples.diversity]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt with a response of each policy, None where a policy has none."""

    text: str
    responses: tuple[tuple[str, SampleRecord | None], ...]


@dataclass(frozen=True, kw_only=True)
class SamplesView:
    title: str
    prompts: tuple[Prompt, ...]
    of: int


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of a nested record."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for i, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{i}")
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def recipe_differences(runs: Sequence[Run]) -> list[Row]:
    """Keys of the recipes that are not the same in all runs; where each run went is left out.

    A key that only one kind of training has is compared among the runs of that kind.
    """
    recipes = [dict(flatten(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        row = Row(item=key, values=tuple(recipe.get(key, DASH) for recipe in recipes))
        verbs = {run.verb for run, recipe in zip(runs, recipes, strict=True) if key in recipe}
        compared = {v for run, v in zip(runs, row.values, strict=True) if run.verb in verbs}
        if key not in ("output_dir", "resume", "") and len(compared) > 1:
            rows.append(row)
    return rows


def lineage_rows(runs: Sequence[Run]) -> list[Row]:
    """What each run was made from. Items that no run has are left out."""
    lineages = [dict(_lineage(run)) for run in runs]
    keys = dict.fromkeys(key for items in lineages for key in items)
    rows = [Row(item=k, values=tuple(items.get(k, DASH) for items in lineages)) for k in keys]
    return [row for row in rows if set(row.values) != {DASH}]


def _lineage(run: Run) -> Iterator[tuple[str, str]]:
    lineage = run.lineage
    if lineage is None:
        return
    base, code = lineage.base_model or {}, lineage.code or {}
    layout, tokenizer = lineage.layout or {}, lineage.tokenizer or {}
    yield "base model", _text(base.get("path"))
    yield "terms of the model", _text(base.get("terms"))
    yield "weights, SHA-256", _text(base.get("digest"))
    yield "number format", _text(base.get("dtype"))
    yield "tokenizer, SHA-256", _text(tokenizer.get("digest"))
    yield "chat template, SHA-256", _text(tokenizer.get("template"))
    if tokenizer.get("template_date"):
        yield "day that the chat template is told", _text(tokenizer["template_date"])
    yield "reference", _reference(lineage.reference)
    for entry in lineage.data:
        yield f"data: {entry.get('path', '')}", _text(entry.get("sha256"))
    yield "layout", _text(layout.get("used"))
    check = layout.get("check")
    if isinstance(check, dict):
        worst = check.get("max_abs_difference")
        if isinstance(worst, int | float):
            yield "layout check, largest difference", f"{worst:.1e} nats"
    yield "why this layout", _text(layout.get("reason"))
    yield "seed", _text(lineage.seed)
    yield "device", _text(lineage.device)
    dirty = " with uncommitted changes" if code.get("dirty") else ""
    yield "code", f"{code['commit']}{dirty}" if code.get("commit") else DASH
    yield "palate", _text(lineage.palate)
    yield "libraries", ", ".join(f"{k} {v}" for k, v in lineage.libraries.items()) or DASH


def _reference(reference: dict[str, Any] | str | None) -> str:
    if not isinstance(reference, dict):
        return _text(reference)
    parts = [f"{key}: {text}" for key, text in flatten(reference) if text != DASH]
    return ", ".join(parts) or DASH


def data_views(runs: Sequence[Run]) -> list[DataView]:
    """Each distinct data.json once, with the runs that read it."""
    views: dict[str, tuple[Data, list[str]]] = {}
    for run in runs:
        if run.data is not None and run.data.sources:
            views.setdefault(repr(run.data), (run.data, []))[1].append(run.name)
    return [DataView(runs=tuple(names), data=data) for data, names in views.values()]


def evaluation_views(runs: Sequence[Run], styles: Styles) -> list[EvaluationView]:
    """One view an evaluation; what training runs measured of themselves is one view together."""
    views = []
    for run in runs:
        if run.evaluation is not None and not run.trains:
            e = run.evaluation
            rows = tuple(_policy_row(policy, runs, styles) for policy in e.policies)
            reference = _policy_row(e.reference, runs, styles) if e.reference else None
            views.append(
                EvaluationView(
                    title=run.name,
                    confidence=e.confidence,
                    rows=rows,
                    reference=reference,
                    categories=e.categories,
                )
            )
    by_confidence: dict[float, list[PolicyRow]] = {}
    for run in runs:
        if run.evaluation is not None and run.trains:
            by_confidence.setdefault(run.evaluation.confidence, []).extend(_own_rows(run, styles))
    for confidence, policy_rows in by_confidence.items():
        title = "measured by the run itself" if len(runs) == 1 else "measured by each run itself"
        views.append(
            EvaluationView(
                title=title, confidence=confidence, rows=tuple(policy_rows), reference=None
            )
        )
    return [view for view in views if view.rows or view.reference]


def _own_rows(run: Run, styles: Styles) -> Iterator[PolicyRow]:
    evaluation: Evaluation | None = run.evaluation
    assert evaluation is not None
    for policy in evaluation.policies:
        at = f", step {number(policy.checkpoint)}" if len(evaluation.policies) > 1 else ""
        yield PolicyRow(policy=policy, title=f"{run.name}{at}", style=styles.by_run.get(run.name))


def _policy_row(policy: Policy, runs: Sequence[Run], styles: Styles) -> PolicyRow:
    policy_run = run_of(policy, runs)
    title = policy.title
    if policy.checkpoint is not None:
        title += f", step {number(policy.checkpoint)}"
    style = styles.by_run.get(policy_run.name) if policy_run else None
    if style is None and policy.loss is not None:
        style = styles.by_loss.get(policy.loss)
    return PolicyRow(policy=policy, title=title, style=style)


def samples_views(runs: Sequence[Run], shown: int = SHOWN_PROMPTS) -> list[SamplesView]:
    """First prompts of each samples.jsonl, with the last checkpoint of every policy."""
    views = []
    for run in runs:
        last: dict[str, int | None] = {}
        for sample in run.samples:
            known = last.setdefault(sample.policy, sample.checkpoint)
            if sample.checkpoint is not None and (known is None or sample.checkpoint > known):
                last[sample.policy] = sample.checkpoint
        prompts: dict[str, dict[str, SampleRecord]] = {}
        for sample in run.samples:
            if sample.checkpoint == last[sample.policy]:
                key = sample.prompt_id or sample.prompt
                prompts.setdefault(key, {}).setdefault(sample.policy, sample)
        if not prompts:
            continue
        first = list(prompts.values())[:shown]
        views.append(
            SamplesView(
                title=run.name,
                prompts=tuple(
                    Prompt(
                        text=next(iter(by_policy.values())).prompt,
                        responses=tuple((policy, by_policy.get(policy)) for policy in last),
                    )
                    for by_policy in first
                ),
                of=len(prompts),
            )
        )
    return views
