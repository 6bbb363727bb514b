"""`palate eval reward`: reward models, judges and ensembles on benchmarks, into a run folder."""

from __future__ import annotations

import dataclasses
import platform
import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from palate.data.content import content_key
from palate.data.images import ImageStore
from palate.data.scorer import Score, Scorer
from palate.evaluate.progress import task
from palate.evaluate.result import EvalResult
from palate.evaluate.reward.accuracy import by_length, by_margin, by_source
from palate.evaluate.reward.agreement import agreement
from palate.evaluate.reward.best_of_n import curve
from palate.evaluate.reward.calibration import calibration
from palate.evaluate.reward.candidates import Candidates, own_gold, read_candidates
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.examples import examples
from palate.evaluate.reward.images import EvalImages
from palate.evaluate.reward.items import (
    BenchmarkItem,
    as_groups,
    compare,
    digest_items,
    prompt_ids,
    values_of,
)
from palate.evaluate.reward.looking import look, look_lines
from palate.evaluate.reward.numbers import (
    Numbers,
    distribution,
    from_json,
    member_spread,
    tied,
    to_json,
)
from palate.evaluate.reward.reading import ReadBenchmark, read_benchmarks
from palate.evaluate.reward.robustness import CHANGES, changed, robustness
from palate.evaluate.reward.score_cache import ScoreCache, counts_of
from palate.memory import kept_memory
from palate.models.pictures import IMAGES
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.scorers import Scorer as ScorerRecipe
from palate.rewards.columns import columns_read
from palate.rewards.identity import identities, key_of
from palate.rewards.length import Length
from palate.rewards.names import name_of, names_of
from palate.store.digests import sha256_json
from palate.store.examples import NAME as EXAMPLES
from palate.store.files import read_json
from palate.store.folder import PARTS, RunFolder
from palate.store.lineage import lineage
from palate.store.records import Data
from palate.store.reward_records import KIND, RewardEvaluation
from palate.store.stages import Result, Stage, run_stages

VERSION = 3
"""Of the results: raised whenever the same scores would give others."""
SCORES = "scores.jsonl"
Lines = list[dict[str, Any]]


def evaluate_rewards(recipe: RewardEvalRecipe, *, console: Console | None = None) -> EvalResult:
    """Evaluates the models of a recipe; with `resume`, scores that are there are kept.

    Writes evaluation.json, scores.jsonl, examples.jsonl, data.json, quarantine.jsonl, recipe.yaml,
    lineage.json, status.json and report.html. A model's results are a stage, and its scores are
    kept by content besides, so that an interrupted evaluation asks no model twice. That all models
    are there is seen before the first one scores.

    Raises:
        RunError: an output folder in use.
        RecipeError, DataError, ModelError: what cannot be used.
    """
    console = console or Console(stderr=True)
    chosen = recipe.best_of_n
    gold = None if chosen is None else chosen.gold
    scorers = [*recipe.models, *([] if gold is None else [gold])]
    check_scorers(scorers)
    store = ImageStore(recipe.output_dir.parent / IMAGES)
    benchmarks = read_benchmarks(recipe, store)
    candidates = None
    if chosen is not None:
        images = EvalImages(root=chosen.image_root, store=store)
        columns = dict.fromkeys(name for scorer in scorers for name in columns_read(scorer))
        candidates = read_candidates(
            chosen.candidates, chosen.pairing, recipe.seed, images, tuple(columns)
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
        document, rows, wrong_pairs = context.evaluate(folder)
        folder.write_lines(SCORES, rows)
        folder.write_lines(EXAMPLES, wrong_pairs)
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
    for line in look_lines(document):
        console.print(line, highlight=False, soft_wrap=True)
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
    benchmarks: Sequence[ReadBenchmark]
    candidates: Candidates | None
    cache: ScoreCache
    console: Console

    def evaluate(self, folder: RunFolder) -> tuple[dict[str, Any], Lines, Lines]:
        """The content of evaluation.json, and the lines of scores.jsonl and examples.jsonl."""
        names = names_of(self.recipe.models)
        gold = self._gold_stage()
        given = dict(zip(names, self.recipe.models, strict=True))
        # All before the first is asked: members of an ensemble go by the names of those before it.
        scorers = {name: self.cache.scorer(model, name) for name, model in given.items()}
        stages = {
            name: self._stage(model, name, scorers[name], gold) for name, model in given.items()
        }
        # Two models may be one under two names.
        once = {stage.name: stage for stage in ([gold] if gold else []) + list(stages.values())}
        records = run_stages(list(once.values()), folder.path, console=self.console)
        by_model = {name: records[stage.name].result for name, stage in stages.items()}
        if gold is not None and self.recipe.best_of_n and (by := self.recipe.best_of_n.gold):
            folder.models.append(
                {"name": self._gold_name(), "type": by.type, "weights": identities(by)}
                | {"role": "gold"}
            )
        models = []
        for name, model in given.items():
            folder.models.append({"name": name, "type": model.type, "weights": identities(model)})
            # Of all that a scorer was asked, by ensembles after it, too, in all runs.
            counted = counts_of(scorers[name])
            models.append(
                {"name": name, "type": model.type}
                | {"scores": by_model[name]["distribution"], "members": by_model[name]["members"]}
                | {"account": dict(sorted(counted.items()))}
            )
        scores = {
            name: {b: from_json(numbers) for b, numbers in results["scores"].items()}
            for name, results in by_model.items()
        }
        document = {
            "kind": KIND,
            "version": VERSION,
            "confidence": self.recipe.confidence,
            "models": models,
            "benchmarks": [
                self._entry(
                    benchmark,
                    {
                        name: results["results"][benchmark.name]
                        for name, results in by_model.items()
                    },
                    {name: of[benchmark.name] for name, of in scores.items()},
                )
                for benchmark in self.benchmarks
            ],
            "best_of_n": None
            if gold is None
            else {
                "gold": self._gold_name(),
                "models": {name: results["best_of_n"] for name, results in by_model.items()},
            },
        }
        rows = self._rows({name: results["scores"] for name, results in by_model.items()})
        if gold is not None:
            proxies = {name: results["proxies"] for name, results in by_model.items()}
            rows += self._candidate_rows(proxies, records[gold.name].result["scores"])
        types = {name: model.type for name, model in given.items()}
        return document, rows, examples(self.benchmarks, scores, types)

    def _stage(self, model: ScorerRecipe, name: str, scorer: Scorer, gold: Stage | None) -> Stage:
        """Scores of one model on everything, and what they come to."""
        inputs = {
            "model": key_of(model),
            "asked": {b.name: [b.type, digest_items(b.items)] for b in self.benchmarks},
            "recipe": self.recipe.model_dump(
                mode="json", include={"seed", "confidence", "robustness", "look"}
            ),
        }
        return Stage(
            name=sha256_json(inputs | {"gold": gold and gold.name})[:24],
            title=f"evaluating {name}",
            inputs=inputs,
            needs=(gold.name,) if gold else (),
            version=VERSION,
            run=lambda _, results: self._evaluated(
                scorer, results[gold.name]["scores"] if gold else None
            ),
        )

    def _gold_stage(self) -> Stage | None:
        """The gold score of every candidate."""
        if self.candidates is None:
            return None
        assert self.recipe.best_of_n is not None
        by = self.recipe.best_of_n.gold
        inputs = {
            "gold": self.recipe.best_of_n.model_dump(mode="json"),
            "scorer": None if by is None else key_of(by),
            "candidates": digest_items(self.candidates.items),
        }
        return Stage(
            name=f"gold-{sha256_json(inputs)[:24]}",
            inputs=inputs,
            version=VERSION,
            run=lambda *_: {"scores": to_json(self._gold())},
        )

    def _evaluated(self, scorer: Scorer, gold: Numbers | None) -> Result:
        scored: list[list[Score]] = []
        values: dict[str, list[list[float]]] = {}
        results: dict[str, dict[str, Any]] = {}
        for benchmark in self.benchmarks:
            of_benchmark = self._scores(scorer, benchmark.items, f"  {benchmark.name}")
            scored += of_benchmark
            values[benchmark.name] = values_of(of_benchmark)
            results[benchmark.name] = self._results(benchmark, scorer, values[benchmark.name])
        result: Result = {
            "results": results,
            "scores": {benchmark: to_json(scores) for benchmark, scores in values.items()},
        }
        if self.candidates is not None:
            assert gold is not None and self.recipe.best_of_n is not None
            items = self.candidates.items
            of_candidates = self._scores(scorer, items, "  candidates")
            scored += of_candidates
            proxies = values_of(of_candidates)
            result["proxies"] = to_json(proxies)
            result["best_of_n"] = curve(
                proxies,
                from_json(gold),
                largest=self.recipe.best_of_n.largest,
                smallest=self.recipe.best_of_n.min_candidates,
                confidence=self.recipe.confidence,
                groups=[content_key(item.prompt, item.source) for item in items],
            )
        self.cache.release()
        return result | {
            "distribution": distribution(values.values()),
            "members": member_spread(scorer, scored),
        }

    def _scores(
        self, scorer: Scorer, items: Sequence[BenchmarkItem], text: str
    ) -> list[list[Score]]:
        with task(text, len(items), self.console) as self.cache.progress:
            scores = scorer.score(as_groups(items))
        self.cache.progress = None
        return scores

    def _results(
        self, benchmark: ReadBenchmark, scorer: Scorer, scores: list[list[float]]
    ) -> dict[str, Any]:
        confidence = self.recipe.confidence
        pairs = compare(benchmark.items, scores)
        official = benchmark.rules.official(benchmark.items, scores, confidence)
        return {
            "official": dataclasses.asdict(official),
            "accuracy": by_source(pairs, confidence),
            "tied_in_data": tied(benchmark.items, scores),
            "calibration": calibration(pairs, confidence, self.recipe.seed),
            "by_length": by_length(pairs, confidence),
            "by_margin": by_margin(pairs, confidence),
            "robustness": self._robustness(benchmark, scorer, scores),
            "look": self._look(benchmark, scorer, scores),
        }

    def _look(
        self, benchmark: ReadBenchmark, scorer: Scorer, scores: list[list[float]]
    ) -> dict[str, Any] | None:
        if self.recipe.look is None:
            return None

        def ask(items: Sequence[BenchmarkItem], text: str) -> list[list[float]]:
            return values_of(self._scores(scorer, items, f"  {benchmark.name}, {text}"))

        return look(
            benchmark.items,
            scores,
            ask,
            most=self.recipe.look.items,
            seed=f"{self.recipe.seed}|look|{benchmark.name}",
            confidence=self.recipe.confidence,
        )

    def _robustness(
        self, benchmark: ReadBenchmark, scorer: Scorer, scores: list[list[float]]
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
        benchmark: ReadBenchmark,
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

    def _gold(self) -> list[list[float]]:
        assert self.candidates is not None and self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        if recipe is None:
            return own_gold(self.candidates)
        scores = self._scores(self.cache.scorer(recipe), self.candidates.items, "gold scores")
        self.cache.release()
        return values_of(scores)

    def _gold_name(self) -> str:
        assert self.recipe.best_of_n is not None
        recipe = self.recipe.best_of_n.gold
        return "the data's own rating" if recipe is None else name_of(recipe)

    def _rows(self, scores: dict[str, dict[str, Numbers]]) -> list[dict[str, Any]]:
        return [
            {
                "benchmark": benchmark.name,
                "id": item.id,
                "prompt_id": prompt,
                "source": item.source,
                "correct": item.correct,
                "tie": item.tie,
                "scores": {name: of[benchmark.name][i] for name, of in scores.items()},
            }
            for benchmark in self.benchmarks
            for i, (item, prompt) in enumerate(
                zip(benchmark.items, prompt_ids(benchmark.items), strict=True)
            )
        ]

    def _candidate_rows(self, proxies: dict[str, Numbers], gold: Numbers) -> list[dict[str, Any]]:
        assert self.candidates is not None
        return [
            {
                "benchmark": None,
                "id": item.id,
                "prompt_id": prompt,
                "source": item.source,
                "gold": gold[i],
                "scores": {name: values[i] for name, values in proxies.items()},
            }
            for i, (item, prompt) in enumerate(
                zip(self.candidates.items, prompt_ids(self.candidates.items), strict=True)
            )
        ]
