"""The stages as recipes of `palate sft`, `palate tune` and `palate reward`, and their models."""

from __future__ import annotations

import gc
from pathlib import Path

from palate.data.encode import Drop, Encoder
from palate.data.schema import Message, Preference, Response
from palate.errors import DataError, ModelError
from palate.models.adapters import holds_adapters
from palate.models.loading import load_tokenizer
from palate.recipes import scorers
from palate.recipes.judge import CriticKind, JudgeRecipe, PairwiseKind, PointwiseKind
from palate.recipes.reward import RewardDataRecipe, RewardLengthRecipe, RewardRecipe
from palate.recipes.schema import (
    LengthRecipe,
    ModelRecipe,
    SftDataRecipe,
    SftRecipe,
    TuneRecipe,
)
from palate.recipes.yaml import dump_yaml
from palate.rewards.questions import FIRST, SECOND, TIE, opened
from palate.store.folder import is_finished
from palate.train.judge.ask import verdict_text
from palate.train.judge.prepare import Prepared
from palate.train.merge import merge_adapters
from palate.train.reward_run import reward
from palate.train.run import sft, tune

MERGED = "merged"
ROOM_TOKENS = 64
"""What a judge or a critic wrote within its limit may, as text, be a little longer in tokens."""

NO_FILES = ("model", "plain")
"""Chat templates that are not read from a file."""

StageRecipe = SftRecipe | TuneRecipe | RewardRecipe


def stage_recipe(
    recipe: JudgeRecipe, folder: Path, files: Prepared, model: ModelRecipe, verb: str
) -> StageRecipe:
    """The recipe of a stage.

    Args:
        model: what it starts from. verb: sft, tune or reward.

    Raises:
        DataError: no question is left to train on.
    """
    if not files.train:
        dropped = files.account["train"]["dropped"]
        reasons = "; ".join(f"{reason} ({n})" for reason, n in dropped.items())
        raise DataError(f"{folder.name}: no question is left to train on: {reasons}")
    length = recipe.data.length
    sampled = verb == "reward" or (verb == "tune" and recipe.reasoning)
    limits = {
        "max_prompt_tokens": length.max_question_tokens,
        "max_response_tokens": length.max_answer_tokens + (ROOM_TOKENS if sampled else 0),
    }
    common = {
        "output_dir": folder,
        "seed": recipe.seed,
        "resume": (folder / "recipe.yaml").exists(),
        "model": model,
    }
    if verb == "reward":
        reward_part = recipe.reward
        assert reward_part is not None
        return RewardRecipe(
            **common,
            head=reward_part.head,
            pooling=reward_part.pooling,
            loss=reward_part.loss,
            regularise=reward_part.regularise,
            data=RewardDataRecipe(
                train=files.train, eval=files.eval, length=RewardLengthRecipe(**limits)
            ),
            train=reward_part.train,
        )
    # A verdict that is cut off teaches nothing.
    data = SftDataRecipe(
        train=files.train, eval=files.eval, length=LengthRecipe(**limits, response="drop")
    )
    if verb == "sft":
        assert recipe.sft is not None
        return SftRecipe(**common, data=data, train=recipe.sft)
    preference = recipe.preference
    assert preference is not None
    return TuneRecipe(
        **common,
        data=data,
        loss=preference.loss,
        reference=preference.reference,
        train=preference.train,
    )


def run_stage(recipe: StageRecipe, *, quiet: bool) -> None:
    """Trains a stage, or what is missing of it."""
    if is_finished(recipe.output_dir):
        return
    if isinstance(recipe, SftRecipe):
        sft(recipe, quiet=quiet)
    elif isinstance(recipe, TuneRecipe):
        tune(recipe, quiet=quiet)
    else:
        reward(recipe, quiet=quiet)
    gc.collect()  # models hold on to themselves in circles


def trained_model(folder: Path, started: ModelRecipe) -> ModelRecipe:
    """The language model that a stage trained, as the next one starts from it.

    Adapters are added to the weights, in `merged/` of the stage.

    Args:
        started: what the stage started from.
    """
    path = folder / "model"
    if holds_adapters(path):
        path = folder / MERGED
        if not path.exists():
            code = started.trust_remote_code
            merge_adapters(folder, path, dtype=started.dtype, trust_remote_code=code)
            gc.collect()
    # The saved tokenizer brings the template.
    update = {"path": str(path), "revision": None, "chat_template": "model"}
    return started.model_copy(update=update)


def local_chat(model: ModelRecipe, batch_size: int) -> scorers.LocalChat:
    """A model of the run as one that is asked."""
    return scorers.LocalChat(
        path=model.path,
        revision=model.revision,
        dtype=model.dtype,
        chat_template=model.chat_template,
        batch_size=batch_size,
        images=model.images,
    )


def check_template(model: ModelRecipe) -> None:
    """Refuses a model that no judge can be made of, before anything is written.

    Raises:
        ModelError: unreadable, without a chat template, or with one that training cannot use.
    """
    encoder = Encoder(load_tokenizer(model), model.chat_template)
    if encoder.template.text is None:
        raise ModelError(
            f"{model.path}: has no chat template, and a judge is asked in chats: set "
            "`model.chat_template` (plain serves any model)"
        )
    _answer(encoder, "This.")


def scorer_recipe(
    recipe: JudgeRecipe, model: ModelRecipe, reward_model: Path | None = None
) -> scorers.PairwiseJudge | scorers.PointwiseJudge | scorers.CriticScorer:
    """The trained judge as a scorer of `palate eval reward`, `palate score` and `palate serve`."""
    kind = recipe.judge
    chat = local_chat(model, recipe.ask_batch_size)
    limit = recipe.data.length.max_answer_tokens
    if isinstance(kind, CriticKind):
        assert reward_model is not None
        return scorers.CriticScorer(
            chat=chat, scorer=scorers.ModelScorer(path=str(reward_model)), max_new_tokens=limit
        )
    if isinstance(kind, PointwiseKind):
        options = [str(rating) for rating in range(1, kind.best + 1)]
    else:
        options = [FIRST, SECOND, *([TIE] if kind.ties else [])]
    sampled = kind.reasoning or not _stand_alone(model, options)
    common = {
        "chat": chat,
        "reasoning": kind.reasoning,
        "method": "sampled" if sampled else "logits",
        "max_new_tokens": limit,
        "instructions": kind.instructions,
    }
    if isinstance(kind, PairwiseKind):
        return scorers.PairwiseJudge(**common, ties=kind.ties)
    return scorers.PointwiseJudge(**common, best=kind.best)


def judge_yaml(scorer: scorers.ScorerBase) -> str:
    """The content of judge.yaml: a whole recipe of `palate serve`, half of one of `palate score`.

    Paths of files and folders in it are absolute: it can be used from any folder.
    """
    section = {"scorer": scorer.model_dump(mode="json", exclude_none=True)}
    for part in (section["scorer"].get("chat", {}), section["scorer"].get("scorer", {})):
        keys = {"path", *(["chat_template"] if part.get("chat_template") not in NO_FILES else [])}
        for key in keys & part.keys():
            if Path(part[key]).exists():
                part[key] = str(Path(part[key]).resolve())
    return (
        "# The trained judge as a scorer: `palate serve judge.yaml`, or `palate score judge.yaml`\n"
        "# with `data` and `output_dir` set. What is below `scorer:` is an entry of `models` of\n"
        "# `palate eval reward`.\n" + dump_yaml(section)
    )


def _stand_alone(model: ModelRecipe, options: list[str]) -> bool:
    """Whether a verdict's tokens are its own, so that its probability can be read behind an answer
    begun: tokenizers may join it with what stands before or after it."""
    encoder = Encoder(load_tokenizer(model), model.chat_template)
    text = _begun(encoder)
    ids = encoder.tokens.continuations([text, *(text + option for option in options)])
    begun = ids[text]
    for option in options:
        asked, taught = ids[text + option], _answer(encoder, verdict_text(option))
        if asked == begun or asked[: len(begun)] != begun or taught[: len(asked)] != asked:
            return False
    return True


def _begun(encoder: Encoder) -> str:
    """An answer begun, as the template writes it."""
    start = str(opened([])[0]["content"])
    question = [Message(role="user", content="Which?")]
    answer = [Message(role="assistant", content=verdict_text(FIRST))]
    (text,) = encoder.template.render(question, [answer]).responses
    return text[: text.find(start) + len(start)]


def _answer(encoder: Encoder, text: str) -> tuple[int, ...]:
    row = Preference(
        id="",
        source="",
        kind="demonstration",
        prompt=[Message(role="user", content="Which?")],
        responses=(Response(content=[Message(role="assistant", content=text)]),),
    )
    item = encoder.encode_row(row)
    if isinstance(item, Drop):
        raise ModelError(f"model.chat_template: cannot be used for a judge: {item.reason}")
    return item.responses[0].ids
