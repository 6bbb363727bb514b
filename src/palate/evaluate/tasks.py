"""`palate eval tasks`: public tasks by lm-evaluation-harness, into a run folder."""

from __future__ import annotations

import dataclasses
import importlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from palate.errors import ModelError, RecipeError, RunError, in_one_line
from palate.evaluate.categories import BENCHMARKS, average
from palate.evaluate.loading import PolicyLoader
from palate.evaluate.result import EvalResult
from palate.evaluate.statistics import mean_interval
from palate.evaluate.targets import Target, find_targets, trained_runs
from palate.evaluate.task_items import ITEMS
from palate.memory import kept_memory
from palate.models.loading import load_tokenizer
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.schema import DataSource
from palate.recipes.tasks import SIX_CATEGORIES, TaskEvalRecipe
from palate.store.folder import RunFolder
from palate.store.lineage import lineage, model_entry
from palate.store.records import Evaluation

KIND = "tasks"
CONFIDENCE = 0.95


def evaluate_tasks(recipe: TaskEvalRecipe, *, console: Console | None = None) -> EvalResult:
    """Runs tasks on a policy; the numbers are the harness's own.

    Writes evaluation.json, tasks.jsonl (a line of every item), recipe.yaml, lineage.json,
    status.json and report.html.

    Raises:
        RunError: the extra is missing, a folder in use, or the harness failed.
        RecipeError: a task that the harness does not know.
        ModelError: an unreadable model.
    """
    console = console or Console(stderr=True)
    harness = _Harness()
    names = task_names(recipe.tasks)
    target = _target(recipe)
    with RunFolder.open(recipe) as folder, kept_memory():
        loader = PolicyLoader(target.model, None)
        tokenizer = load_tokenizer(target.model)
        for _, policy, _ in loader.policies([target]):
            console.print(f"{len(names)} tasks on {target.name}", highlight=False)
            results = harness.run(recipe, names, policy.base, tokenizer)
        rows = list(item_lines(results))
        entry = target.entry() | {"tasks": summarise(rows, results)}
        document: dict[str, Any] = {
            "kind": KIND,
            "confidence": CONFIDENCE,
            "policies": [entry],
            "harness": harness.version,
        }
        if SIX_CATEGORIES in recipe.tasks:
            document["categories"] = categories(entry["tasks"])
        folder.write_lines(ITEMS, rows)
        folder.models.append(model_entry(target.model, loader.digest))
        folder.write(
            lineage(
                verb="eval tasks",
                seed=recipe.seed,
                device=platform.machine(),
                base_model=folder.models[0],
                models=tuple(folder.models),
            )
        )
        folder.write(Evaluation.of(document))
    from palate.report import write_report

    write_report([recipe.output_dir])
    return EvalResult(path=recipe.output_dir, evaluation=document)


def task_names(given: Sequence[str]) -> list[str]:
    """Names of the harness, the suite written out."""
    names: list[str] = []
    for name in given:
        suite = [b.task for b in BENCHMARKS if b.task is not None]
        names += suite if name == SIX_CATEGORIES else [name]
    return list(dict.fromkeys(names))


def _target(recipe: TaskEvalRecipe) -> Target:
    """The policy, found as `palate eval` finds it."""
    # Tasks bring their own data; a plain evaluation would ask for some.
    nothing = (DataSource(path="tasks"),)
    shown = EvalRecipe(
        output_dir=recipe.output_dir,
        runs=() if recipe.run is None else (recipe.run,),
        model=recipe.model,
        data=nothing,
    )
    (target,) = find_targets(shown, trained_runs(shown.runs))
    return dataclasses.replace(target, reference=None)


class _Harness:
    """lm-evaluation-harness, where it is installed.

    Raises:
        RunError: it is not.
    """

    def __init__(self) -> None:
        try:
            self._evaluator = importlib.import_module("lm_eval.evaluator")
            self._models = importlib.import_module("lm_eval.models.huggingface")
            self._tasks = importlib.import_module("lm_eval.tasks")
        except ImportError as error:
            raise RunError(
                f"palate eval tasks: needs the extra ({error.name}): pip install 'palate[eval]'"
            ) from None

    @property
    def version(self) -> str:
        from importlib.metadata import version

        return version("lm_eval")

    def run(
        self, recipe: TaskEvalRecipe, names: Sequence[str], model: Any, tokenizer: Any
    ) -> dict[str, Any]:
        """The harness's results."""
        include = None if recipe.include is None else str(recipe.include)
        manager = self._tasks.TaskManager(include_path=include)
        if unknown := [name for name in names if not manager.match_tasks([name])]:
            raise RecipeError(f"`tasks`: the harness knows no {unknown[0]}")
        wrapped = self._models.HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=recipe.batch_size,
            device=str(model.device),
        )
        try:
            results = self._evaluator.simple_evaluate(
                model=wrapped,
                tasks=list(names),
                num_fewshot=recipe.fewshot,
                limit=recipe.limit,
                apply_chat_template=recipe.chat,
                task_manager=manager,
                log_samples=True,
                bootstrap_iters=0,
                random_seed=recipe.seed,
                numpy_random_seed=recipe.seed,
                torch_random_seed=recipe.seed,
                fewshot_random_seed=recipe.seed,
                confirm_run_unsafe_code=recipe.run_generated_code,
            )
        except (ConnectionError, OSError) as error:
            raise RunError(f"tasks: their data cannot be had: {in_one_line(error)}") from None
        except ValueError as error:
            raise ModelError(f"tasks: {in_one_line(error)}") from None
        return dict(results)


# Results of the harness ---------------------------------------------------------------------------


def item_lines(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line an item and number: task, metric, filter, id of the item, value."""
    for task, samples in results["samples"].items():
        for sample in samples:
            for metric in sample.get("metrics", ()):
                value = sample.get(metric)
                if isinstance(value, bool | int | float) and not math.isnan(value):
                    yield {
                        "task": task,
                        "metric": metric,
                        "filter": sample.get("filter", "none"),
                        "id": sample["doc_id"],
                        "value": float(value),
                    }


def summarise(
    rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Task -> its version, and of each metric (`metric,filter`) the harness's number, with the t
    interval over items where the number is their mean."""
    by_metric: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        key = (row["task"], f"{row['metric']},{row['filter']}")
        by_metric.setdefault(key, []).append(row["value"])
    summary: dict[str, dict[str, Any]] = {}
    for task, numbers in results["results"].items():
        metrics: dict[str, Any] = {}
        for name, number in numbers.items():
            if "," not in name or "_stderr" in name or not isinstance(number, int | float):
                continue
            entry: dict[str, Any] = {"value": float(number)}
            values = by_metric.get((task, name))
            if values:
                mean, interval = mean_interval(values, CONFIDENCE)
                entry["n"] = len(values)
                if math.isclose(mean, number, abs_tol=1e-9):
                    entry["interval"] = interval
            metrics[name] = entry
        if metrics:
            version = results.get("versions", {}).get(task)
            summary[task] = {"metrics": metrics, "version": version}
    return summary


def categories(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The six-category means of what was measured, and what stands in for something else."""
    scores: dict[str, float] = {}
    for benchmark in BENCHMARKS:
        metrics = tasks.get(benchmark.task or "", {}).get("metrics", {})
        number = next(
            (e["value"] for name, e in metrics.items() if name.startswith(f"{benchmark.metric},")),
            None,
        )
        if number is not None:
            scores[benchmark.name] = 100.0 * number
    averages = average(scores, substitutes=True)
    return {
        "scores": scores,
        "categories": dict(averages.categories),
        "overall": averages.overall,
        "missing": list(averages.missing),
        "substitutes": {b.name: b.substitute for b in BENCHMARKS if b.substitute is not None},
    }
