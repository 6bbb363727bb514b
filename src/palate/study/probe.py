"""Trial of an evaluation, in the process that makes it: a batch of everything, by the clock."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from palate.errors import in_one_line
from palate.memory import kept_memory, peak_bytes
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.load import check_recipe
from palate.recipes.losses import Loss
from palate.recipes.schema import ModelRecipe
from palate.store.files import write_json


def measure(recipe: EvalRecipe, model: ModelRecipe, loss: Loss | None = None) -> dict[str, float]:
    """Seconds and peak memory of evaluating one policy, with its base model in its place.

    The reference's own samples, which evaluations of one base share, are told apart.

    Args:
        model: of the policy's recipe, with its adapters.
        loss: that it was trained with: rewards of some need the KL to the reference.
    """
    from palate.data.encode import Encoder
    from palate.evaluate.eval_data import build_eval_data, data_recipe, eval_length
    from palate.evaluate.frontier import sample_stats
    from palate.evaluate.preference import score_pairs
    from palate.evaluate.run import PAIRS_PER_BATCH, STATS_PER_BATCH
    from palate.evaluate.sample import sample
    from palate.models.loading import load_policy, load_tokenizer
    from palate.models.pictures import pictures_of
    from palate.models.reference import build_live_reference
    from palate.models.verdicts import exact_layout
    from palate.recipes.schema import ReferenceRecipe

    clock = time.perf_counter
    with kept_memory():
        begun = clock()
        tokenizer = load_tokenizer(model)
        data, seed, part = data_recipe(recipe, [])
        pictures = pictures_of(model, tokenizer)
        encoder = Encoder(tokenizer, model.chat_template, eval_length(recipe, data), pictures)
        eval_data = build_eval_data(recipe, data, seed, part, encoder)
        policy = load_policy(model).requires_grad_(False)
        policy.pictures = pictures
        layout = exact_layout(policy)
        reference = build_live_reference(ReferenceRecipe(), model, policy)
        fixed = clock() - begun
        seconds = of_reference = 0.0
        if recipe.preference and eval_data.pairs:
            # Batches go by length: every n-th pair stands for all.
            order = sorted(eval_data.pairs, key=lambda item: -item.n_tokens)
            few = order[:: max(1, len(order) // (2 * PAIRS_PER_BATCH))]
            score_pairs(policy, few[:1], loss=loss, reference=reference, layout=layout)
            begun = clock()
            score_pairs(
                policy,
                few,
                loss=loss,
                reference=reference,
                layout=layout,
                batch_size=PAIRS_PER_BATCH,
            )
            tokens = sum(item.n_tokens for item in few)
            seconds += (clock() - begun) * sum(i.n_tokens for i in eval_data.pairs) / tokens
        if (drawing := recipe.sampling) is not None and eval_data.prompts:
            asked = len(eval_data.prompts) * drawing.samples_per_prompt
            prompts = [p.tokens for p in eval_data.prompts][: drawing.batch_size]
            begun = clock()
            drawn = sample(
                policy,
                tokenizer,
                prompts,
                max_new_tokens=drawing.max_new_tokens,
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                batch_size=drawing.batch_size,
            )
            sampling = (clock() - begun) * math.ceil(asked / drawing.batch_size)
            if len(prompts) == drawing.batch_size:
                sampling *= asked / drawing.batch_size / math.ceil(asked / drawing.batch_size)
            begun = clock()
            sample_stats(
                policy,
                drawn[:STATS_PER_BATCH],
                prompts=prompts,
                reference=reference,
                batch_size=STATS_PER_BATCH,
                layout=layout,
            )
            sampling += (clock() - begun) * asked / len(drawn[:STATS_PER_BATCH])
            contents = [p.content for p in eval_data.prompts][: drawing.batch_size]
            texts = [sampled.text for sampled in drawn]
            sampling += _scoring_seconds(recipe, contents, texts) * asked / len(texts)
            seconds += sampling
            of_reference = sampling
    return {
        "fixed": fixed,
        "seconds": seconds,
        "of_reference": of_reference,
        "memory_bytes": peak_bytes(),
    }


def _scoring_seconds(recipe: EvalRecipe, prompts: list[Any], texts: list[str]) -> float:
    """Of the rewards of these samples, and of the verdicts on each beside another."""
    from palate.data.scorer import Group, ask
    from palate.rewards import make_scorer

    seconds = 0.0
    for scorer, several in ((recipe.reward, 1), (recipe.judge, 2)):
        if scorer is not None:
            made = make_scorer(scorer, seed=recipe.seed)
            groups = [Group(p, (text,) * several) for p, text in zip(prompts, texts, strict=True)]
            ask(made, groups[:1])  # loads what it loads
            begun = time.perf_counter()
            ask(made, groups)
            seconds += time.perf_counter() - begun
    return seconds


def main() -> None:
    """The process that makes the trial; its arguments: file of both recipes, file of the answer."""
    file, answer = map(Path, sys.argv[1:])
    given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    try:
        recipe = check_recipe(EvalRecipe, given["eval"], str(file))
        model = check_recipe(ModelRecipe, given["model"], str(file))
        loss = None if given["loss"] is None else TypeAdapter(Loss).validate_python(given["loss"])
        document: dict[str, Any] = measure(recipe, model, loss)
    except Exception as error:
        document = {"error": in_one_line(error, 200)}
    write_json(answer, document)
