"""The end of a run: accuracy on all held-out pairs, and the lines that say how it went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from palate.data.encode import Encoder
from palate.data.items import Item, of_kind
from palate.data.schema import Preference
from palate.losses import combined_needs
from palate.models.cache import CachedReference
from palate.models.reference import AdapterOff, Reference
from palate.recipes.losses import Loss, TokenWeights, members
from palate.store.files import read_json
from palate.store.records import Status, StepCost, read_record
from palate.train.loop import Job


def held_out(
    job: Job,
    *,
    loss: Loss,
    token_weights: TokenWeights | None,
    step: int,
    batch_size: int,
    sharded: bool,
    rows: Sequence[Preference] = (),
    encoder: Encoder | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The content of evaluation.json: one policy, accuracy and margin of each source and of all.

    Every process calls it, and all return the same.

    Args:
        sharded: the weights are spread over the processes, which then must all run all pairs.
        rows, encoder, seed: what held-out items were made of; for pairs with images, which are
            asked about again without them and with others.

    Returns:
        None where the loss ranks nothing without a reference and the run has none.
    """
    # Its statistics take a second to import, which no run should wait for at its start.
    from palate.evaluate.held_out_look import HeldOutLook
    from palate.evaluate.preference import (
        PairScore,
        reward_members,
        score_pairs,
        summarise_pairs,
    )

    if job.reference is None and combined_needs(reward_members(loss)).reference:
        return None
    state = PartialState()
    pairs = of_kind(job.eval, "pair")
    places = list(range(len(pairs)))
    if not sharded:
        places = places[state.process_index :: state.num_processes]
    scored = [pairs[place] for place in places]
    prompts = [pair.prompts[0] for pair in scored]

    def judged(items: Sequence[Item], reference: Reference | None) -> list[PairScore]:
        return score_pairs(
            job.model,
            items,
            loss=loss,
            token_weights=token_weights,
            reference=reference,
            batch_size=batch_size,
            layout=job.layout,
            pad_id=job.pad_id,
        )

    scores = judged(scored, job.reference)
    if not sharded:
        scores, prompts, places = map(gather_object, (scores, prompts, places))
    singles = members(loss)
    name = job.folder.path.name
    entry = {
        "name": name,
        "label": name,
        "checkpoint": step,
        "run": str(job.folder.path),
        "loss": loss.type,
        "beta": getattr(singles[0], "beta", None) if len(singles) == 1 else None,
        "preference": summarise_pairs(scores, prompts=prompts),
    }
    asking = _reference_of_changed(job)
    looked = None if encoder is None else HeldOutLook.of(rows, encoder, seed)
    if looked is not None and asking is not None:
        # In the order of the rows: processes took every n-th pair.
        margins = dict(zip(places, (score.margin for score in scores), strict=True))
        entry["look"] = looked.measure(
            [margins[place] for place in range(len(pairs))],
            lambda items: [score.margin for score in judged(items, asking.reference)],
        )
    return {"kind": "evaluation", "confidence": 0.95, "policies": [entry], "reference": None}


@dataclass(frozen=True)
class _Asking:
    reference: Reference | None


def _reference_of_changed(job: Job) -> _Asking | None:
    """The reference for pairs that no cache knows; None where there is none."""
    reference = job.reference
    if not isinstance(reference, CachedReference):
        return _Asking(reference)
    if reference.identity.get("path") is None and job.model.has_adapters:
        return _Asking(AdapterOff(job.model, digest=str(reference.identity["digest"])))
    return None


def last_metrics(run: Path) -> dict[str, float]:
    """Last values of a run folder's log, those of the evaluation with `eval_` before the name."""
    metrics: dict[str, float] = {}
    file = run / "metrics.jsonl"
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                prefix = "eval_" if line["split"] == "eval" else ""
                metrics |= {prefix + k: v for k, v in line.items() if isinstance(v, (int, float))}
    if (preference := _preference(run)) is not None:
        metrics["preference/accuracy"] = preference["accuracy"]
    return metrics


def closing_lines(run: Path) -> list[str]:
    """What to tell at the end: held-out accuracy with its interval, and where things are."""
    lines = []
    if (p := _preference(run)) is not None:
        low, high = p["accuracy_ci"]
        lines.append(
            f"held-out preference accuracy {p['accuracy']:.1%} (95% interval {low:.1%} to "
            f"{high:.1%}, {p['n']} pairs; longer response wins: {p['length_baseline']:.1%})"
        )
    if (look := _policy(run).get("look")) is not None:
        lines.append(f"images of held-out pairs: {look['sentence']}")
    metrics = last_metrics(run)
    if "eval_loss" in metrics:
        lines.append(f"held-out loss {metrics['eval_loss']:.4f}")
    if (cost := _cost_line(run)) is not None:
        lines.append(cost)
    lines.append(f"model: {run / 'model'}")
    lines.append(f"report: {run / 'report.html'}")
    return lines


def _cost_line(run: Path) -> str | None:
    """What a step took, and what was predicted."""
    file = run / "status.json"
    status = read_record(file, Status) if file.exists() else Status()
    if status.step_cost is None:
        return None
    line = f"a step took {cost_words(status.step_cost)}"
    if status.foresight is not None:
        line += f" (predicted: {cost_words(status.foresight)})"
    return line


def cost_words(cost: StepCost) -> str:
    """`6.71 s and 4.6 GiB at most`."""
    return f"{cost.seconds:.3g} s and {cost.memory_bytes / 2**30:.2f} GiB at most"


def _policy(run: Path) -> dict[str, Any]:
    file = run / "evaluation.json"
    policy: dict[str, Any] = read_json(file)["policies"][0] if file.exists() else {}
    return policy


def _preference(run: Path) -> dict[str, Any] | None:
    preference: dict[str, Any] | None = _policy(run).get("preference", {}).get("all")
    return preference
