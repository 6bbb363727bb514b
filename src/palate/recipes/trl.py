"""TRL-shaped recipes: flat keys, mapped through `trl_table.TABLE` or refused key by key.

A recipe is TRL-shaped when it has `model_name_or_path` at the top. Keys it leaves out get TRL's
defaults where they bear on the result, so that the same file means the same run.
"""

from __future__ import annotations

import os
from typing import Any

from palate.errors import RecipeError, in_one_line
from palate.recipes.document import Document
from palate.recipes.trl_keys import MARK, TrlKeys
from palate.recipes.trl_losses import put_losses
from palate.recipes.trl_table import TABLE

OPTIMISERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "rmsprop": "rmsprop",
    "sgd": "sgd",
}
TRANSFORMERS_DEVIATION = 0.02
SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def is_trl(document: Document) -> bool:
    """Whether the recipe has TRL's flat shape."""
    return MARK in document.value


def to_native(document: Document, verb: str) -> tuple[Document, list[str]]:
    """The native recipe of a TRL-shaped one, with notes on what differs from TRL.

    Args:
        verb: tune, sft or reward.

    Raises:
        RecipeError: one line for every key that cannot be mapped: its place, why, what instead.
    """
    if verb not in ("tune", "sft", "reward"):
        raise RecipeError(
            f"{document.origin((MARK,))}: TRL-shaped recipes are for tune, sft and reward, "
            f"not {verb}"
        )
    keys = TrlKeys(document, verb)
    keys.check_keys()
    _model(keys)
    _data(keys)
    if verb == "tune":
        put_losses(keys)
    elif verb == "sft":
        _sft(keys)
    else:
        _reward(keys)
    _training(keys)
    _schedule(keys)
    _evaluation(keys)
    _checkpoints(keys)
    _direct(keys)
    return keys.finish(), keys.notes


def _model(keys: TrlKeys) -> None:
    dtype_key = "dtype" if keys.has("dtype") else "torch_dtype"
    if keys.has("dtype") and keys.has("torch_dtype"):
        keys.refuse("torch_dtype", "is the older name of dtype: give one of them")
        keys.take("torch_dtype")
    dtype = keys.take(dtype_key, "float32")
    if dtype == "auto":
        keys.refuse(dtype_key, "name the dtype: bfloat16 or float32")
    keys.put("model.dtype", dtype, dtype_key)
    if keys.take("bf16", True) is True and dtype == "float32":
        keys.note(
            "bf16",
            "TRL computes in bf16 over float32 weights; here in float32: set `dtype: bfloat16` for"
            " bf16, or `bf16: false`",
        )
    template = keys.take("chat_template_path")
    if template is not None and not str(template).endswith((".jinja", ".jinja2")):
        keys.refuse("chat_template_path", "give a Jinja file (.jinja)")
    elif template is not None:
        keys.put("model.chat_template", template, "chat_template_path")
    if dtype == "bfloat16" and not keys.source.value.get("use_peft"):
        keys.note(
            dtype_key,
            "TRL rounds every update to bfloat16; here updates add up in a float32 copy of the"
            " weights: `--set train.optimizer_precision=model` for TRL's",
        )
    _lora(keys)


def _lora(keys: TrlKeys) -> None:
    task = "SEQ_CLS" if keys.verb == "reward" else "CAUSAL_LM"
    if keys.take("lora_task_type", task) != task:
        keys.refuse("lora_task_type", f"here it is {task}")
    options = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
    if not keys.take("use_peft", False):
        for key in options:
            if keys.take(key) is not None:
                keys.refuse(key, "only with `use_peft: true`")
        return
    targets = keys.take("lora_target_modules")
    if targets is None:
        keys.refuse(
            "lora_target_modules",
            "required with use_peft: PEFT's own choice differs by architecture;"
            " write `all-linear` or a list",
        )
    keys.put("model.lora", {}, "use_peft")
    for key, path, default in (("lora_r", "r", 16), ("lora_alpha", "alpha", 32.0)):
        keys.put(f"model.lora.{path}", keys.take(key, default), key)
    dropout = keys.number("lora_dropout", 0.05)
    if keys.verb != "sft":
        if keys.has("lora_dropout") and dropout:
            keys.note("lora_dropout", "TRL switches it off with all dropout (disable_dropout): 0")
        dropout = 0.0
    keys.put("model.lora.dropout", dropout, "lora_dropout")
    if targets == ["all-linear"]:
        targets = "all-linear"
    elif isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    if targets is not None:
        keys.put("model.lora.target_modules", targets, "lora_target_modules")


def _data(keys: TrlKeys) -> None:
    mixture = keys.take("datasets")
    name = keys.take("dataset_name")
    subset = keys.take("dataset_config")
    if (mixture is None) == (name is None):
        keys.refuse("dataset_name", "give dataset_name or datasets, one of them")
        return
    keys.put("data", {}, "dataset_name" if name else "datasets")
    if name is not None:
        train = {"path": name, "split": keys.take("dataset_train_split", "train")}
        if subset is not None:
            train["subset"] = subset
        keys.put("data.train", [train], "dataset_name")
    else:
        keys.put("data.train", _mixture(keys, mixture), "datasets")
        if subset is not None:
            keys.refuse("dataset_config", "only with dataset_name; `name` in datasets does it")
        if keys.take("dataset_train_split") is not None:
            keys.refuse("dataset_train_split", "only with dataset_name; `split` in datasets does")
    _lengths(keys)


def _mixture(keys: TrlKeys, mixture: Any) -> list[dict[str, Any]]:
    if not isinstance(mixture, list) or not all(isinstance(item, dict) for item in mixture):
        keys.refuse("datasets", "expected a list of sections with path, name and split")
        return []
    names = {"path": "path", "name": "subset", "split": "split"}
    sources = []
    for item in mixture:
        for key in sorted(set(item) - set(names)):
            keys.refuse("datasets", f"{key} is not offered: give the rows' file as path")
        sources.append({"split": "train"} | {names[k]: item[k] for k in names if k in item})
    return sources


def _lengths(keys: TrlKeys) -> None:
    if "max_length" in keys.source.value and not keys.has("max_length"):
        keys.refuse("max_length", "a limit is needed: name it")
    limit = keys.take("max_length", 1024)
    if isinstance(limit, bool) or not isinstance(limit, int):
        keys.refuse("max_length", f"expected a whole number, got {in_one_line(repr(limit), 60)}")
    keys.put("data.length.max_tokens", limit, "max_length")
    if keys.verb == "reward":
        for side in ("prompt", "response"):
            keys.put(f"data.length.max_{side}_tokens", limit, "max_length")
        return
    prompt = "max_prompt_length" if keys.has("max_prompt_length") else "max_length"
    keys.put("data.length.max_prompt_tokens", keys.take(prompt, limit), prompt)
    if prompt == "max_prompt_length":
        keys.put("data.length.prompt", "keep_end", prompt)
    response = "max_completion_length" if keys.has("max_completion_length") else "max_length"
    keys.put("data.length.max_response_tokens", keys.take(response, limit), response)


def _sft(keys: TrlKeys) -> None:
    loss = keys.take("loss_type", "nll")
    if loss not in ("nll", "chunked_nll"):
        keys.refuse("loss_type", f"{loss!r} is not offered; nll")
    keys.put("train.learning_rate", keys.take("learning_rate", 2e-5), "learning_rate")
    keys.put("data.turns", "all", "assistant_only_loss")
    if keys.take("assistant_only_loss", False) is not True:
        keys.note(
            "assistant_only_loss",
            "of `messages` TRL trains on every token, users' and the template's too; here on every"
            " answer, as with `assistant_only_loss: true`",
        )
    keys.note(
        MARK,
        "TRL's SFT leaves the model's own dropout on; here it is off",
    )


def _reward(keys: TrlKeys) -> None:
    keys.put("train.learning_rate", keys.take("learning_rate", 1e-4), "learning_rate")
    # The score layer that transformers makes starts so in nearly every family.
    keys.put("head.init_deviation", TRANSFORMERS_DEVIATION, MARK)
    keys.note(
        MARK,
        "TRL takes a column `margin` where there is one; here `--set loss.margin=true` asks for it",
    )


def _training(keys: TrlKeys) -> None:
    micro = keys.number("per_device_train_batch_size", 8)
    accumulation = keys.number("gradient_accumulation_steps", 1)
    # What the launcher sets; TRL's batch too grows with the number of processes.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    total = micro * accumulation * processes
    keys.put("train.micro_batch_size_pairs", micro, "per_device_train_batch_size")
    key = "gradient_accumulation_steps"
    keys.put(
        "train.batch_size_pairs", total, key if keys.has(key) else "per_device_train_batch_size"
    )
    steps = keys.number("max_steps", -1)
    if steps > 0:
        keys.put("train.max_steps", steps, "max_steps")
    optimiser = keys.choice("optim", OPTIMISERS, "adamw_torch_fused")
    keys.put("train.optimizer", optimiser, "optim")
    report = keys.take("report_to", "none")
    names = report if isinstance(report, list) else [report]
    if "all" in names:
        keys.refuse("report_to", "name the trackers")
    keys.put("train.report_to", [name for name in names if name != "none"], "report_to")
    resume = keys.take("resume_from_checkpoint")
    if resume is True:
        keys.put("resume", True, "resume_from_checkpoint")
    elif resume not in (None, False):
        keys.refuse("resume_from_checkpoint", "a run resumes from its own last checkpoint: true")


def _schedule(keys: TrlKeys) -> None:
    name = keys.source.value.get("lr_scheduler_type")
    scheduler = keys.choice("lr_scheduler_type", SCHEDULERS, "linear")
    keys.put("train.scheduler", scheduler, "lr_scheduler_type")
    steps, ratio = keys.number("warmup_steps", 0), keys.number("warmup_ratio", 0)
    if name == "constant" and (steps or ratio):
        keys.refuse("lr_scheduler_type", "TRL's constant has no warm-up: constant_with_warmup")
    if steps:
        # Newer versions write the share of all steps in warmup_steps; steps win, as in TRL.
        kind = "warmup_fraction" if 0 < steps < 1 else "warmup_steps"
        keys.put(f"train.{kind}", steps, "warmup_steps")
        if ratio:
            keys.refuse("warmup_ratio", "give warmup_steps or warmup_ratio")
    elif ratio:
        keys.put("train.warmup_fraction", ratio, "warmup_ratio")


def _evaluation(keys: TrlKeys) -> None:
    older = keys.has("evaluation_strategy") and not keys.has("eval_strategy")
    key = "evaluation_strategy" if older else "eval_strategy"
    strategy = keys.take(key, "no")
    if strategy is False:
        strategy = "no"  # YAML 1.1 reads a bare `no` as false
    split = keys.take("test_split_size")
    steps = keys.take("eval_steps", keys.source.value.get("logging_steps") or 10)
    test = keys.take("dataset_test_split", "test")
    if strategy not in ("no", "steps", "epoch"):
        keys.refuse(key, f"{strategy!r} is not offered; no, steps or epoch (of one epoch)")
    if strategy == "no":
        for unused in ("eval_steps", "dataset_test_split", "test_split_size"):
            if keys.has(unused):
                keys.refuse(unused, "has no use without an eval_strategy")
        return
    if strategy == "epoch":
        _one_epoch(keys, key)
        if keys.has("eval_steps"):
            keys.refuse("eval_steps", "only with eval_strategy: steps")
    elif isinstance(steps, float) and steps < 1:
        keys.refuse("eval_steps", "give whole steps, not a share of them")
    else:
        keys.put("train.eval_every_steps", steps, "eval_steps")
    if split is not None:
        keys.put("data.eval_fraction", split, "test_split_size")
    elif keys.has("datasets"):
        keys.refuse(key, "datasets has no test split: give test_split_size")
    elif keys.has("dataset_name"):
        held_out = dict(keys.native.value["data"]["train"][0]) | {"split": test}
        keys.put("data.eval", [held_out], "dataset_test_split")


def _checkpoints(keys: TrlKeys) -> None:
    strategy = keys.take("save_strategy", "steps")
    steps, keep = keys.take("save_steps", 500), keys.take("save_total_limit")
    if strategy is False or strategy == "no":
        strategy = "no"
    if strategy not in ("no", "steps", "epoch"):
        keys.refuse("save_strategy", f"{strategy!r} is not offered; no, steps or epoch")
    if strategy != "steps":
        for unused in ("save_steps", "save_total_limit"):
            if keys.has(unused):
                keys.refuse(unused, "only with save_strategy: steps")
        if strategy == "epoch":
            _one_epoch(keys, "save_strategy")
        return
    if isinstance(steps, float) and steps < 1:
        keys.refuse("save_steps", "give whole steps, not a share of them")
    else:
        keys.put("train.save_every_steps", steps, "save_steps")
    if keep is not None:
        keys.put("train.keep_checkpoints", keep, "save_total_limit")


def _one_epoch(keys: TrlKeys, key: str) -> None:
    epochs = keys.source.value.get("num_train_epochs", 3)
    if not isinstance(epochs, int | float) or epochs > 1:
        keys.refuse(key, "epoch is accepted with `num_train_epochs: 1`; else give steps")


def _direct(keys: TrlKeys) -> None:
    for row in TABLE:
        if row.path is None:
            continue
        value = keys.take(row.key, row.default)
        if value is not None:
            keys.put(row.path, value, row.key)
