"""`palate eval reward`: reward models, judges and ensembles on benchmarks, into a run folder."""

from __future__ import annotations

import dataclasses
import math
import platform
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from palate.data.content import content_key
from palate.data.scorer import Score, Scorer, part_values
from palate.evaluate.progress import task
from palate.evaluate.reward.accuracy import by_length, by_margin, by_source
from palate.evaluate.reward.agreement import agreement
from palate.evaluate.reward.benchmark import Benchmark, Read
from palate.evaluate.reward.best_of_n import curve
from palate.evaluate.reward.calibration import calibration
from palate.evaluate.reward.candidates import Candidates, own_gold, read_candidates
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.items import (
    BenchmarkItem,
    as_groups,
    compare,
    digest_items,
    prompt_ids,
    values_of,
)
from palate.evaluate.reward.pairs import Pairs
from palate.evaluate.reward.rewardbench import RewardBench
from palate.evaluate.reward.rewardbench2 import RewardBench2
from palate.evaluate.reward.rm_bench import RmBench
from palate.evaluate.reward.robustness import CHANGES, changed, robustness
from palate.evaluate.reward.score_cache import ScoreCache, counts_of
from palate.evaluate.run import EvalResult
from palate.memory import kept_memory
from palate.recipes import reward_eval as recipes
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.rewards.combined import Combined
from palate.rewards.identity import identities
from palate.rewards.length import Length
from palate.rewards.members import MemberSums
from palate.rewards.names import name_of, names_of
from palate.store.files import read_json
from palate.store.folder import PARTS, RunFolder
from palate.store.lineage import lineage
from palate.store.names import unique_names
from palate.store.records import Data
from palate.store.reward_records import KIND, RewardEvaluation

VERSION = 2
"""Of the results: raised whenever the same scores would give others."""
SCORES = "scores.jsonl"


@dataclasses.dataclass(frozen=True)
class _ReadBenchmark:
    """One benchmark of the recipe, read."""

    name: str
    type: str
    rules: Benchmark
    read: Read

    @property
    def items(self) -> list[BenchmarkItem]:
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
    benchmarks = _read_benchmarks(recipe)
    candidates = (
        None if chosen is None else read_candidates(chosen.candidates, chosen.pairing, recipe.seed)
    )
    with RunFolder.open(recipe) as folder, kept_memory():
        entries = [entry for benchmark in benchmarks for entry in benchmark.read.entries]
        lines = [line for benchmark in benchmarks for line in benchmark.read.quarantine]
        if candidates is not None:
            entries += candidates.entries
            lines += candidates.quarantine
        data = {"kind": KIND, "sources": entries, "train": None, "eval": None}
        folder.write(Data.of(data))
        folder.write_quarantine(lines)
        cache = ScoreCache(folder.path / PARTS, seed=recipe.seed, chunk=recipe.chunk_items)
        context = _EvaluationContext(recipe, benchmarks, candidates, cache, console)
        document, rows = context.evaluate(folder)
        folder.write_lines(SCORES, rows)
        folder.write(
            lineage(
                verb="eval reward",
                seed=recipe.seed,
                device=platform.machine(),
                sources=entries,
                base_model=None,
                models=tuple(folder.models),
            )
        )
        folder.write(RewardEvaluation.of(document))
    from palate.report import write_report

    write_report([recipe.output_dir])
    # As a later reader finds it: intervals are lists there.
    return EvalResult(
        path=recipe.output_dir, evaluation=read_json(recipe.output_dir / "evaluation.json")
    )


@dataclasses.dataclass
class _EvaluationContext:
    """What all models of an evaluation share."""

    recipe: RewardEvalRecipe
    benchmarks: Sequence[_ReadBenchmark]
    candidates: Candidates | None
    cache: ScoreCache
    console: Console

    def evaluate(self, folder: RunFolder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The content of evaluation.json, and the lines of scores.jsonl."""
        names = names_of(self.recipe.models)
        models: list[dict[str, Any]] = []
        scorers: list[Scorer] = []
        scores: dict[str, dict[str, list[list[float]]]] = {}
        results: dict[str, dict[str, dict[str, Any]]] = {
            benchmark.name: {} for benchmark in self.benchmarks
        }
        choices: dict[str, dict[str, Any]] = {}
        proxies: dict[str, list[list[float]]] = {}
        gold = self._gold(folder)
        for name, model in zip(names, self.recipe.models, strict=True):
            self.console.print(f"evaluating {name}", highlight=False)
            scorer = self.cache.scorer(model, name)
            scored: list[list[Score]] = []
            scores[name] = {}
            for benchmark in self.benchmarks:
                of_benchmark = self._scores(scorer, benchmark.items, f"  {benchmark.name}")
                scored += of_benchmark
                values = scores[name][benchmark.name] = values_of(of_benchmark)
                results[benchmark.name][name] = self._results(benchmark, scorer, values)
            if self.candidates is not None:
                assert gold is not None and self.recipe.best_of_n is not None
                items = self.candidates.items
                of_candidates = self._scores(scorer, items, "  candidates")
                scored += of_candidates
                proxies[name] = values_of(of_candidates)
                choices[name] = curve(
                    proxies[name],
                    gold,
                    largest=self.recipe.best_of_n.largest,
                    smallest=self.recipe.best_of_n.min_candidates,
                    confidence=self.recipe.confidence,
                    groups=[content_key(item.prompt, item.source) for item in items],
                )
            models.append(
                {
                    "name": name,
                    "type": model.type,
                    "scores": _describe(scores[name].values()),
                    "members": _members(scorer, scored),
                }
            )
            scorers.append(scorer)
            folder.models.append({"name": name, "type": model.type, "weights": identities(model)})
            self.cache.release()
        # Of all that a scorer was asked, by ensembles after it, too: a resumed run knows no order.
        for entry, scorer in zip(models, scorers, strict=True):
            entry["account"] = dict(sorted(counts_of(scorer).items()))
        document = {
            "kind": KIND,
            "version": VERSION,
            "confidence": self.recipe.confidence,
            "models": models,
            "benchmarks": [
                self._entry(
                    benchmark,
                    results[benchmark.name],
                    {n: scores[n][benchmark.name] for n in names},
                )
                for benchmark in self.benchmarks
            ],
            "best_of_n": None
            if self.candidates is None
            else {"gold": self._gold_name(), "models": choices},
        }
        return document, [*self._rows(scores), *self._candidate_rows(proxies, gold)]

    def _scores(
        self, scorer: Scorer, items: Sequence[BenchmarkItem], text: str
    ) -> list[list[Score]]:
        with task(text, len(items), self.console) as self.cache.progress:
            scores = scorer.score(as_groups(items))
        self.cache.progress = None
        return scores

    def _results(
        self, benchmark: _ReadBenchmark, scorer: Scorer, scores: list[list[float]]
    ) -> dict[str, Any]:
        confidence = self.recipe.confidence
        pairs = compare(benchmark.items, scores)
        official = benchmark.rules.official(benchmark.items, scores, confidence)
        return {
            "official": dataclasses.asdict(official),
            "accuracy": by_source(pairs, confidence),
            "tied_in_data": _tied(benchmark.items, scores),
            "calibration": calibration(pairs, confidence, self.recipe.seed),
            "by_length": by_length(pairs, confidence),
            "by_margin": by_margin(pairs, confidence),
            "robustness": self._robustness(benchmark, scorer, scores),
        }

    def _robustness(
        self, benchmark: _ReadBenchmark, scorer: Scorer, scores: list[list[float]]
    ) -> list[dict[str, Any]]:
        wanted = self.recipe.robustness
        if wanted is None:
            return []
        places = [i for i, item in enumerate(benchmark.items) if not item.tie]
        draw = random.Random(f"{self.recipe.seed}|robustness|{benchmark.name}")
        places = sorted(draw.sample(places, min(wanted.items, len(places))))
        items, before = [benchmark.items[i] for i in places], [scores[i] for i in places]
        results = []
        jobs = [(c, False) for c in wanted.changes] + [(c, True) for c in wanted.rejected_only]
        for change, rejected_only in jobs:
            words, function = CHANGES[change]
            new = [changed(item, function, rejected_only=rejected_only) for item in items]
            after = values_of(self._scores(scorer, new, f"  {benchmark.name}, {change}"))
            results.append(
                {"change": change, "words": words, "rejected_only": rejected_only}
                | robustness(items, before, after, self.recipe.confidence)
            )
        return results

    def _entry(
        self,
        benchmark: _ReadBenchmark,
        results: dict[str, dict[str, Any]],
        scores: dict[str, list[list[float]]],
    ) -> dict[str, Any]:
        baselines = {}
        for prefer in ("longer", "shorter"):
            values = values_of(Length(prefer).score(as_groups(benchmark.items)))
            baselines[prefer] = dataclasses.asdict(
                benchmark.rules.official(benchmark.items, values, self.recipe.confidence)
            )
        pairs = {name: compare(benchmark.items, values) for name, values in scores.items()}
        return {
            "name": benchmark.name,
            "type": benchmark.type,
            "title": benchmark.rules.title,
            "definition": benchmark.rules.definition,
            "version": benchmark.rules.version,
            "digest": digest_items(benchmark.items),
            "items": len(benchmark.items),
            "pairs": len(next(iter(pairs.values()))),
            "ties": sum(item.tie for item in benchmark.items),
            "baselines": baselines,
            "results": results,
            "agreement": agreement(pairs, scores),
        }

    def _gold(self, folder: RunFolder) -> list[list[float]] | None:
        if self.candidates is None:
            return None
        assert self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        if recipe is None:
            return own_gold(self.candidates)
        scores = self._scores(self.cache.scorer(recipe), self.candidates.items, "gold scores")
        self.cache.release()
        folder.models.append(
            {"name": self._gold_name(), "type": recipe.type, "weights": identities(recipe)}
            | {"role": "gold"}
        )
        return values_of(scores)

    def _gold_name(self) -> str:
        assert self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        return "the data's own rating" if recipe is None else name_of(recipe)

    def _rows(self, scores: dict[str, dict[str, list[list[float]]]]) -> list[dict[str, Any]]:
        return [
            {
                "benchmark": benchmark.name,
                "id": item.id,
                "prompt_id": prompt,
                "source": item.source,
                "correct": item.correct,
                "tie": item.tie,
                "scores": {
                    name: _as_json(by_benchmark[benchmark.name][i])
                    for name, by_benchmark in scores.items()
                },
            }
            for benchmark in self.benchmarks
            for i, (item, prompt) in enumerate(
                zip(benchmark.items, prompt_ids(benchmark.items), strict=True)
            )
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
                "prompt_id": prompt,
                "source": item.source,
                "gold": _as_json(gold[i]),
                "scores": {name: _as_json(values[i]) for name, values in proxies.items()},
            }
            for i, (item, prompt) in enumerate(
                zip(self.candidates.items, prompt_ids(self.candidates.items), strict=True)
            )
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


def _read_benchmarks(recipe: RewardEvalRecipe) -> list[_ReadBenchmark]:
    made = [benchmark_of(chosen) for chosen in recipe.benchmarks]
    given = zip(recipe.benchmarks, made, strict=True)
    names = unique_names(chosen.name or benchmark.title for chosen, benchmark in given)
    return [
        _ReadBenchmark(name, chosen.type, benchmark, benchmark.read(chosen.data, recipe.seed))
        for chosen, benchmark, name in zip(recipe.benchmarks, made, names, strict=True)
    ]


def _members(scorer: Scorer, scored: Sequence[Sequence[Score]]) -> dict[str, Any] | None:
    """Spread of the members of an ensemble or a mixture over all items; None of other scorers."""
    if not isinstance(scorer, Combined):
        return None
    sums = MemberSums(scorer.numbers)
    sums.add([(i, part_values(score)) for i, scores in enumerate(scored) for score in scores])
    return sums.described()


def _as_json(scores: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores]


def _describe(scores: Any) -> dict[str, Any]:
    """Distribution of all scores of a model."""
    flat = np.asarray(
        [score for benchmark in scores for values in benchmark for score in values],
        dtype=np.float64,
    )
    real = flat[~np.isnan(flat)]
    described: dict[str, Any] = {"n": len(flat), "unscored": len(flat) - len(real)}
    if len(real):
        described |= {
            "mean": float(real.mean()),
            "deviation": float(real.std()),
            "min": float(real.min()),
            "max": float(real.max()),
        }
    return described


def _tied(
    items: Sequence[BenchmarkItem], scores: Sequence[Sequence[float]]
) -> dict[str, Any] | None:
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
