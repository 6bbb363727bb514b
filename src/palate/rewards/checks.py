"""The checks of the verifiers, as their child processes hold them: one factory a task.

A check takes a dict, what a response is checked against among it, and returns (value, reason,
parts): value from 0 to 1, or None and why there is none; parts by name. Its libraries are imported
where it is made. None of them sets an alarm: whoever takes too long is killed from outside.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from palate.errors import ModelError

Checked = tuple[float | None, str | None, dict[str, float]]
Check = Callable[[Mapping[str, Any]], Checked]
NO_EXTRA = "{} needs {}: pip install 'palate[tasks]'"


def math_check() -> Check:
    """Whether the mathematical answer of a text equals the right one, by math-verify.

    Raises:
        ModelError: it is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ModelError(NO_EXTRA.format("task: math", error.name)) from None
    # It warns that nobody ends what takes too long.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def check(task: Mapping[str, Any]) -> Checked:
        answer = str(task["answer"])
        # A bare \frac{1}{2} is read as LaTeX only between its marks.
        right = parse(f"${answer}$", parsing_timeout=None) or parse(answer, parsing_timeout=None)
        if not right:
            return None, "its right answer is nothing that math-verify reads", {}
        given = parse(task["response"], parsing_timeout=None)
        return float(verify(right, given, timeout_seconds=None)), None, {}

    return check


def instruction_check(measure: str) -> Check:
    """Whether a text keeps the instructions of IFEval and IFBench, by if-verifiable.

    Args:
        measure: of its scores.

    Raises:
        ModelError: it is not installed.
    """
    try:
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT as IFBENCH
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT as IFEVAL
    except ImportError as error:
        raise ModelError(NO_EXTRA.format("task: if", error.name)) from None
    instructions = {**IFBENCH, **IFEVAL}

    def check(task: Mapping[str, Any]) -> Checked:
        # The library passes over what it does not know, as if it were not asked for.
        for name in task["instructions"]:
            if name not in instructions:
                return None, f"if-verifiable has no instruction {name}", {}
        results, scores = evaluate_instructions(
            response=task["response"],
            instruction_id_list=task["instructions"],
            kwargs_list=task["arguments"],
            prompt=task["prompt"],
            instruction_registry=instructions,
        )
        loose = measure.endswith("loose")
        parts = {r.instruction_id: float(r.loose_pass if loose else r.strict_pass) for r in results}
        return float(getattr(scores, measure)), None, parts

    return check


def reasoning_check(extract: str) -> Check:
    """How right the answer of a text to a generated task is, by the task's own scorer.

    Args:
        extract: a pattern whose last match (its first group, where it has one) is the answer.

    Raises:
        ModelError: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as error:
        raise ModelError(NO_EXTRA.format("task: reasoning_gym", error.name)) from None
    pattern = re.compile(extract)

    def check(task: Mapping[str, Any]) -> Checked:
        metadata = task["metadata"]
        name = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if name is None:
            return None, "no source_dataset in the metadata of its prompt", {}
        matches = list(pattern.finditer(task["response"]))
        answer = None
        if matches:
            answer = (matches[-1][min(1, pattern.groups)] or "").strip()
        entry = {"question": task["prompt"], "answer": task["answer"], "metadata": metadata}
        return float(get_score_answer_fn(name)(answer, entry)), None, {}

    return check
