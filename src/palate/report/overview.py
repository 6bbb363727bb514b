"""The head of the report: its title, one paragraph, and each run in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palate.report.points import interval
from palate.report.reader import Run
from palate.report.reward_views import reward_summary
from palate.report.style import Style, Styles, loss_name
from palate.report.words import DASH, count, fixed, listed, number, percent, seconds, span
from palate.store.records import PreferenceRecord


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value and, smaller, its interval or unit."""

    text: str
    aside: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    name: str
    style: Style
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Columns that no run has a value for are left out."""

    columns: tuple[str, ...]
    rows: tuple[RunRow, ...]


def title_of(runs: Sequence[Run]) -> str:
    """A title from the runs' names."""
    named = [run for run in runs if run.trains] or list(runs)
    return listed(run.name for run in named[:4]) + (" and others" if len(named) > 4 else "")


def summary(runs: Sequence[Run]) -> str:
    """One paragraph: what ran, from which model, on how much data, for how long."""
    return " ".join(_sentences(runs))


def _sentences(runs: Sequence[Run]) -> Iterator[str]:
    trained = [run for run in runs if run.trains]
    for is_online in (True, False):
        if kind := [run for run in trained if run.is_online is is_online]:
            yield _trained(kind)
    if trained:
        yield from _effort(trained)
    for run in runs:
        if run.evaluation is not None and not run.trains:
            yield _evaluated(run)
        if run.rewards is not None:
            yield reward_summary(run.rewards)
    if not trained and not any(run.evaluation or run.rewards for run in runs):
        yield f"{count(len(runs), 'folder')} without metrics or evaluation."


_WHAT = {
    "sft": "Supervised fine-tuning",
    "tune": "Preference tuning",
    "reward": "Reward models trained",
    "rl": "Online learning",
}


def _trained(runs: Sequence[Run]) -> str:
    verbs = {run.verb for run in runs}
    is_known = len(verbs) == 1 and verbs <= _WHAT.keys()
    verb = _WHAT[next(iter(verbs)) or ""] if is_known else _WHAT["tune"]
    losses = listed(dict.fromkeys(_loss(run) for run in runs if run.verb != "sft"))
    models = listed(dict.fromkeys(m for run in runs if (m := _model(run))))
    text = f"{verb}{f' with {losses}' if losses else ''}{f' from {models}' if models else ''}"
    sizes = {run.data.train.rows for run in runs if run.data and run.data.train}
    sizes.discard(None)
    if len(sizes) == 1:
        nouns = {"sft": "example", "rl": "prompt"}
        noun = nouns.get(runs[0].verb or "", "pair") if len(verbs) == 1 else "pair"
        text += f" on {'the same ' * (len(runs) > 1)}{count(sizes.pop() or 0, noun)}"
        names = dict.fromkeys(
            s.name for r in runs if r.data for s in r.data.sources if s.split_role == "train"
        )
        if names:
            text += f" of {listed(names)}"
    return text + "."


def _loss(run: Run) -> str:
    return loss_name(run.loss_type) + (f" ({beta})" if (beta := _beta(run)) else "")


def _beta(run: Run) -> str:
    """What holds the policy near its reference, with its name."""
    if run.beta is None:
        return ""
    return f"{'KL' if run.is_online else 'β'} {run.beta:g}"


def _model(run: Run) -> str | None:
    """The base model's short name and how it is trained."""
    recipe = run.recipe.get("model")
    path = (run.lineage.base_model or {}).get("path") if run.lineage else None
    if path is None and isinstance(recipe, dict):
        path = recipe.get("path")
    if path is None:
        return None
    how = "LoRA" if isinstance(recipe, dict) and recipe.get("lora") else "all weights"
    name = str(path).rstrip("/").rpartition("/")[2]
    return f"{name} ({how})" if isinstance(recipe, dict) else name


def _effort(runs: Sequence[Run]) -> Iterator[str]:
    times = [r.status.seconds for r in runs if r.status and r.status.seconds is not None]
    steps = [r.status.step for r in runs if r.status and r.status.step is not None]
    if not times or not steps:
        return
    low, high = seconds(min(times)), seconds(max(times))
    took = low if low == high else f"{low} to {high}"
    few, many = number(min(steps)), number(max(steps))
    of = few if few == many else f"{few} to {many}"
    device = listed(dict.fromkeys(r.lineage.device for r in runs if r.lineage and r.lineage.device))
    each = "Each run took" if len(runs) > 1 else "It took"
    yield f"{each} {of} optimizer steps in {took}{f' on {device}' if device else ''}."


def _evaluated(run: Run) -> str:
    assert run.evaluation is not None
    policies = run.evaluation.policies
    pairs = {p.preference["all"].n for p in policies if "all" in p.preference} - {None}
    samples = {p.samples.n for p in policies if p.samples} - {None}
    on = [count(n, "held-out pair") for n in pairs if n is not None and len(pairs) == 1]
    on += [f"{count(n, 'sample')} each" for n in samples if n is not None and len(samples) == 1]
    noun = "policy" if len(policies) == 1 else "policies"
    return f"Evaluated: {len(policies):,} {noun}{f' on {listed(on)}' if on else ''}."


def overview(runs: Sequence[Run], styles: Styles) -> Overview | None:
    """Every training run in a row; None without one."""
    rows = []
    for run in runs:
        if run.trains:
            cells = dict(_cells(run))
            rows.append((run, cells))
    if not rows:
        return None
    columns = [name for name in rows[0][1] if any(cells[name].text != DASH for _, cells in rows)]
    return Overview(
        columns=tuple(columns),
        rows=tuple(
            RunRow(
                name=run.name,
                style=styles.by_run[run.name],
                cells=tuple(cells[name] for name in columns),
            )
            for run, cells in rows
        ),
    )


def _cells(run: Run) -> Iterator[tuple[str, Cell]]:
    status = run.status
    yield "loss", Cell(text=loss_name(run.loss_type), aside=_beta(run))
    state = (status.state if status else None) or DASH
    yield "state", Cell(text=DASH if state == "finished" else state)
    yield "steps", Cell(text=number(status.step if status else None))
    yield "time", Cell(text=seconds(status.seconds if status else None))
    yield "held-out accuracy", _accuracy(run)
    for name, metric, places in (
        ("reward margin", "rewards/margins", 2),
        ("margin", "margin", 2),
        ("mean reward", "mean_reward", 2),
        ("KL chosen", "kl/chosen", 2),
        ("KL rejected", "kl/rejected", 2),
        ("KL margin", "kl/margin", 2),
        ("chosen against reference", "displacement/chosen", 1),
        ("score", "reward", 3),
        ("entropy", _logged(run, "entropy", "entropy/sampled"), 2),
        ("length", "length/mean", 1),
    ):
        yield name, Cell(text=fixed(_last(run, metric), places))
    kl = _logged(run, "kl/exact", "kl/k1", "kl/k3")
    yield "KL to reference", Cell(text=fixed(_last(run, kl), 2), aside=kl.removeprefix("kl/"))
    yield "responses that end", Cell(text=percent(_last(run, "eos/rate"), 0))


def _logged(run: Run, *metrics: str) -> str:
    """The first of some metrics that the run logged."""
    return next((name for name in metrics if name in run.metrics.train), metrics[0])


def _last(run: Run, metric: str) -> float | None:
    curve = run.metrics.best(metric)
    return None if curve is None else curve.last()


def _accuracy(run: Run) -> Cell:
    preference: PreferenceRecord | None = None
    if run.evaluation is not None and len(run.evaluation.policies) == 1:
        preference = run.evaluation.policies[0].preference.get("all")
    if preference is not None and preference.accuracy is not None:
        ci = interval(preference.accuracy_ci)
        return Cell(text=percent(preference.accuracy), aside=span(ci, share=True))
    found_in = run.metrics.eval
    curve = found_in.get("rewards/accuracies") or found_in.get("accuracy")
    return Cell(text=percent(None if curve is None else curve.last()))
