"""Models, templates and layouts, each tried as a run would use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.doctor.check import Check, State
from palate.errors import PalateError
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import ModelRecipe


def model_checks(recipe: ModelRecipe, *, layout: str) -> Iterator[Check]:
    from palate.models.loading import load_policy, load_tokenizer

    if isinstance(recipe.chat_template, Path) and not recipe.chat_template.is_file():
        yield Check("template", "problem", f"no file {recipe.chat_template}")
        return
    try:
        tokenizer = load_tokenizer(recipe)
        yield template_check(recipe, tokenizer)
        policy = load_policy(recipe)
    except PalateError as error:
        yield Check("model", "problem", str(error))
        return
    total = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    text = f"{recipe.path}: {total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M trained"
    yield Check("model", "ok", f"{text}, {recipe.dtype}")
    if layout != "plain":
        yield _layout(policy, layout)


def _layout(policy: Any, layout: str) -> Check:
    from palate.models.check import layout_check

    check = layout_check(policy)
    if check.ok:
        text = f"shared prefix agrees with plain to {check.max_abs_difference:.2g} nats"
        return Check("layout", "ok", text)
    if layout == "shared":
        return Check("layout", "problem", f"shared does not hold here: {check.reason}")
    return Check("layout", "note", f"runs plain: {check.reason}")


def template_check(recipe: ModelRecipe, tokenizer: Any) -> Check:
    """Whether there is a chat template, and a prompt is a prefix of its full chat."""
    if recipe.chat_template == "plain":
        return Check("template", "ok", "plain")
    template = None
    if isinstance(recipe.chat_template, Path):
        template = recipe.chat_template.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        text = "none: conversational data needs `model.chat_template: plain` or a Jinja file"
        return Check("template", "note", text)
    question = [{"role": "user", "content": "Which colour has the sky?"}]
    answer = [{"role": "assistant", "content": "Blue."}]
    try:
        prompt = tokenizer.apply_chat_template(
            question, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        full = tokenizer.apply_chat_template(
            question + answer, chat_template=template, tokenize=False
        )
    except Exception as error:  # templates are programs: they raise what they like
        reason = " ".join(str(error).split())
        return Check("template", "problem", f"the template fails: {reason}")
    if not full.startswith(prompt):
        text = (
            "a prompt is no prefix of its full chat: `model.chat_template: plain` or a Jinja file"
        )
        return Check("template", "problem", text)
    return Check("template", "ok", "present, prompts are prefixes of full chats")


def reward_model_checks(recipe: RewardRecipe) -> Iterator[Check]:
    from palate.models.check import reward_layout_check
    from palate.models.loading import load_tokenizer
    from palate.models.reward import build_reward_model

    try:
        yield template_check(recipe.model, load_tokenizer(recipe.model))
        model = build_reward_model(recipe)
    except PalateError as error:
        yield Check("model", "problem", str(error))
        return
    total = sum(parameter.numel() for parameter in model.parameters())
    text = f"{recipe.model.path}: {total / 1e6:,.1f} M parameters, "
    text += f"{model.n_trainable / 1e6:,.1f} M trained, {recipe.model.dtype}"
    yield Check("model", "ok", text)
    layout = recipe.train.layout
    if recipe.backbone == "frozen" or layout == "plain":
        return
    check = reward_layout_check(model)
    if check.ok:
        text = f"agrees with plain to {check.max_abs_difference:.2g}"
        yield Check("layout", "ok", text)
    else:
        state: State = "note" if layout == "auto" else "problem"
        yield Check("layout", state, f"does not hold here: {check.reason}")
