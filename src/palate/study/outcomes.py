"""What a finished evaluation says of each item: the numbers that studies compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.errors import PalateError, RunError
from palate.evaluate.task_items import ITEMS, task_items
from palate.recipes.study import OF_PAIRS, MeasureRecipe, StudyRecipe
from palate.store.files import read_json, read_jsonl

Item = tuple[str, str]
"""The prompt that an item belongs to, and the item. Items of one prompt are not independent."""
Outcomes = Mapping[Item, float]
"""Of samples an item is a prompt, and its outcome their mean."""
Rows = list[dict[str, Any]]
ItemValues = Iterator[tuple[Item, float]]


class Undetermined(PalateError):
    """A number that a finished evaluation has no value of, as a fit without a solution."""


def outcomes_of(folder: Path, recipe: StudyRecipe, measure: MeasureRecipe) -> Outcomes:
    """The outcomes of a measure in the folder of a finished evaluation.

    Raises:
        RunError: a file of it is not as evaluations write it, or holds nothing of the measure.
        Undetermined: the measure has no value there.
    """
    verb = next(step.verb for step in recipe.steps if step.name == measure.step)
    values: ItemValues
    if verb == "eval tasks":
        items = task_items(folder / ITEMS, measure.source)
        values = (((item, item), value) for item, value in items)
    elif verb == "eval reward" and measure.value == "best_of_n":
        values = _best_of_n(folder)
    elif verb == "eval reward":
        values = _of_benchmark(read_jsonl(folder / "scores.jsonl"), measure)
    elif measure.value in OF_PAIRS:
        values = _of_pairs(read_jsonl(folder / "pairs.jsonl"), measure)
    else:
        samples, reference = samples_of(folder)
        values = _of_samples(samples, reference, measure)
    return _averaged(folder, values, measure)


def _averaged(folder: Path, values: ItemValues, measure: MeasureRecipe) -> Outcomes:
    by_item: dict[Item, list[float]] = {}
    for item, value in values:
        by_item.setdefault(item, []).append(value)
    if not by_item:
        what = f"{measure.value} of {measure.source}" if measure.source else measure.value
        raise RunError(f"{folder}: holds no {what}")
    return {item: sum(of_item) / len(of_item) for item, of_item in by_item.items()}


def mean(outcomes: Outcomes) -> float:
    return sum(outcomes.values()) / len(outcomes)


def checkpoints_of(folder: Path, measure: MeasureRecipe) -> list[tuple[float, Outcomes]]:
    """KL in nats and the outcomes of a run's checkpoints, the reference before them: it is what a
    run starts from, at a KL of 0.

    Args:
        measure: of `reward` or `win_rate`.

    Raises:
        RunError: a file of it is not as evaluations write it.
    """
    rows, references = _of_one_policy(read_jsonl(folder / "samples.jsonl"))
    start = [row | {"won": 0.5} for row in references]
    frontier = []
    numbers = sorted({row["checkpoint"] or 0 for row in rows})
    for sampled in (start, *([r for r in rows if (r["checkpoint"] or 0) == n] for n in numbers)):
        kl = 0.0
        if sampled is not start:
            of_kl = _averaged(folder, _of_rows(sampled, "kl"), measure)
            kl = mean(of_kl)
        value = "won" if measure.value == "win_rate" else "reward"
        frontier.append((kl, _averaged(folder, _of_rows(sampled, value), measure)))
    return frontier


def samples_of(folder: Path) -> tuple[Rows, Rows]:
    """The samples of a run's last checkpoint, and the reference's.

    Raises:
        RunError: the file is not as evaluations write it, or of several policies.
    """
    rows, references = _of_one_policy(read_jsonl(folder / "samples.jsonl"))
    return _of_last(rows), references


def _of_one_policy(rows: Iterator[dict[str, Any]]) -> tuple[Rows, Rows]:
    samples: Rows = []
    references: Rows = []
    for row in rows:
        (references if row["policy"] == "reference" else samples).append(row)
    policies = {row["policy"] for row in samples}
    if len(policies) > 1:
        names = ", ".join(sorted(policies))
        raise RunError(f"an evaluation of a study is of one run, and this one is of {names}")
    return samples, references


def _of_last(rows: Rows) -> Rows:
    last = max((row["checkpoint"] or 0 for row in rows), default=0)
    return [row for row in rows if (row["checkpoint"] or 0) == last]


def _won(value: float, against: float) -> float:
    return 1.0 if value > against else 0.5 if value == against else 0.0


def _of_pairs(rows: Iterator[dict[str, Any]], measure: MeasureRecipe) -> ItemValues:
    times: Counter[tuple[Any, Any]] = Counter()
    for row in _of_last(_of_one_policy(rows)[0]):
        # Ids of one file are its own; a pair that is there twice is two items.
        name = (row["source"], row["id"])
        times[name] += 1
        if measure.source is not None and row["source"] != measure.source:
            continue
        margin = row["margin" if measure.value == "accuracy" else "log_ratio_margin"]
        if margin is None:
            continue
        value = margin if measure.value == "margin" else _won(margin, 0.0)
        item = f"{name[0]}|{name[1]}|{times[name]}"
        yield (str(row["prompt_id"]), item), float(value)


# Of samples ---------------------------------------------------------------------------------------


def _of_samples(samples: Rows, reference: Rows, measure: MeasureRecipe) -> ItemValues:
    if measure.value in _OF_PROMPTS:
        by_prompt: dict[str, Rows] = {}
        for row in samples:
            by_prompt.setdefault(str(row["prompt_id"]), []).append(row)
        for prompt, rows in by_prompt.items():
            value = _OF_PROMPTS[measure.value](rows)
            if value is not None:
                yield (prompt, prompt), value
    elif measure.value == "length_controlled_win_rate":
        yield from _at_equal_length(samples, reference)
    else:
        yield from _of_rows(samples, "won" if measure.value == "win_rate" else measure.value)


def _of_rows(rows: Sequence[Mapping[str, Any]], value: str) -> ItemValues:
    for row in rows:
        if row.get(value) is not None:
            prompt = str(row["prompt_id"])
            yield (prompt, prompt), float(row[value])


def _best(rows: Rows) -> float | None:
    """The highest reward of a prompt's samples; None where one is unknown."""
    rewards = [row["reward"] for row in rows]
    return None if None in rewards else float(max(rewards))


def _self_bleu(rows: Rows) -> float | None:
    from palate.evaluate.diversity import self_bleu

    return self_bleu([[row["response"] for row in rows]])


_OF_PROMPTS: dict[str, Callable[[Rows], float | None]] = {
    "best_of_n": _best,
    "self_bleu": _self_bleu,
}
"""Measures of all samples of a prompt together."""


def _at_equal_length(samples: Rows, reference: Rows) -> ItemValues:
    """What each sample says of the win rate at equal length, to first order: their mean is it."""
    from palate.evaluate.length_control import length_controlled_win_rate

    lengths = {(row["prompt_id"], row["index"]): len(row["response"]) for row in reference}
    rows = [row for row in samples if row.get("won") is not None]
    if not rows:
        return
    try:
        controlled = length_controlled_win_rate(
            [row["won"] for row in rows],
            [len(row["response"]) for row in rows],
            [lengths[row["prompt_id"], row["index"]] for row in rows],
            clusters=[row["prompt_id"] for row in rows],
        )
    except PalateError as error:
        raise Undetermined(str(error)) from None
    for row, value in zip(rows, controlled.by_item.tolist(), strict=True):
        prompt = str(row["prompt_id"])
        yield (prompt, prompt), value


# Of reward models ---------------------------------------------------------------------------------


def _of_benchmark(rows: Iterator[dict[str, Any]], measure: MeasureRecipe) -> ItemValues:
    for row in rows:
        name = row["benchmark"]
        if name is None or row.get("tie") or measure.source not in (None, name):
            continue
        (scores,) = row["scores"].values()
        better, worse = scores[: row["correct"]], scores[row["correct"] :]
        won = [float(a is not None and b is not None and a > b) for a in better for b in worse]
        item = (f"{name}|{row['prompt_id']}", f"{name}|{row['source']}|{row['id']}")
        yield item, sum(won) / len(won)


def _best_of_n(folder: Path) -> ItemValues:
    """Of each prompt the gold score that the model's choice among n candidates is worth, n the
    largest of its curve."""
    from palate.evaluate.reward.best_of_n import best_of_n

    document = read_json(folder / "evaluation.json")["best_of_n"]
    if document is None:
        return
    ((name, curve),) = document["models"].items()
    if "largest" not in curve:
        return
    for row in read_jsonl(folder / "scores.jsonl"):
        if row["benchmark"] is not None:
            continue
        scored = zip(row["scores"][name], row["gold"], strict=True)
        known = [(a, b) for a, b in scored if a is not None and b is not None]
        if len(known) >= curve["smallest"]:
            proxy, gold = zip(*known, strict=True)
            item = (f"{row['source']}|{row['prompt_id']}", f"{row['source']}|{row['id']}")
            yield item, best_of_n(proxy, gold, curve["largest"])
