"""What a reader must know before believing the figures: one sentence each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from palate.report.length_notes import length_note, over_length
from palate.report.reader import Run
from palate.report.reward_notes import reward_notes
from palate.report.words import count, fixed, listed, number, percent
from palate.store.records import Data, PreferenceRecord, Split

LEFT_OUT = 0.1
TRUNCATED = 0.05
FALLEN_NATS = 0.05
"""A mean change of log-prob below this is rounding."""


def notes(runs: Sequence[Run]) -> list[str]:
    """Findings over all runs; the same sentence about several runs is said once."""
    checks: tuple[Callable[[Run], Iterator[str]], ...] = (
        _reading,
        _state,
        _not_finite,
        _alarms,
        _engine,
        _data,
        _held_out,
        _layout,
        _rewards,
    )
    runs_by_note: dict[str, list[str]] = {}
    for check in checks:
        for run in runs:
            for text in check(run):
                runs_by_note.setdefault(text, []).append(run.name)
    sentences = [*_differences(runs), *_displacement(runs)]
    for text, names in runs_by_note.items():
        if len(runs) == 1:
            sentences.append(text[:1].upper() + text[1:] + ".")
        elif len(names) == len([run for run in runs if run.trains]) > 2:
            sentences.append(f"All training runs: {text}.")
        else:
            sentences.append(f"{listed(names)}: {text}.")
    return sentences


def _reading(run: Run) -> Iterator[str]:
    yield from run.problems


def _state(run: Run) -> Iterator[str]:
    if run.status is None or run.status.state in (None, "finished"):
        return
    at = "" if run.status.step is None else f" at step {number(run.status.step)}"
    words = {
        "running": "the run has not finished: it was running",
        "interrupted": "the run was interrupted",
        "failed": "the run failed",
    }
    yield words.get(str(run.status.state), f"the run is {run.status.state}") + at


def _not_finite(run: Run) -> Iterator[str]:
    bad = run.metrics.not_finite
    if bad:
        worst = listed(f"{name} ({number(n)})" for name, n in bad.most_common(3))
        more = f" and {len(bad) - 3} more metrics" if len(bad) > 3 else ""
        yield f"values that are no finite numbers, drawn as gaps: {worst}{more}"


def _alarms(run: Run) -> Iterator[str]:
    begun = dict.fromkeys(a.title or a.alarm for a in run.alarms if a.state == "begins")
    if begun:
        titles = listed(title[:1].lower() + title[1:] for title in begun)
        yield f"alarms sounded, see below: {titles}"


def _engine(run: Run) -> Iterator[str]:
    rollout = run.recipe.get("rollout") if run.is_online else None
    engine = rollout.get("engine") if isinstance(rollout, dict) else None
    if isinstance(engine, dict) and engine.get("type") == "server":
        yield "a server wrote the responses: the run cannot be repeated, nor resumed, to the bit"


def _displacement(runs: Sequence[Run]) -> Iterator[str]:
    """One sentence for all runs whose chosen responses lost probability."""
    fallen, falling = [], []
    for run in runs:
        curve = run.metrics.best("displacement/chosen")
        change = None if curve is None else curve.last()
        logps = run.metrics.best("logps/chosen")
        first, last = (None, None) if logps is None else (logps.first(), logps.last())
        if change is not None:
            if change < -FALLEN_NATS:
                share = run.metrics.best("displacement/fraction")
                part = None if share is None else share.last()
                of = "" if part is None else f" (in {percent(part, 0)} of pairs)"
                fallen.append((run.name, f"by {fixed(-change, 1)} nats on average{of}"))
        elif first is not None and last is not None and last < first - FALLEN_NATS:
            falling.append((run.name, f"from {fixed(first, 1)} to {fixed(last, 1)} nats"))
    alone = len(runs) == 1
    if fallen:
        amounts = listed(amount if alone else f"{name} {amount}" for name, amount in fallen)
        yield (
            f"Chosen responses have become less likely than under the reference: {amounts}. "
            "The loss sees differences only: probability can go to responses in neither column of "
            "the data."
        )
    if falling:
        amounts = listed(amount if alone else f"{name} {amount}" for name, amount in falling)
        yield f"The log-probability of chosen responses fell during training: {amounts}."


def _data(run: Run) -> Iterator[str]:
    # An evaluation reads what its training runs held out: they have said it.
    if run.data is None or not (run.trains or run.evaluation is None):
        return
    for source in run.data.sources:
        if not source.reconciles:
            yield (
                f"the counts of {source.name} do not add up: {number(source.read)} rows read, "
                f"{number(source.kept)} kept, {number(source.left_out)} left out"
            )
        if source.read and source.left_out > LEFT_OUT * source.read:
            yield (
                f"{percent(source.left_out / source.read, 0)} of the rows of {source.name} "
                f"({source.split_role}) are left out"
            )
        cut = sum(source.truncated.values())
        if source.kept and cut > TRUNCATED * source.kept:
            yield f"{percent(cut / source.kept, 0)} of the kept rows of {source.name} are truncated"
    for role, split in splits(run.data):
        if text := length_note(split):
            yield f"in the {role} data {text}"


def splits(data: Data) -> Iterator[tuple[str, Split]]:
    """(words for its role, split) of the splits there are."""
    if data.train is not None and data.train.rows:
        yield "training", data.train
    if data.eval is not None and data.eval.rows:
        yield "held-out", data.eval


def _held_out(run: Run) -> Iterator[str]:
    if run.evaluation is None or not run.trains:
        return
    for policy in run.evaluation.policies:
        yield from _chance(policy.preference.get("all"))


def _chance(preference: PreferenceRecord | None) -> Iterator[str]:
    if preference is None or preference.accuracy_ci is None or preference.n is None:
        return
    low, high = preference.accuracy_ci
    if low is None or high is None:
        return
    if low <= 0.5 <= high:
        yield (
            f"accuracy on {count(preference.n, 'held-out pair')} is not clear of chance: its "
            f"interval, {percent(low)} to {percent(high)}, includes 50%"
        )
    baseline, over = preference.length_baseline, over_length(preference)
    if baseline is not None and baseline > 0.5 and low > 0.5 and over is not None:
        yield (
            f"held-out accuracy is not clear of what length alone gives: {percent(baseline)} for "
            f"the longer response of the same pairs, from which it differs by {over}"
        )


def _layout(run: Run) -> Iterator[str]:
    layout = run.lineage.layout if run.lineage else None
    if layout and layout.get("reason"):
        yield f"the {layout.get('used', 'plain')} layout was used: {layout['reason']}"


def _rewards(run: Run) -> Iterator[str]:
    if run.rewards is not None:
        yield from reward_notes(run.rewards)


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    """Runs side by side suggest a comparison: say what besides the method differs."""
    trained = [run for run in runs if run.trains and run.lineage is not None]
    bases = {(run.lineage.base_model or {}).get("digest") for run in trained if run.lineage}
    if len(bases) > 1:
        yield "The runs start from different base models: they do not compare like with like."
    # What one verb reads another may read a part of: prompts alone, or no held-out rows.
    data = {
        (run.verb, *sorted(str(d.get("sha256")) for d in run.lineage.data))
        for run in trained
        if run.lineage
    }
    if len(data) > len({run.verb for run in trained}):
        yield "The runs read different data: they do not compare like with like."
    codes = {(run.lineage.code or {}).get("commit") for run in trained if run.lineage}
    if len(codes) > 1:
        yield "The runs were made by different versions of the code."
