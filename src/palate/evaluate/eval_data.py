"""What policies are evaluated on: held-out pairs, and prompts drawn from them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.items import Item, Tokens, sequence_key
from palate.data.prompts import prompts_digest, read_prompts
from palate.data.schema import Content
from palate.errors import RecipeError, RunError
from palate.evaluate.held_out_look import HeldOutLook
from palate.evaluate.targets import TrainedRun
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.prompts import PromptsRecipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DataRecipe, LengthRecipe
from palate.rewards import make_scorer

P = TypeVar("P")
Part = Literal["whole", "held out"]
"""Evaluate on everything that is read, or on the part that a run has held out of it."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt to sample from.

    Attributes:
        id: of the first pair that has it. text: as people read it. content: as scorers take it.
        columns: of its row, for scorers that read them.
    """

    id: str
    text: str
    content: Content
    tokens: Tokens
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """Encoded evaluation data of one tokenizer.

    Attributes:
        prompt_ids: of each pair the id of its prompt, of which pairs may share one.
        report: content of data.json. quarantine: lines of quarantine.jsonl.
        digest: changes with any token of pairs and prompts, and with lengths as written.
        look: pairs with images, to be asked about again without them; None where there are none.
    """

    pairs: list[Item]
    prompt_ids: list[str]
    prompts: list[Prompt]
    report: dict[str, Any]
    quarantine: list[dict[str, Any]]
    digest: str
    look: HeldOutLook | None = None


def check_data_keys(recipe: EvalRecipe) -> None:
    """Raises RecipeError for `pairing` and `length` without `data`: runs bring their own."""
    if recipe.data or recipe.prompts:
        return
    if recipe.pairing is not None:
        raise RecipeError("`pairing`: only with `data`: the runs' evaluation data has its own")
    if recipe.length != LengthRecipe():
        raise RecipeError("`length`: only with `data`: the runs' evaluation data has its own")


def eval_length(recipe: EvalRecipe, data: DataRecipe | None) -> LengthRecipe:
    """The limits of an evaluation's prompts and responses."""
    return recipe.length if data is None else data.length


def data_recipe(
    recipe: EvalRecipe, runs: Sequence[TrainedRun]
) -> tuple[DataRecipe | None, int, Part]:
    """The pairs of an evaluation, the seed they are read with, and which part of them is meant;
    None of one on prompts alone.

    Raises:
        RunError: runs with different evaluation data, or with none, and none in the recipe.
    """
    if recipe.prompts:
        return None, recipe.seed, "whole"
    if recipe.data:
        data = DataRecipe(train=recipe.data, pairing=recipe.pairing, length=recipe.length)
        return data, recipe.seed, "whole"
    choices: list[tuple[DataRecipe, int, Part]] = []
    for run in runs:
        if isinstance(run.recipe, RlRecipe):
            raise RunError(f"{run.path}: was trained on prompts, not on pairs: give `data`")
        run_data = run.recipe.data
        if not run_data.holds_out:
            raise RunError(f"{run.path}: was trained without evaluation data: give `data`")
        if run_data.eval and run_data.pairing is None:
            # The training data need not be read. (With `pairing` it must: which source holds the
            # ratings is not known, and without one the key is refused.)
            data = DataRecipe(train=run_data.eval, pairing=run_data.pairing, length=run_data.length)
            choices.append((data, run.recipe.seed, "whole"))
        else:
            # What is made of the training pairs is not held out.
            held = run_data.model_copy(update={"image_contrast": None})
            choices.append((held, run.recipe.seed, "held out"))
    if any(item != choices[0] for item in choices):
        names = ", ".join(run.label for run in runs)
        raise RunError(f"{names} have different evaluation data: give `data` to compare them")
    return choices[0]


def build_eval_data(
    recipe: EvalRecipe, data: DataRecipe | None, seed: int, part: Part, encoder: Encoder
) -> EvalData:
    """Reads and encodes the data, and draws the prompts with the recipe's seed.

    Args:
        data: None of an evaluation on prompts alone.

    Raises:
        DataError, RecipeError, ModelError: as `palate.data.build.build`.
    """
    if data is None:
        return _of_prompts(recipe, encoder)
    dataset = build(data, encoder, kind="pair", seed=seed)
    whole = part == "whole"
    pairs = dataset.train if whole else dataset.eval
    prompts: dict[Tokens, Prompt] = {}
    rows = dataset.train_rows if whole else dataset.eval_rows
    for pair, row in zip(pairs, rows, strict=True):
        # A chat is shown as its template writes it.
        tokens = pair.prompts[0]
        text = row.prompt if isinstance(row.prompt, str) else encoder.decode(tokens.ids)
        shown = Prompt(id=pair.id, text=text, content=row.prompt, tokens=tokens)
        prompts.setdefault(tokens, shown)
    drawn = _drawn(recipe, list(prompts.values()))
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.written}|".encode())
        for sequence in pair.sequences:
            digest.update(f"{pair.source}|".encode())
            digest.update(sequence_key(*sequence).encode())
    for prompt in drawn:
        digest.update(sequence_key(prompt.tokens, Tokens(())).encode())
    report = dataset.report
    if whole:
        # What is read here is evaluated on, whatever part of a recipe it stands in.
        sources = [source | {"split_role": "eval"} for source in report["sources"]]
        report = report | {"sources": sources, "train": None, "eval": report["train"]}
    return EvalData(
        pairs=pairs,
        prompt_ids=[prompts[pair.prompts[0]].id for pair in pairs],
        prompts=drawn,
        report=report,
        quarantine=dataset.quarantine,
        digest=digest.hexdigest(),
        look=HeldOutLook.of(rows, encoder, recipe.seed) if recipe.preference else None,
    )


def _drawn(recipe: EvalRecipe, prompts: Sequence[P]) -> list[P]:
    """Those that are sampled, in order."""
    if recipe.sampling is None:
        return []
    n = min(recipe.sampling.prompts, len(prompts))
    chosen = sorted(random.Random(recipe.seed).sample(range(len(prompts)), n))
    return [prompts[i] for i in chosen]


def _of_prompts(recipe: EvalRecipe, encoder: Encoder) -> EvalData:
    """An evaluation without pairs."""
    asked = read_prompts(
        PromptsRecipe(train=recipe.prompts), encoder, seed=recipe.seed, make_scorer=make_scorer
    )
    drawn = _drawn(recipe, asked.train)
    prompts = [
        Prompt(
            id=prompt.id,
            text=prompt.content
            if isinstance(prompt.content, str)
            else encoder.decode(prompt.tokens.ids),
            content=prompt.content,
            tokens=prompt.tokens,
            columns=prompt.columns,
        )
        for prompt in drawn
    ]
    sources = [source | {"split_role": "eval"} for source in asked.report["sources"]]
    report = asked.report | {"sources": sources, "train": None, "eval": asked.report["train"]}
    return EvalData(
        pairs=[],
        prompt_ids=[],
        prompts=prompts,
        report=report,
        quarantine=asked.quarantine,
        digest=prompts_digest(drawn),
    )
