"""`palate eval`: policies on held-out pairs and on their own samples, into a run folder."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.layouts import Layout
from palate.data.scorer import Group, Scorer, ask
from palate.errors import RecipeError
from palate.evaluate.diversity import diversity
from palate.evaluate.eval_data import (
    EvalData,
    build_eval_data,
    check_data_keys,
    data_recipe,
    eval_length,
)
from palate.evaluate.frontier import SampleStats, frontier_point, sample_stats
from palate.evaluate.loading import PolicyLoader, grouped
from palate.evaluate.preference import PairScore, Progress, score_pairs, summarise_pairs
from palate.evaluate.progress import task
from palate.evaluate.result import EvalResult
from palate.evaluate.sample import sample
from palate.evaluate.targets import Target, find_targets, trained_runs
from palate.evaluate.win_rate import Won, beaten, check_judge, judged, win_rate
from palate.memory import kept_memory
from palate.models.generation.engine import Completion
from palate.models.loading import load_tokenizer
from palate.models.model import Model
from palate.models.pictures import IMAGES, pictures_of
from palate.models.reference import Reference
from palate.recipes.evaluation import EvalRecipe
from palate.rewards import make_scorer
from palate.rewards.identity import identities, key_of, weights_identity
from palate.rewards.names import name_of
from palate.store.digests import sha256_json
from palate.store.folder import RunFolder
from palate.store.lineage import lineage, model_entry
from palate.store.records import Data, Evaluation
from palate.store.stages import Result, Stage, run_stages

VERSION = 7
"""Of the results: raised whenever the same inputs would give others."""
PAIRS_PER_BATCH = 8
STATS_PER_BATCH = 16
_SAMPLE = tuple(field.name for field in dataclasses.fields(Completion))
_STATS = tuple(field.name for field in dataclasses.fields(SampleStats))


def evaluate(recipe: EvalRecipe, *, console: Console | None = None) -> EvalResult:
    """Evaluates the policies of a recipe; with `resume`, only those without a result.

    Writes evaluation.json, samples.jsonl, pairs.jsonl, data.json, recipe.yaml, lineage.json,
    status.json and report.html. Results of a policy are kept under a key of everything they depend
    on (weights, reference, data, sampling, reward), so a resumed or extended evaluation computes
    nothing twice.

    Raises:
        RunError: a folder that is no run, or an output folder in use.
        RecipeError: keys that this evaluation does not use.
        ModelError, DataError: unreadable input.
    """
    console = console or Console(stderr=True)
    check_data_keys(recipe)
    runs = trained_runs(recipe.runs)
    targets = find_targets(recipe, runs)
    data, seed, part = data_recipe(recipe, runs)
    scorers = {
        key: make_scorer(chosen, seed=recipe.seed)
        for key, chosen in (("reward", recipe.reward), ("judge", recipe.judge))
        if chosen is not None
    }
    if recipe.judge is not None:
        check_judge(recipe.judge)
        for target in targets:
            if target.reference is None:
                raise RecipeError(
                    f"`judge` compares with the reference's samples, and {target.name} has no "
                    "reference: set `reference`"
                )
    with RunFolder.open(recipe) as folder, kept_memory():
        policies: list[dict[str, Any]] = []
        references: list[dict[str, Any]] = []
        samples: list[list[dict[str, Any]]] = [[], []]
        pairs: list[dict[str, Any]] = []
        sources: list[dict[str, Any]] = []
        for group in grouped(targets):
            model = group[0].model
            tokenizer = load_tokenizer(model)
            store = folder.path.parent / IMAGES
            pictures = pictures_of(model, tokenizer, store)
            encoder = Encoder(tokenizer, model.chat_template, eval_length(recipe, data), pictures)
            eval_data = build_eval_data(recipe, data, seed, part, encoder)
            folder.write(Data.of(eval_data.report))
            folder.write_quarantine(eval_data.quarantine)
            sources = eval_data.report["sources"]
            loader = PolicyLoader(model, group[0].reference, pictures=pictures)
            context = EvaluationContext(recipe, eval_data, tokenizer, scorers, console)
            shown = _reference_target(group[0], len(references)) if recipe.sampling else None
            stages = {} if shown is None else {shown.name: context.stages(shown, loader)}
            against = None if shown is None else stages[shown.name]["measured"]
            stages |= {target.name: context.stages(target, loader, against) for target in group}
            # Two targets may be the same weights.
            once = {stage.name: stage for by_kind in stages.values() for stage in by_kind.values()}
            root = recipe.results_dir or folder.path
            records = run_stages(list(once.values()), root, console=console)
            results = {
                name: PolicyResults(
                    {kind: records[stage.name].result for kind, stage in by_kind.items()}
                )
                for name, by_kind in stages.items()
            }
            of_reference = None if shown is None else results[shown.name]
            for target in [*([] if shown is None else [shown]), *group]:
                is_reference = target is shown
                result = results[target.name]
                if of_reference is not None and not is_reference:
                    result.compare(of_reference)
                entries = references if is_reference else policies
                entries.append(context.entry(target, result))
                samples[not is_reference] += context.sample_lines(target, result)
                pairs += context.pair_lines(target, result)
            folder.models.append(
                model_entry(model, loader.digest) | {"reference": group[0].reference}
            )
        for role, chosen in (("reward", recipe.reward), ("judge", recipe.judge)):
            if chosen is not None:
                folder.models.append(
                    {"role": role, "name": name_of(chosen), "type": chosen.type}
                    | {"weights": identities(chosen)}
                )
        document = evaluation_document(
            _in_order(policies, targets),
            confidence=recipe.confidence,
            reference=references[0] if references else None,
        )
        # Further references, of runs on other base models, are policies like the rest.
        document["policies"] += references[1:]
        folder.write_lines("samples.jsonl", [*samples[0], *samples[1]])
        folder.write_lines("pairs.jsonl", pairs)
        folder.write(
            lineage(
                verb="eval",
                seed=recipe.seed,
                device=platform.machine(),
                sources=sources,
                base_model=folder.models[0],
                models=tuple(folder.models),
            )
        )
        folder.write(Evaluation.of(document))
    from palate.report import write_report

    write_report([recipe.output_dir])
    return EvalResult(path=recipe.output_dir, evaluation=document)


def evaluation_document(
    policies: Sequence[dict[str, Any]],
    *,
    confidence: float = 0.95,
    reference: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json.

    Args:
        policies: one entry a policy: name, label, checkpoint, run, loss, beta, and `preference`
            (`summarise_pairs`) and `samples` where measured.
    """
    return {
        "kind": "evaluation",
        "confidence": confidence,
        "policies": list(policies),
        "reference": reference,
    }


@dataclass
class PolicyResults:
    """What stages gave of one policy, by kind.

    Attributes:
        won: of each sample, against the reference's; None where nothing compares them.
        against: the reference's samples.
    """

    results: Mapping[str, Result]
    won: Won | None = None
    against: Sequence[Mapping[str, Any]] = ()

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return list(self.results["measured"]["pairs"])

    @property
    def samples(self) -> list[dict[str, Any]]:
        return list(self.results["measured"]["samples"])

    @property
    def rewards(self) -> list[float | None] | None:
        rewards = self.results.get("rewards")
        return None if rewards is None else rewards["rewards"]

    def compare(self, reference: PolicyResults) -> None:
        """Notes how the samples do against the reference's, by the judge or by their rewards."""
        self.against = reference.samples
        places = [[(row["prompt"], row["index"]) for row in of.samples] for of in (self, reference)]
        assert places[0] == places[1]
        if "judged" in self.results:
            self.won = self.results["judged"]["won"]
        elif self.rewards is not None and reference.rewards is not None:
            self.won = beaten(self.rewards, reference.rewards)


@dataclass(frozen=True)
class EvaluationContext:
    """What all policies of one base model share in an evaluation.

    Attributes:
        scorers: `reward` and `judge`, where the recipe has them.
    """

    recipe: EvalRecipe
    eval_data: EvalData
    tokenizer: Any
    scorers: Mapping[str, Scorer]
    console: Console

    def stages(
        self, target: Target, loader: PolicyLoader, against: Stage | None = None
    ) -> dict[str, Stage]:
        """What is measured of a policy, the rewards of its samples, and the judge's verdicts on
        them, by kind; named by their content.

        They are apart: another reward is asked about the samples that are there.

        Args:
            against: what measures the reference.
        """
        measured_of = _depends_on(self.recipe, target, self.eval_data)
        measured = Stage(
            name=sha256_json(measured_of)[:24],
            title=f"evaluating {target.name}",
            inputs=measured_of,
            version=VERSION,
            run=lambda *_: self._measured(target, loader),
        )
        stages = {"measured": measured}
        if self.recipe.reward is not None:
            scored_of = {"samples": measured.name, "reward": key_of(self.recipe.reward)}
            stages["rewards"] = Stage(
                name=sha256_json(scored_of)[:24],
                title=f"rewards of {target.name}",
                inputs=scored_of,
                needs=(measured.name,),
                version=VERSION,
                run=lambda _, results: {"rewards": self.rewards(results[measured.name]["samples"])},
            )
        if self.recipe.judge is not None and against is not None:
            judged_of = {"samples": measured.name, "judge": key_of(self.recipe.judge)}
            judged_of["against"] = against.name
            # A policy may be the reference itself.
            needs = tuple(dict.fromkeys((measured.name, against.name)))
            stages["judged"] = Stage(
                name=sha256_json(judged_of)[:24],
                title=f"verdicts on {target.name}",
                inputs=judged_of,
                needs=needs,
                version=VERSION,
                run=lambda _, results: {
                    "won": self.verdicts(
                        *(results[name]["samples"] for name in (measured.name, against.name))
                    )
                },
            )
        return stages

    def _measured(self, target: Target, loader: PolicyLoader) -> Result:
        if target.label == "reference":
            reference = loader.reference()
            assert reference is not None
            return self.measure(target, reference.policy, reference, loader.layout)
        layout = loader.layout
        # Adapters come off the base model here, also where measuring them fails.
        with closing(loader.policies([target])) as policies:
            (result,) = [self.measure(*loaded, layout) for loaded in policies]
        return result

    def measure(
        self, target: Target, policy: Model, reference: Reference | None, layout: Layout
    ) -> Result:
        """What the policy has to be run for: its judgement of each pair, and its samples."""
        pairs: list[PairScore] = []
        samples: list[dict[str, Any]] = []
        look = None

        def judged(items: Sequence[Item], progress: Progress | None = None) -> list[PairScore]:
            return score_pairs(
                policy,
                items,
                loss=target.loss,
                reference=reference,
                token_weights=target.token_weights,
                batch_size=PAIRS_PER_BATCH,
                layout=layout,
                progress=progress,
            )

        # The reference's implicit rewards are all 0.
        if self.recipe.preference and target.label != "reference":
            with task("  pairs", len(self.eval_data.pairs), self.console) as progress:
                pairs = judged(self.eval_data.pairs, progress)
            if self.eval_data.look is not None:
                look = self.eval_data.look.measure(
                    [pair.margin for pair in pairs],
                    lambda items: [pair.margin for pair in judged(items)],
                    confidence=self.recipe.confidence,
                )
        if self.recipe.sampling is not None:
            samples = self._samples(policy, reference, layout)
        return {
            "pairs": list(map(dataclasses.asdict, pairs)),
            "samples": samples,
            "look": look,
        }

    def _samples(
        self, policy: Model, reference: Reference | None, layout: Layout
    ) -> list[dict[str, Any]]:
        s = self.recipe.sampling
        assert s is not None
        prompts = self.eval_data.prompts
        with task("  sampling", len(prompts) * s.samples_per_prompt, self.console) as progress:
            drawn = sample(
                policy,
                self.tokenizer,
                [p.tokens for p in prompts],
                samples_per_prompt=s.samples_per_prompt,
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_p=s.top_p,
                batch_size=s.batch_size,
                seed=self.recipe.seed,
                on_batch=lambda batch: progress.advance(len(batch)),
            )
        with task("  KL and entropy", len(drawn), self.console) as progress:
            stats = sample_stats(
                policy,
                drawn,
                prompts=[p.tokens for p in prompts],
                reference=reference,
                batch_size=STATS_PER_BATCH,
                layout=layout,
                progress=progress,
            )
        return [
            dataclasses.asdict(d) | dataclasses.asdict(of_sample)
            for d, of_sample in zip(drawn, stats, strict=True)
        ]

    def rewards(self, samples: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The reward of each sample."""
        prompts = self.eval_data.prompts
        groups = [
            Group(asked.content, (row["text"],), columns=asked.columns)
            for row in samples
            for asked in (prompts[row["prompt"]],)
        ]
        return [score.value for (score,) in ask(self.scorers["reward"], groups)]

    def verdicts(
        self, samples: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]
    ) -> Won:
        """The judge's verdict on each sample."""
        assert self.recipe.judge is not None
        return judged(
            self.scorers["judge"],
            self.recipe.judge,
            [self.eval_data.prompts[row["prompt"]].content for row in samples],
            [row["text"] for row in samples],
            [row["text"] for row in against],
        )

    def entry(self, target: Target, results: PolicyResults) -> dict[str, Any]:
        """A policy's entry of evaluation.json."""
        entry = target.entry()
        confidence = self.recipe.confidence
        if results.pairs:
            scores = [PairScore(**row) for row in results.pairs]
            entry["preference"] = summarise_pairs(
                scores, prompts=self.eval_data.prompt_ids, confidence=confidence
            )
        if (look := results.results["measured"].get("look")) is not None:
            entry["look"] = look
        if rows := results.samples:
            stats = [SampleStats(**{name: row[name] for name in _STATS}) for row in rows]
            drawn = [Completion(**{name: row[name] for name in _SAMPLE}) for row in rows]
            entry["samples"] = frontier_point(drawn, stats, results.rewards, confidence=confidence)
            if results.won is not None:
                entry["samples"] |= win_rate(
                    results.won, rows, results.against, confidence=confidence
                )
            entry["samples"]["diversity"] = diversity(
                [s.prompt for s in drawn],
                [s.text for s in drawn],
                [x.entropy for x in stats],
                [x.tokens for x in stats],
            )
        return entry

    def sample_lines(self, target: Target, results: PolicyResults) -> Iterator[dict[str, Any]]:
        """A policy's lines of samples.jsonl."""
        rewards, won = results.rewards, results.won
        for place, row in enumerate(results.samples):
            prompt = self.eval_data.prompts[row["prompt"]]
            yield {
                "prompt_id": prompt.id,
                "index": row["index"],
                "prompt": prompt.text,
                "policy": target.label,
                "checkpoint": target.checkpoint,
                "response": row["text"],
                "reward": None if rewards is None else rewards[place],
                "won": None if won is None else won[place],
                **{name: row[name] for name in ("kl", "forward_kl", "entropy", "tokens")},
                "finished": row["finished"],
            }

    def pair_lines(self, target: Target, results: PolicyResults) -> Iterator[dict[str, Any]]:
        """A policy's lines of pairs.jsonl."""
        if not results.pairs:
            return
        for row, prompt in zip(results.pairs, self.eval_data.prompt_ids, strict=True):
            yield {
                "policy": target.label,
                "checkpoint": target.checkpoint,
                "prompt_id": prompt,
                **row,
            }


def _reference_target(target: Target, n: int) -> Target | None:
    if target.reference is None:
        return None
    return Target(
        name="reference" if n == 0 else f"reference {n + 1}",
        label="reference",
        run=None,
        checkpoint=None,
        folder=None,
        model=target.model,
        loss=None,
        token_weights=None,
        reference=target.reference,
    )


def _depends_on(recipe: EvalRecipe, target: Target, eval_data: EvalData) -> dict[str, Any]:
    """Everything that depends on: a policy's judgement of the pairs, and its samples."""
    model = target.model
    return {
        "recipe": recipe.model_dump(mode="json", include={"seed", "preference", "sampling"}),
        "eval_data": eval_data.digest,
        "base": weights_identity(model.path, model.revision),
        "model": [model.dtype, model.attn_implementation, str(model.chat_template)],
        "weights": None if target.folder is None else weights_identity(target.folder),
        "reference": None if target.reference is None else weights_identity(target.reference),
        "is_reference": target.label == "reference",
        "loss": None if target.loss is None else target.loss.model_dump(mode="json"),
        "token_weights": None
        if target.token_weights is None
        else target.token_weights.model_dump(mode="json"),
    }


def _in_order(entries: Sequence[dict[str, Any]], targets: Sequence[Target]) -> list[dict[str, Any]]:
    order = [target.name for target in targets]
    return sorted(entries, key=lambda entry: order.index(entry["name"]))
