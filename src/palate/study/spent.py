"""What a study has cost: seconds, tokens and memory, by step and by run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from palate.errors import RunError
from palate.recipes.study import TRAINING
from palate.store.files import read_json
from palate.study.commands import MEMORY
from palate.study.contrasts import OutcomeTable
from palate.study.graph import StudyStage
from palate.study.outcomes import samples_of
from palate.study.plan import seconds_apart


def cost_entry(sheet: OutcomeTable) -> dict[str, Any]:
    """Of all stages by step, each once, and what runs would have taken one by one."""
    plan = sheet.plan
    seconds = sheet.study.seconds(plan)
    steps: dict[str, float] = {}
    tokens: dict[str, int] = {}
    memory: dict[str, int] = {}
    for key, taken in seconds.items():
        stage = plan.stages[key]
        steps[stage.step] = steps.get(stage.step, 0.0) + taken
        record = sheet.study.record(stage)
        if record is not None and MEMORY in record.result:
            memory[stage.step] = max(memory.get(stage.step, 0), record.result[MEMORY])
        if (spent := tokens_of(sheet.study.root, stage)) is not None:
            tokens[stage.step] = tokens.get(stage.step, 0) + spent
    together, apart = sum(seconds.values()), seconds_apart(plan, seconds)
    return {
        "steps": steps,
        "tokens": tokens,
        "memory": memory,
        "together": together,
        "apart": apart,
    }


def tokens_of(root: Path, stage: StudyStage) -> int | None:
    """Tokens that a stage trained on, prompts included, or that it sampled; None of other ones."""
    folder = root / stage.key
    if stage.verb in TRAINING:
        return _trained(folder)
    if stage.verb == "eval":
        with suppress(RunError):
            samples, _ = samples_of(folder)
            return sum(row["tokens"] for row in samples) or None
    return None


def _trained(folder: Path) -> int | None:
    try:
        train = read_json(folder / "data.json")["train"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (RunError, OSError, KeyError):
        return None
    examples = 0
    for line in lines:
        with suppress(ValueError):  # the line that a process died in
            examples = json.loads(line).get("examples") or examples
    items = next((train[name] for name in ("pairs", "lists", "examples") if name in train), None)
    if not items:
        return None
    tokens: int = sum(train["tokens"].values())
    return round(tokens * examples / int(items))
