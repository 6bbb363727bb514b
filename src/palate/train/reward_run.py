"""`palate reward`: from a recipe to a trained reward model in a run folder."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, set_seed

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.items import Item
from palate.data.layouts import Layout
from palate.errors import DataError, RunError
from palate.models.features import FeatureTable
from palate.models.limits import padding_id
from palate.models.loading import load_tokenizer, weights_digest
from palate.models.model import Ask, Model, evaluating
from palate.models.reward import build_reward_model
from palate.models.reward_config import Scale
from palate.models.reward_tokens import classifier_template, padding_token
from palate.models.verdicts import kept_start_check
from palate.recipes.reward import RewardRecipe
from palate.store.folder import RunFolder
from palate.store.records import Data, Evaluation
from palate.train.callbacks import LINE_SECONDS
from palate.train.distributed import is_sharded
from palate.train.fit import fit, save_final_model
from palate.train.loop import Job, Loop
from palate.train.objectives.reward import (
    RewardObjective,
    check_labels,
    comparisons,
    label_counts,
)
from palate.train.preflight import check_fits, choose_layout, save_memory
from palate.train.run import RunResult, Start, TrainingRun, in_background
from palate.train.shortcut import with_shortcut_weights
from palate.train.sources.offline import Collate


def reward(recipe: RewardRecipe, *, quiet: bool = False) -> RunResult:
    """Trains a scalar reward model and fills `recipe.output_dir`; otherwise as `palate.tune`."""
    return RewardRun(recipe, quiet=quiet).execute()


class RewardRun(TrainingRun):
    """A reward model on pairs or ranked lists."""

    recipe: RewardRecipe
    verb = "reward"
    _shown = 0.0

    def fill(self, folder: RunFolder) -> None:
        start = self.start(folder)
        job, model = start.job, start.job.model
        loop = fit(job, self.recipe, self.console)
        scale, scales = self._scales(job, start.data.train)
        model.spec = dataclasses.replace(model.spec, scale=scale, scales=scales)
        self._save(loop, start.encoder.tokens.tokenizer, start.encoder)
        if job.eval and (evaluation := self._evaluation(loop, start)) is not None:
            folder.write(Evaluation.of(evaluation))

    def start(self, folder: RunFolder) -> Start:
        set_seed(self.recipe.seed)
        model = build_reward_model(self.recipe)
        model.to(self.state.device)
        base_digest = in_background(partial(weights_digest, model.hf))
        tokenizer = load_tokenizer(self.recipe.model)
        pictures = self.pictures(model, tokenizer)
        kept_start_check(model, beside=self.recipe.output_dir)
        objective = RewardObjective(
            self.recipe.loss,
            self.recipe.regularise,
            ensemble=self.recipe.ensemble,
            seed=self.recipe.seed,
        )
        encoder = Encoder(
            tokenizer, self.recipe.model.chat_template, self.recipe.data.length, pictures
        )
        with self.state.main_process_first():
            data = build(
                self.recipe.data,
                encoder,
                kind=objective.kind,
                seed=self.recipe.seed,
                ties=True,
            )
        if self.recipe.shortcut is not None:
            data = with_shortcut_weights(data, self.recipe.shortcut)
        for split, items in (("train", data.train), ("eval", data.eval)):
            if items:
                data.report[split]["labels"] = label_counts(items)
        folder.write(Data.of(data.report))
        folder.write_quarantine(data.quarantine)
        check_labels(self.recipe.loss, data.train)
        check_fits(model, self.recipe.model.path, [*data.train, *data.eval], encoder)
        objective.by_source = len({item.source for item in (*data.train, *data.eval)}) > 1
        model.spec = dataclasses.replace(
            model.spec,
            forms=tuple(
                sorted({"chat" if row.conversational else "text" for row in data.train_rows})
            ),
            end_tokens=end_tokens([*data.train, *data.eval], encoder),
            template_sha256=encoder.template_sha256,
        )
        digest = model.base_digest = base_digest.result()
        job = self._job(folder, encoder, model, objective, data, digest)
        if self.recipe.train.gradient_checkpointing:
            save_memory(model)
        return Start(job, encoder, data)

    def _job(
        self,
        folder: RunFolder,
        encoder: Encoder,
        model: Model,
        objective: RewardObjective,
        data: Dataset,
        digest: str,
    ) -> Job:
        recipe = self.recipe
        pad_id = padding_id(encoder.tokens.tokenizer, model.base)
        collated: Collate
        layout: Layout
        note: dict[str, Any]
        if recipe.backbone == "frozen":
            layout, note = "plain", {"used": "plain", "check": None, "reason": "cached features"}
            self.keep_image_features(model, data, layout)
            collated = self._features(model, data, digest, pad_id).collate
        else:
            layout, note = choose_layout(
                recipe.train.layout,
                model,
                items=[*data.train, *data.eval],
                beside=recipe.output_dir,
            )
            self.keep_image_features(model, data, layout)
            self.share_blank(model)
            collated = model.collator(layout, pad_id=pad_id, keep_last=True)
        return self.job(
            folder,
            encoder,
            model,
            objective,
            data,
            digest=digest,
            layout=layout,
            note=note,
            pad_id=pad_id,
            collated=collated,
        )

    def _features(self, model: Model, data: Dataset, digest: str, pad_id: int) -> FeatureTable:
        table = FeatureTable(
            model,
            self.prepared(model, data, "plain"),
            digest=digest,
            root=self.recipe.features_dir or self.recipe.output_dir.parent / "features",
            pad_id=pad_id,
            batch_size=2 * self.recipe.train.eval_batch_size_pairs,
        )
        shown = self._progress if self.main else None
        table.fill(rank=self.rank, world_size=self.world, progress=shown)
        self.state.wait_for_everyone()
        table.index()
        return table

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._shown >= LINE_SECONDS:
            self._shown = now
            line = f"features: {done}/{total} responses"
            self.console.print(line, highlight=False, soft_wrap=True)

    def _scales(self, job: Job, items: Sequence[Item]) -> tuple[Scale, tuple[Scale, ...]]:
        """Mean and deviation of the rewards of training items drawn with the run's seed, and of
        each head's, where there are several."""
        order = list(range(len(items)))
        random.Random(f"{self.recipe.seed}|scale").shuffle(order)
        chosen = sorted(order[: self.recipe.normalise_on_items])
        scored = self._scored(job, [items[i] for i in chosen])
        heads = [values for item in scored for values in item["heads"]]
        return (
            _scale([r for item in scored for r in item["rewards"]]),
            tuple(_scale(values) for values in zip(*heads, strict=True)),
        )

    def _scored(
        self, job: Job, items: Sequence[Any], collate: Collate | None = None
    ) -> list[dict[str, Any]]:
        """Rewards and comparisons of items, in any order; the same on every process.

        Args:
            collate: lays them out; default: as the run's own.

        Raises:
            RunError: rewards that are not finite.
        """
        model, size = job.model, self.recipe.train.eval_batch_size_pairs
        shared = is_sharded(model)
        share = items if shared else items[self.rank :: self.world]
        share = sorted(share, key=lambda item: -len(item.prompts[0]))
        scored: list[dict[str, Any]] = []
        with evaluating(model):
            for start in range(0, len(share), size):
                chunk = share[start : start + size]
                batch = (collate or job.collate)(chunk).to(model.device)
                with torch.no_grad():
                    output = model(batch, Ask(heads=("reward",)))
                rewards, heads = output.sequence_rewards, output.by_head
                if not bool(rewards.isfinite().all()):
                    raise RunError(
                        f"{job.folder.path}: the trained model's rewards are not finite; lower "
                        "train.learning_rate, or look at the last lines of metrics.jsonl"
                    )
                margins, of = comparisons(rewards.double(), batch)
                each = [] if heads is None else heads.double().unbind(-1)
                by_head = [comparisons(head, batch)[0] for head in each]
                lengths = comparisons(batch.lengths.double(), batch)[0]
                for i, item in enumerate(chunk):
                    responses = batch.item == i
                    scored.append(
                        {
                            "id": item.id,
                            "index": item.index,
                            "source": item.source,
                            "prompt": item.prompts[0],
                            "rewards": rewards[responses].tolist(),
                            "heads": [] if heads is None else heads[responses].tolist(),
                            "margins": margins[of == i].tolist(),
                            "longer": lengths[of == i].tolist(),
                            "head_margins": [head[of == i].tolist() for head in by_head],
                        }
                    )
        return scored if shared else list(gather_object(scored))

    def _look(
        self, job: Job, start: Start, scored: Sequence[dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Whether the model looks at the images of held-out pairs; None where there are none."""
        from palate.evaluate.held_out_look import HeldOutLook

        looked = HeldOutLook.of(start.data.eval_rows, start.encoder, self.recipe.seed)
        if looked is None:
            return None
        # Changed pairs are in no cache.
        collate = job.model.collator(job.layout, pad_id=job.pad_id, keep_last=True)

        def margins(items: Sequence[Item]) -> list[float]:
            numbered = [dataclasses.replace(item, index=i) for i, item in enumerate(items)]
            return _margins(self._scored(job, numbered, collate))

        return looked.measure(_margins(scored), margins)

    def _evaluation(self, loop: Loop, start: Start) -> dict[str, Any] | None:
        """The content of evaluation.json: accuracy, margin and the length baseline by source.

        None where held-out items are all ties: there is nothing to be right about.
        """
        # Its statistics take a second to import, which no run should wait for at its start.
        from palate.train.reward_summary import CONFIDENCE, held_out, of_heads

        job = loop.job
        scored = self._scored(job, job.eval)
        preference = held_out(scored)
        if not preference:
            self.console.print("held-out data has ties alone: no accuracy", highlight=False)
            return None
        rewards = [r for item in scored for r in item["rewards"]]
        name = job.folder.path.name
        entry: dict[str, Any] = {
            "name": name,
            "label": name,
            "checkpoint": loop.step,
            "run": str(job.folder.path),
            "loss": self.recipe.loss.type,
            "beta": None,
            "preference": preference,
            "rewards": {
                "mean": statistics.fmean(rewards),
                "deviation": statistics.pstdev(rewards),
                "min": min(rewards),
                "max": max(rewards),
            },
        }
        if self.recipe.ensemble is not None:
            entry["heads"] = of_heads(scored)
        if (look := self._look(job, start, scored)) is not None:
            entry["look"] = look
        return {
            "kind": "evaluation",
            "confidence": CONFIDENCE,
            "policies": [entry],
            "reference": None,
        }

    def _save(self, loop: Loop, tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> None:
        model = loop.job.model
        ends = model.spec.end_tokens
        # None where the tokenizer has no token but those: then batches are refused, not misread.
        tokenizer.pad_token = padding_token(tokenizer, set(ends), vocabulary=model.vocabulary)
        tokenizer.padding_side = "right"
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        closes = "chat" in model.spec.forms and encoder.template.closes_turns
        closing = [text for i, text in ends.items() if i != encoder.tokens.eos]
        closing = closing or list(ends.values())
        tokenizer.chat_template = classifier_template(
            encoder.saved_template,
            closes=closes,
            end=closing[0] if len(closing) == 1 else None,
        )
        save_final_model(loop, tokenizer)


def _margins(scored: Sequence[dict[str, Any]]) -> list[float]:
    """Of pairs the first reward less the second, in the order of their places."""
    ordered = sorted(scored, key=lambda item: item["index"])
    return [item["rewards"][0] - item["rewards"][-1] for item in ordered]


def _scale(rewards: Sequence[float]) -> Scale:
    return Scale(
        mean=statistics.fmean(rewards), deviation=statistics.pstdev(rewards), n=len(rewards)
    )


def end_tokens(items: Sequence[Item], encoder: Encoder) -> dict[int, str]:
    """The tokens that responses end with: one of a chat template, one of plain text.

    Raises:
        DataError: a response that ends with an ordinary token, where no reward can be read.
    """
    ends = {response.ids[-1] for item in items for response in item.responses}
    special = encoder.tokens.special
    if odd := sorted(ends - special.keys()):
        text = encoder.decode(odd[:1])
        raise DataError(f"a response does not end with an end token but with {text!r}")
    return {i: special[i] for i in sorted(ends)}
