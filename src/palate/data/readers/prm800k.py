"""PRM800K, phase 2: a mathematics problem, its solution, and a generated one with a wrong step.

From: the repository openai/prm800k (MIT), files phase2_train.jsonl and phase2_test.jsonl.
Shape: labeler, timestamp, generation, is_quality_control_question, is_initial_screening_question,
question (problem, ground_truth_solution, ground_truth_answer, pre_generated_steps,
pre_generated_answer, pre_generated_verifier_score), label (steps, total_time, finish_reason).

Chosen is the ground-truth solution; rejected is the whole generated solution, its steps joined by
line breaks, of records in which an error was found (finish_reason found_error), as in Tulu 2.5.

Quirks:
  - Records without an error (solution), without a usable problem (bad_problem) or given up
    (give_up) make no pair and are counted. Phase 1 has no solutions generated beforehand: refused
    likewise.
  - A problem has many generations, so many pairs share a prompt and the chosen side. Tulu 2.5
    rejects one of them, drawn at random (6,949 pairs).
  - Labels of quality control and screening repeat the same generation for every labeller: exact
    duplicates, for curation to remove.
  - Chosen was written by people and rejected by a model: their styles differ throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palate.data.containers import Record
from palate.data.containers.base import shape_of
from palate.data.readers.base import Context, Reader, RowError
from palate.data.readers.compared import assistant, compared, user
from palate.data.readers.fields import check_entry, required, text
from palate.data.schema import Preference, Response

_NO_ERROR = {
    "solution": "a correct solution: nothing to reject",
    "bad_problem": "the problem was found unusable",
    "give_up": "the labeller gave up",
}


def _read(record: Record, context: Context) -> Preference:
    question = check_entry(required(record, "question"), "question")
    label = check_entry(required(record, "label"), "label")
    outcome = _inside(label, "label", "finish_reason")
    if outcome != "found_error":
        known = _NO_ERROR.get(outcome) if isinstance(outcome, str) else None
        raise RowError("label.finish_reason", known or "not found_error")
    problem = text(_inside(question, "question", "problem"), "question.problem")
    at = "question.ground_truth_solution"
    solution = text(_inside(question, "question", "ground_truth_solution"), at)
    at = "question.pre_generated_steps"
    steps = _inside(question, "question", "pre_generated_steps")
    if not isinstance(steps, list):
        raise RowError(at, f"{shape_of(steps)}, not a list")
    written = "\n".join(text(step, f"{at}.{i}", blank=True) for i, step in enumerate(steps))
    return compared(
        record,
        context,
        prompt=user(problem),
        sides=(
            Response(content=assistant(solution)),
            Response(content=assistant(text(written, at))),
        ),
        verdict="first",
        field=at,
    )


def _inside(value: dict[str, Any], field: str, name: str) -> Any:
    return check_entry(value, field, name)[name]


def _recognise(columns: set[str], sample: Sequence[dict[str, Any]]) -> str | None:
    if not {"question", "label"} <= columns:
        return None
    for row in sample:
        question, label = row.get("question"), row.get("label")
        if (
            isinstance(question, dict)
            and isinstance(label, dict)
            and "problem" in question
            and {"steps", "finish_reason"} <= label.keys()
        ):
            return "columns question, with a problem, and label, with steps and finish_reason"
    return None


READER = Reader(
    name="prm800k",
    shape="question {problem, ground_truth_solution, pre_generated_steps}, label {finish_reason}",
    kind="pair",
    recognise=_recognise,
    read=_read,
    reads=("question", "label"),
    specificity=2,
    hub=("openai/prm800k", "plaguss/prm800k"),
    licence="MIT",
)
