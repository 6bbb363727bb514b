"""`palate eval reward`: reward models, judges and ensembles on benchmarks, into a run folder."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from palate.data.content import content_key
from palate.evaluate.folder import PARTS, Folder
from palate.evaluate.progress import task
from palate.evaluate.reward.accuracy import by_length, by_margin, by_source
from palate.evaluate.reward.agreement import agreement
from palate.evaluate.reward.benchmark import Benchmark, Official, Read
from palate.evaluate.reward.best_of_n import curve
from palate.evaluate.reward.calibration import calibration
from palate.evaluate.reward.candidates import Candidates, own_gold, read_candidates
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.items import Item, compare, digest_items
from palate.evaluate.reward.library import Library, identities, name_of, names_of
from palate.evaluate.reward.pairs import Pairs
from palate.evaluate.reward.rewardbench import RewardBench
from palate.evaluate.reward.rewardbench2 import RewardBench2
from palate.evaluate.reward.rm_bench import RmBench
from palate.evaluate.reward.robustness import CHANGES, changed, robustness
from palate.evaluate.reward.scoring import Book, EnsembleBook
from palate.evaluate.run import EvalResult
from palate.io import read_json
from palate.memory import kept_memory
from palate.recipes import reward_eval as recipes
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.rewards.base import has_images
from palate.rewards.length import Length
from palate.rewards.spread import spreads

VERSION = 2
"""Of the results: raised whenever the same scores would give others."""
KIND = "reward-evaluation"
SCORES = "scores.jsonl"


@dataclasses.dataclass(frozen=True)
class _Set:
    """One benchmark of the recipe, read."""

    name: str
    type: str
    benchmark: Benchmark
    read: Read

    @property
    def items(self) -> list[Item]:
        return self.read.items


def evaluate_rewards(recipe: RewardEvalRecipe, *, console: Console | None = None) -> EvalResult:
    """Evaluates the models of a recipe; with `resume`, scores that are there are kept.

    Writes evaluation.json, scores.jsonl, data.json, quarantine.jsonl, recipe.yaml, lineage.json,
    status.json and report.html. Scores are kept by scorer and by content, so that an interrupted
    evaluation asks no model twice. That all models are there is seen before the first one scores.

    Raises:
        RunError: an output folder in use.
        RecipeError, DataError, ModelError: what cannot be used.
    """
    console = console or Console(stderr=True)
    chosen = recipe.best_of_n
    gold = None if chosen is None else chosen.gold
    check_scorers([*recipe.models, *([] if gold is None else [gold])])
    sets = [
        _Set(name, b.type, made, made.read(b.data, recipe.seed))
        for b, name, made in _benchmarks(recipe)
    ]
    candidates = (
        None if chosen is None else read_candidates(chosen.candidates, chosen.pairing, recipe.seed)
    )
    with Folder.open(recipe) as folder, kept_memory():
        entries = [entry for one in sets for entry in one.read.entries]
        lines = [line for one in sets for line in one.read.quarantine]
        if candidates is not None:
            entries += candidates.entries
            lines += candidates.quarantine
        folder.record_data({"kind": KIND, "sources": entries, "train": None, "eval": None}, lines)
        library = Library(folder.path / PARTS, seed=recipe.seed, chunk=recipe.chunk_items)
        own = _Own(recipe, sets, candidates, library, console)
        document, rows = own.evaluate(folder)
        folder.finish(document, rows, SCORES)
    from palate.report import write_report

    write_report([recipe.output_dir])
    # As a later reader finds it: intervals are lists there.
    return EvalResult(
        path=recipe.output_dir, evaluation=read_json(recipe.output_dir / "evaluation.json")
    )


@dataclasses.dataclass
class _Own:
    """What all models of an evaluation share."""

    recipe: RewardEvalRecipe
    sets: Sequence[_Set]
    candidates: Candidates | None
    library: Library
    console: Console

    def evaluate(self, folder: Folder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The content of evaluation.json, and the lines of scores.jsonl."""
        names = names_of(self.recipe.models)
        models: list[dict[str, Any]] = []
        books: list[Book] = []
        scores: dict[str, dict[str, list[list[float]]]] = {}
        results: dict[str, dict[str, dict[str, Any]]] = {one.name: {} for one in self.sets}
        choices: dict[str, dict[str, Any]] = {}
        proxies: dict[str, list[list[float]]] = {}
        gold = self._gold(folder)
        for name, model in zip(names, self.recipe.models, strict=True):
            self.console.print(f"evaluating {name}", highlight=False)
            book = self.library.book(model, name)
            scores[name] = {}
            for one in self.sets:
                found = self._scores(book, one.items, f"  {one.name}")
                scores[name][one.name] = found
                results[one.name][name] = self._results(one, book, found)
            if self.candidates is not None:
                assert gold is not None and self.recipe.best_of_n is not None
                found = self._scores(book, self.candidates.items, "  candidates")
                choices[name] = curve(
                    found,
                    gold,
                    largest=self.recipe.best_of_n.largest,
                    smallest=self.recipe.best_of_n.min_candidates,
                    confidence=self.recipe.confidence,
                    groups=[
                        content_key(item.prompt, item.source) for item in self.candidates.items
                    ],
                )
                proxies[name] = found
            models.append(
                {
                    "name": name,
                    "type": model.type,
                    "scores": _describe(scores[name].values()),
                    "members": self._members(book),
                }
            )
            books.append(book)
            folder.record_scorer({"name": name, "type": model.type, "weights": identities(model)})
            book.release()
        # Of all that a scorer was asked, by ensembles after it, too: a resumed run knows no order.
        for entry, book in zip(models, books, strict=True):
            entry["account"] = dict(sorted(book.account.items()))
        document = {
            "kind": KIND,
            "version": VERSION,
            "confidence": self.recipe.confidence,
            "models": models,
            "benchmarks": [
                self._entry(one, results[one.name], {n: scores[n][one.name] for n in names})
                for one in self.sets
            ],
            "best_of_n": None
            if self.candidates is None
            else {"gold": self._gold_name(), "models": choices},
        }
        return document, [*self._rows(scores), *self._candidate_rows(proxies, gold)]

    def _scores(self, book: Book, items: Sequence[Item], text: str) -> list[list[float]]:
        with task(text, len(items), self.console) as progress:
            return book.scores(items, progress)

    def _results(self, one: _Set, book: Book, scores: list[list[float]]) -> dict[str, Any]:
        confidence = self.recipe.confidence
        pairs = compare(one.items, scores)
        official = one.benchmark.official(one.items, scores, confidence)
        return {
            "official": _official(official),
            "accuracy": by_source(pairs, confidence),
            "tied_in_data": _tied(one.items, scores),
            "calibration": calibration(pairs, confidence, self.recipe.seed),
            "by_length": by_length(pairs, confidence),
            "by_margin": by_margin(pairs, confidence),
            "robustness": self._robustness(one, book, scores),
        }

    def _robustness(self, one: _Set, book: Book, scores: list[list[float]]) -> list[dict[str, Any]]:
        wanted = self.recipe.robustness
        if wanted is None:
            return []
        places = [i for i, item in enumerate(one.items) if not item.tie]
        draw = random.Random(f"{self.recipe.seed}|robustness|{one.name}")
        places = sorted(draw.sample(places, min(wanted.items, len(places))))
        items, before = [one.items[i] for i in places], [scores[i] for i in places]
        found = []
        jobs = [(c, False) for c in wanted.changes] + [(c, True) for c in wanted.rejected_only]
        for change, rejected_only in jobs:
            words, function = CHANGES[change]
            new = [changed(item, function, rejected_only=rejected_only) for item in items]
            after = self._scores(book, new, f"  {one.name}, {change}")
            found.append(
                {"change": change, "words": words, "rejected_only": rejected_only}
                | robustness(items, before, after, self.recipe.confidence)
            )
        return found

    def _members(self, book: Book) -> dict[str, Any] | None:
        """Spread of the members of an ensemble over all items."""
        if not isinstance(book, EnsembleBook):
            return None
        items = [item for one in self.sets for item in one.items]
        if self.candidates is not None:
            items += self.candidates.items
        rows, owner = book.member_scores(items)
        names = book.ensemble.names
        asked = book.ensemble.asked([has_images(items[i].prompt) for i in owner])
        numbers = book.ensemble.numbers
        raw = spreads(names, rows, owner, asked=asked)
        entering = spreads(names, numbers.entering(rows), owner, asked=asked)
        return numbers.described(raw, entering)

    def _entry(
        self,
        one: _Set,
        results: dict[str, dict[str, Any]],
        scores: dict[str, list[list[float]]],
    ) -> dict[str, Any]:
        prompts = [item.prompt for item in one.items for _ in item.responses]
        flat = [response for item in one.items for response in item.responses]
        baselines = {}
        for prefer in ("longer", "shorter"):
            values = iter(Length(prefer).score(prompts, flat))
            own = [[next(values) for _ in item.responses] for item in one.items]
            found = one.benchmark.official(one.items, own, self.recipe.confidence)
            baselines[prefer] = _official(found)
        pairs = {name: compare(one.items, own) for name, own in scores.items()}
        return {
            "name": one.name,
            "type": one.type,
            "title": one.benchmark.title,
            "definition": one.benchmark.definition,
            "version": one.benchmark.version,
            "digest": digest_items(one.items),
            "items": len(one.items),
            "pairs": len(next(iter(pairs.values()))),
            "ties": sum(item.tie for item in one.items),
            "baselines": baselines,
            "results": results,
            "agreement": agreement(pairs, scores),
        }

    def _gold(self, folder: Folder) -> list[list[float]] | None:
        if self.candidates is None:
            return None
        assert self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        if recipe is None:
            return own_gold(self.candidates)
        book = self.library.book(recipe)
        found = self._scores(book, self.candidates.items, "gold scores")
        book.release()
        folder.record_scorer(
            {"name": self._gold_name(), "type": recipe.type, "weights": identities(recipe)}
            | {"role": "gold"}
        )
        return found

    def _gold_name(self) -> str:
        assert self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        return "the data's own rating" if recipe is None else name_of(recipe)

    def _rows(self, scores: dict[str, dict[str, list[list[float]]]]) -> list[dict[str, Any]]:
        return [
            {
                "benchmark": one.name,
                "id": item.id,
                "source": item.source,
                "correct": item.correct,
                "scores": {name: _as_json(own[one.name][i]) for name, own in scores.items()},
            }
            for one in self.sets
            for i, item in enumerate(one.items)
        ]

    def _candidate_rows(
        self, proxies: dict[str, list[list[float]]], gold: list[list[float]] | None
    ) -> list[dict[str, Any]]:
        if self.candidates is None:
            return []
        assert gold is not None
        return [
            {
                "benchmark": None,
                "id": item.id,
                "source": item.source,
                "gold": _as_json(gold[i]),
                "scores": {name: _as_json(own[i]) for name, own in proxies.items()},
            }
            for i, item in enumerate(self.candidates.items)
        ]


def benchmark_of(recipe: recipes.Benchmark) -> Benchmark:
    """What a recipe's benchmark is read and scored by."""
    if isinstance(recipe, recipes.RewardBenchRecipe):
        return RewardBench(recipe.prior)
    if isinstance(recipe, recipes.RewardBench2Recipe):
        return RewardBench2()
    if isinstance(recipe, recipes.RmBenchRecipe):
        return RmBench()
    return Pairs(recipe.pairing)


def _benchmarks(
    recipe: RewardEvalRecipe,
) -> list[tuple[recipes.Benchmark, str, Benchmark]]:
    found: list[tuple[recipes.Benchmark, str, Benchmark]] = []
    taken: set[str] = set()
    for one in recipe.benchmarks:
        made = benchmark_of(one)
        plain = one.name or made.title
        name, n = plain, 1
        while name in taken:
            n += 1
            name = f"{plain} ({n})"
        taken.add(name)
        found.append((one, name, made))
    return found


def _as_json(scores: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores]


def _official(official: Official) -> dict[str, Any]:
    return dataclasses.asdict(official)


def _describe(scores: Any) -> dict[str, Any]:
    """Distribution of all scores of a model."""
    flat = np.asarray(
        [score for benchmark in scores for own in benchmark for score in own], dtype=np.float64
    )
    real = flat[~np.isnan(flat)]
    found: dict[str, Any] = {"n": len(flat), "unscored": len(flat) - len(real)}
    if len(real):
        found |= {
            "mean": float(real.mean()),
            "deviation": float(real.std()),
            "min": float(real.min()),
            "max": float(real.max()),
        }
    return found


def _tied(items: Sequence[Item], scores: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """What the model says of pairs that the annotator called ties, beside the others."""
    tied = [abs(s[0] - s[1]) for item, s in zip(items, scores, strict=True) if item.tie]
    tied = [value for value in tied if not math.isnan(value)]
    others = np.abs(compare(items, scores).margin)
    others = others[~np.isnan(others)]
    if not tied or not len(others):
        return None
    return {
        "n": len(tied),
        "margin": float(np.mean(tied)),
        "margin_of_others": float(others.mean()),
    }
