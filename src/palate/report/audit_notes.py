"""What to know before training on a set of pairs: one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from palate.data.audit import warnings
from palate.errors import RunError
from palate.report.audit_schema import Built, EvaluationSet
from palate.report.words import count, listed, number, percent

LOST = 0.1
"""Share of a source's rows whose loss is worth a sentence."""


def audit_notes(built: Built, data: dict[str, Any]) -> list[str]:
    """Sentences about a build or an inspection, the gravest first.

    Args:
        data: the content of data.json, of which `built` is the typed form.
    """
    return [
        *_reconciling(built),
        *(_contamination(built) if built.inspects else ()),
        *_inside(data),
        *(() if built.inspects else _contamination(built)),
        *_steps(built),
        *_losses(built),
        *_images(built),
    ]


def contamination(built: Built) -> list[tuple[str, EvaluationSet]]:
    """(name, result) of every evaluation set that was looked for."""
    sets_by_name = []
    for step in built.steps:
        sets = step.account.get("sets")
        if isinstance(sets, dict):
            sets_by_name += [(str(n), EvaluationSet.model_validate(s)) for n, s in sets.items()]
    return sets_by_name


def _inside(data: dict[str, Any]) -> list[str]:
    audit = data.get("audit") or {}
    findings = audit.get("after") or audit.get("before")
    if not findings:
        return []
    try:
        return warnings(findings)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError("data.json: the audit is not of this version of palate") from error


def _reconciling(built: Built) -> Iterator[str]:
    for source in built.sources:
        if not source.reconciles:
            yield (
                f"The counts of {source.name} do not add up: {number(source.read)} rows read, "
                f"{number(source.accounted)} accounted for."
            )


def _contamination(built: Built) -> Iterator[str]:
    gone = (
        "a model trained on them is not to be judged by it; the step `decontaminate` drops them"
        if built.inspects
        else "they are dropped"
    )
    verb = "are" if built.inspects else "were"
    for name, tested in contamination(built):
        if tested.prompts_found:
            of = "" if tested.prompts is None else f" of its {number(tested.prompts)}"
            yield (
                f"Prompts of the evaluation set {name} {verb} in the data: "
                f"{number(tested.prompts_found)}{of}, "
                f"in {count(sum(tested.pairs.values()), 'pair')} "
                f"({listed(_sources(tested))}); {gone}."
            )


def _sources(tested: EvaluationSet) -> list[str]:
    return [f"{name} {sum(rules.values()):,}" for name, rules in tested.by_source.items()]


def _steps(built: Built) -> Iterator[str]:
    for step in built.steps:
        if built.inspects and step.step == "near_duplicates" and step.lost:
            yield (
                f"{number(step.lost)} of {count(step.before, 'pair')} are nearly the same as an "
                "earlier one; the step `near_duplicates` drops them."
            )
        if not built.inspects and step.before and step.lost > 0.5 * step.before:
            yield (
                f"The step {step.title} dropped {percent(step.lost / step.before, 0)} of "
                f"{count(step.before, 'pair')}."
            )


def _losses(built: Built) -> Iterator[str]:
    for source in built.sources:
        lost = sum(source.rejected.values())
        if source.read and lost > LOST * source.read:
            worst = max(source.rejected, key=lambda reason: source.rejected[reason])
            yield (
                f"{percent(lost / source.read, 0)} of the {count(source.read, 'row')} of "
                f"{source.name} could not be used, most of them for “{worst}”; quarantine.jsonl "
                "names them."
            )
        if flips := sum(source.flips.values()):
            what = listed(f"{reason} ({n:,})" for reason, n in source.flips.items())
            yield (
                f"{count(flips, 'pair')} of {source.name} {'is' if flips == 1 else 'are'} labelled "
                f"against the scores that come with them: {what}."
            )


def _images(built: Built) -> Iterator[str]:
    files = built.images
    if files is None:
        return
    if files.refused:
        what = listed(f"{reason} ({n:,})" for reason, n in files.broken.items())
        yield f"{count(files.refused, 'image')} could not be used: {what}."
    split = files.held_out
    if split is not None and split.in_train:
        yield (
            f"{number(split.in_train)} of {count(split.images, 'image')} of the held-out pairs "
            f"{'is' if split.in_train == 1 else 'are'} in training pairs, too, with other "
            f"questions ({count(split.pairs_in_train, 'held-out pair')}): what is measured on them "
            "is not of images that the model has never seen."
        )
