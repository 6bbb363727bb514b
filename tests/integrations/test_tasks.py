"""lm-evaluation-harness on tasks of our own, without a network: its numbers, item by item."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("lm_eval", reason="extra eval is not installed")

from palate.errors import RecipeError, RunError
from palate.evaluate.tasks import evaluate_tasks
from palate.recipes.schema import ModelRecipe, TuneRecipe
from palate.recipes.tasks import TaskEvalRecipe
from palate.store.files import read_json
from palate.train import tune
from tiny_text import save_tiny

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3.0}}
"""
DOCS = [
    {"question": "the film was", "choices": [" good", " bad"], "answer": 0},
    {"question": "the room was", "choices": [" late", " old and new"], "answer": 1},
    {"question": "we and it", "choices": [" in", " a book"], "answer": 1},
    {"question": "the food", "choices": [" was good", " bad"], "answer": 1},
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of one task, `small`, and of one that may run programs."""
    root = tmp_path_factory.mktemp("tasks")
    data = root / "docs.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCS)) + "\n")
    (root / "small.yaml").write_text(CHOICES.format(name="small", data=data))
    unsafe = CHOICES.format(name="unsafe", data=data) + "unsafe_code: true\n"
    (root / "unsafe.yaml").write_text(unsafe)
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "base")


def recipe(folder, base, out, **changes):
    values = {
        "output_dir": str(out),
        "model": {"path": str(base), "dtype": "float32"},
        "tasks": ["small"],
        "include": str(folder),
    }
    values |= changes
    return TaskEvalRecipe.model_validate({k: v for k, v in values.items() if v is not None})


def accuracy(model, tokenizer):
    """By hand: which choice has the higher log-probability after the question."""
    right = []
    for doc in DOCS:
        sums = []
        for choice in doc["choices"]:
            question = tokenizer(doc["question"])["input_ids"]
            whole = tokenizer(doc["question"] + choice)["input_ids"]
            with torch.no_grad():
                logps = model(torch.tensor([whole])).logits.log_softmax(-1)[0]
            sums.append(
                sum(float(logps[i - 1, whole[i]]) for i in range(len(question), len(whole)))
            )
        right.append(float(max(range(2), key=sums.__getitem__) == doc["answer"]))
    return right


def test_numbers_are_those_of_the_model(tasks, base, tmp_path):
    from palate.models.loading import load_model, load_tokenizer

    result = evaluate_tasks(recipe(tasks, base, tmp_path / "out"))
    lines = [json.loads(x) for x in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    by_hand = ModelRecipe(path=str(base), dtype="float32")
    right = accuracy(load_model(by_hand), load_tokenizer(by_hand))
    assert [line["value"] for line in lines if line["metric"] == "acc"] == right
    (policy,) = result.evaluation["policies"]
    entry = policy["tasks"]["small"]["metrics"]["acc,none"]
    assert entry["value"] == pytest.approx(sum(right) / 4) and entry["n"] == 4
    assert (tmp_path / "out" / "report.html").exists()
    assert read_json(tmp_path / "out" / "status.json")["state"] == "finished"


def test_a_run_with_adapters_is_evaluated(tasks, base, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "the film was", "chosen": " bad", "rejected": " good"}
    pairs.write_text("\n".join([json.dumps(row)] * 4) + "\n")
    trained = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(base), "dtype": "float32", "lora": {"r": 2}},
        "data": {"train": [{"path": str(pairs)}]},
        "train": {"batch_size_pairs": 4, "max_steps": 10, "learning_rate": 0.1},
    }
    tune(TuneRecipe.model_validate(trained), quiet=True)
    of_run = recipe(tasks, base, tmp_path / "out", run=str(tmp_path / "run"), model=None)
    evaluate_tasks(of_run)
    evaluate_tasks(recipe(tasks, base, tmp_path / "before"))
    files = [tmp_path / name / "tasks.jsonl" for name in ("before", "out")]
    first = [json.loads(file.read_text().splitlines()[0]) for file in files]
    # It learned that the film was bad, which is the wrong answer to the first question.
    assert [line["id"] for line in first] == [0, 0]
    assert first[1]["value"] == 0.0


def test_mistakes_are_one_line(tasks, base, tmp_path):
    with pytest.raises(RecipeError, match="the harness knows no nothing_of_this_name"):
        evaluate_tasks(recipe(tasks, base, tmp_path / "a", tasks=["nothing_of_this_name"]))


def test_programs_run_only_where_that_was_asked_for(tasks, base, tmp_path):
    with pytest.raises((RunError, ValueError), match="unsafe"):
        evaluate_tasks(recipe(tasks, base, tmp_path / "a", tasks=["unsafe"]))
    evaluate_tasks(recipe(tasks, base, tmp_path / "b", tasks=["unsafe"], run_generated_code=True))


def test_without_the_extra_a_line_says_so(tasks, base, tmp_path):
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from palate.cli import main; sys.argv = ['palate', 'eval', 'tasks', 'r.yaml']; main()"
    )
    shown = {"output_dir": "out", "model": {"path": str(base)}, "tasks": ["small"]}
    (tmp_path / "r.yaml").write_text(json.dumps(shown))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'palate[eval]'" in done.stderr and "Traceback" not in done.stderr
