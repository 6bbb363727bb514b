"""The end of a run: accuracy on all held-out pairs, and the lines that say how it went."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from palate.data.items import of_kind
from palate.losses import combined_needs
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
) -> dict[str, Any] | None:
    """The content of evaluation.json: one policy, accuracy and margin of each source and of all.

    Every process calls it, and all return the same.

    Args:
        sharded: the weights are spread over the processes, which then must all run all pairs.

    Returns:
        None where the loss ranks nothing without a reference and the run has none.
    """
    # Its statistics take a second to import, which no run should wait for at its start.
    from palate.evaluate.preference import reward_members, score_pairs, summarise_pairs

    if job.reference is None and combined_needs(reward_members(loss)).reference:
        return None
    state = PartialState()
    pairs = of_kind(job.eval, "pair")
    scored = pairs if sharded else pairs[state.process_index :: state.num_processes]
    prompts = [pair.prompts[0].ids for pair in scored]
    scores = score_pairs(
        job.model,
        scored,
        loss=loss,
        token_weights=token_weights,
        reference=job.reference,
        batch_size=batch_size,
        layout=job.layout,
        pad_id=job.pad_id,
    )
    if not sharded:
        scores, prompts = gather_object(scores), gather_object(prompts)
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
    return {"kind": "evaluation", "confidence": 0.95, "policies": [entry], "reference": None}


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


def _preference(run: Path) -> dict[str, Any] | None:
    file = run / "evaluation.json"
    if not file.exists():
        return None
    preference: dict[str, Any] = read_json(file)["policies"][0]["preference"]["all"]
    return preference
