"""`palate eval`: policies on held-out pairs and on their own samples, into a run folder."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from palate.data.encode import Encoder
from palate.data.layouts import Layout
from palate.data.scorer import Group, Scorer, ask
from palate.evaluate.diversity import diversity
from palate.evaluate.eval_data import EvalData, build_eval_data, check_data_keys, data_recipe
from palate.evaluate.frontier import frontier_point, sample_stats
from palate.evaluate.loading import PolicyLoader, grouped
from palate.evaluate.preference import evaluate_pairs
from palate.evaluate.progress import task
from palate.evaluate.sample import sample
from palate.evaluate.targets import Target, find_targets, trained_runs
from palate.memory import kept_memory
from palate.models.loading import load_tokenizer
from palate.models.model import Model
from palate.models.reference import Reference
from palate.recipes.evaluation import EvalRecipe
from palate.rewards import make_scorer
from palate.rewards.identity import identities, key_of, weights_identity
from palate.rewards.names import name_of
from palate.store.digests import sha256_json
from palate.store.folder import RunFolder
from palate.store.lineage import lineage, model_entry
from palate.store.records import Data, Evaluation
from palate.store.stages import Result, Results, Stage, run_stages

VERSION = 4
"""Of the results: raised whenever the same inputs would give others."""
PAIRS_PER_BATCH = 8
STATS_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Where an evaluation is, and the content of its evaluation.json."""

    path: Path
    evaluation: dict[str, Any]


def evaluate(recipe: EvalRecipe, *, console: Console | None = None) -> EvalResult:
    """Evaluates the policies of a recipe; with `resume`, only those without a result.

    Writes evaluation.json, samples.jsonl, data.json, recipe.yaml, lineage.json, status.json and
    report.html. Results of a policy are kept under a key of everything they depend on (weights,
    reference, data, sampling, reward), so a resumed or extended evaluation computes nothing twice.

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
    reward = None if recipe.reward is None else make_scorer(recipe.reward, seed=recipe.seed)
    with RunFolder.open(recipe) as folder, kept_memory():
        results: dict[str, Result] = {}
        references: list[Result] = []
        sources: list[dict[str, Any]] = []
        for group in grouped(targets):
            model = group[0].model
            tokenizer = load_tokenizer(model)
            encoder = Encoder(tokenizer, model.chat_template, data.length)
            eval_data = build_eval_data(recipe, data, seed, part, encoder)
            folder.write(Data.of(eval_data.report))
            folder.write_quarantine(eval_data.quarantine)
            sources = eval_data.report["sources"]
            loader = PolicyLoader(model, group[0].reference)
            context = EvaluationContext(recipe, eval_data, tokenizer, reward, console)
            shown = _reference_target(group[0], len(references)) if recipe.sampling else None
            measured = [*([shown] if shown else []), *group]
            stages = {target.name: context.stage(target, loader) for target in measured}
            # Two targets may be the same weights.
            once = {stage.name: stage for stage in stages.values()}
            records = run_stages(list(once.values()), folder.path, console=console)
            given = {name: records[stage.name].result for name, stage in stages.items()}
            references += [given.pop(shown.name)] if shown else []
            results |= given
            folder.models.append(
                model_entry(model, loader.digest) | {"reference": group[0].reference}
            )
        if recipe.reward is not None:
            folder.models.append(
                {"role": "reward", "name": name_of(recipe.reward), "type": recipe.reward.type}
                | {"weights": identities(recipe.reward)}
            )
        document = evaluation_document(
            [_named(t, results[t.name]) for t in targets],
            confidence=recipe.confidence,
            reference=references[0]["entry"] if references else None,
        )
        # Further references, of runs on other base models, are policies like the rest.
        document["policies"] += [r["entry"] for r in references[1:]]
        rows = [row for r in references for row in r["samples"]]
        rows += [row for t in targets for row in _renamed(t, results[t.name]["samples"])]
        folder.write_lines("samples.jsonl", rows)
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


@dataclass(frozen=True)
class EvaluationContext:
    """What all policies of one base model share in an evaluation."""

    recipe: EvalRecipe
    eval_data: EvalData
    tokenizer: Any
    reward: Scorer | None
    console: Console

    def stage(self, target: Target, loader: PolicyLoader) -> Stage:
        """The measurement of a policy, found again by its content."""

        def run(_: Path, results: Results) -> Result:
            if target.label == "reference":
                reference = loader.reference()
                assert reference is not None
                return self.measure(target, reference.policy, reference, loader.layout)
            layout = loader.layout
            # Adapters come off the base model here, also where measuring them fails.
            with closing(loader.policies([target])) as policies:
                (result,) = [self.measure(*loaded, layout) for loaded in policies]
            return result

        depends_on = _depends_on(self.recipe, target, self.eval_data)
        return Stage(
            name=sha256_json(depends_on)[:24],
            title=f"evaluating {target.name}",
            inputs=depends_on,
            version=VERSION,
            run=run,
        )

    def measure(
        self, target: Target, policy: Model, reference: Reference | None, layout: Layout
    ) -> dict[str, Any]:
        entry = target.entry()
        samples: list[dict[str, Any]] = []
        # The reference's implicit rewards are all 0.
        if self.recipe.preference and target.label != "reference":
            with task("  pairs", len(self.eval_data.pairs), self.console) as progress:
                entry["preference"] = evaluate_pairs(
                    policy,
                    self.eval_data.pairs,
                    loss=target.loss,
                    reference=reference,
                    token_weights=target.token_weights,
                    confidence=self.recipe.confidence,
                    batch_size=PAIRS_PER_BATCH,
                    layout=layout,
                    progress=progress,
                )
        if self.recipe.sampling is not None:
            entry["samples"], samples = self._samples(target, policy, reference, layout)
        return {"entry": entry, "samples": samples}

    def _samples(
        self, target: Target, policy: Model, reference: Reference | None, layout: Layout
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        s = self.recipe.sampling
        assert s is not None
        prompts = self.eval_data.prompts
        with task("  sampling", len(prompts) * s.samples_per_prompt, self.console) as progress:
            drawn = sample(
                policy,
                self.tokenizer,
                [p.ids for p in prompts],
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
                reference=reference,
                batch_size=STATS_PER_BATCH,
                layout=layout,
                progress=progress,
            )
        rewards = None
        if self.reward is not None:
            groups = [Group(prompts[d.prompt].content, (d.text,)) for d in drawn]
            rewards = [score.value for (score,) in ask(self.reward, groups)]
        entry = frontier_point(drawn, stats, rewards, confidence=self.recipe.confidence)
        entry["diversity"] = diversity(
            [d.prompt for d in drawn],
            [d.text for d in drawn],
            [x.entropy for x in stats],
            [x.tokens for x in stats],
        )
        rows = [
            {
                "prompt_id": prompts[d.prompt].id,
                "index": d.index,
                "prompt": prompts[d.prompt].text,
                "policy": target.label,
                "checkpoint": target.checkpoint,
                "response": d.text,
                "reward": None if rewards is None else rewards[i],
                "kl": stats[i].kl,
                "forward_kl": stats[i].forward_kl,
                "entropy": stats[i].entropy,
                "tokens": stats[i].tokens,
                "finished": d.finished,
            }
            for i, d in enumerate(drawn)
        ]
        return entry, rows


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
    """Everything a policy's results depend on."""
    model = target.model
    return {
        "recipe": recipe.model_dump(
            mode="json", include={"seed", "preference", "sampling", "reward", "confidence"}
        ),
        "reward": None if recipe.reward is None else key_of(recipe.reward),
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


def _named(target: Target, result: dict[str, Any]) -> dict[str, Any]:
    # A stored result may have been made under another folder's name.
    entry: dict[str, Any] = result["entry"] | target.entry()
    return entry


def _renamed(target: Target, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"policy": target.label, "checkpoint": target.checkpoint} for row in rows]
