"""Models, templates and layouts, each tried as a run would use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.data.templates import ChatTemplate
from palate.doctor.check import Check
from palate.errors import ModelError, PalateError
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import LengthRecipe, ModelRecipe

if TYPE_CHECKING:
    from palate.models.model import Model


def model_checks(
    recipe: ModelRecipe,
    *,
    layout: str,
    length: LengthRecipe | None = None,
    beside: Path | None = None,
) -> Iterator[Check]:
    """What would stop a run of a policy, or make it run plain.

    Args:
        length: limits of the run's rows; None where there are none.
        beside: the run folder; verdicts on models are kept beside it.
    """
    from palate.models.loading import load_policy, load_tokenizer
    from palate.models.verdicts import kept_start_check

    if isinstance(recipe.chat_template, Path) and not recipe.chat_template.is_file():
        yield Check("template", "problem", f"no file {recipe.chat_template}")
        return
    try:
        tokenizer = load_tokenizer(recipe)
        yield template_check(recipe, tokenizer)
        policy = load_policy(recipe)
        kept_start_check(policy, beside=beside)
    except PalateError as error:
        yield Check("model", "problem", str(error))
        return
    yield _size(recipe, policy)
    if layout != "plain":
        yield _layout(policy, length, beside)


def _size(recipe: ModelRecipe, model: Model) -> Check:
    total = sum(parameter.numel() for parameter in model.parameters())
    text = f"{recipe.path}: {total / 1e6:,.1f} M parameters, {model.n_trainable / 1e6:,.1f} M "
    return Check("model", "ok", f"{text}trained, {recipe.dtype}")


def _layout(model: Model, length: LengthRecipe | None, beside: Path | None) -> Check:
    """In the words of the run itself, which then runs plain, too."""
    from palate.models.verdicts import kept_layout_check

    longest = None
    if length is not None:
        longest = length.max_prompt_tokens + length.max_response_tokens
        longest = min(longest, length.max_tokens or longest)
    check = kept_layout_check(model, longest=longest, beside=beside)
    if check.ok:
        return Check("layout", "ok", check.words)
    return Check("layout", "note", f"the layout is plain: {check.words}")


def template_check(recipe: ModelRecipe, tokenizer: Any) -> Check:
    """Whether there is a chat template, and a prompt is a prefix of its full chat."""
    if recipe.chat_template == "plain":
        return Check("template", "ok", "plain")
    if recipe.chat_template == "model" and not tokenizer.chat_template:
        text = "none: conversational data needs `model.chat_template: plain` or a Jinja file"
        return Check("template", "note", text)
    try:
        template = ChatTemplate(tokenizer, recipe.chat_template)
        template.check()
    except ModelError as error:
        return Check("template", "problem", str(error))
    clock = "" if template.date is None else f"; the day that it is told is {template.date}"
    return Check("template", "ok", f"present, prompts are prefixes of full chats{clock}")


def reward_model_checks(recipe: RewardRecipe) -> Iterator[Check]:
    from palate.models.loading import load_tokenizer
    from palate.models.reward import build_reward_model
    from palate.models.verdicts import kept_start_check

    try:
        yield template_check(recipe.model, load_tokenizer(recipe.model))
        model = build_reward_model(recipe)
        kept_start_check(model, beside=recipe.output_dir)
    except PalateError as error:
        yield Check("model", "problem", str(error))
        return
    yield _size(recipe.model, model)
    if recipe.backbone != "frozen" and recipe.train.layout != "plain":
        yield _layout(model, recipe.data.length, recipe.output_dir)
