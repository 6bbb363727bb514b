"""What becomes of each key of a TRL recipe: the table behind docs/trl-recipes.md and `trl.py`.

Names and defaults are those of TRL 1.16 (`ScriptArguments`, `ModelConfig`, `DPOConfig`,
`SFTConfig`, `RewardConfig`, `KTOConfig`, `CPOConfig`), with the older names that recipes in use
still have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["mapped", "fixed", "refused"]


@dataclass(frozen=True)
class Row:
    """One key of TRL.

    Attributes:
        kind: mapped; fixed: accepted with the values that Palate has anyway; refused.
        becomes: mapped: the native keys. Else why not, and what to do instead.
        absent: what a recipe without the key gets (TRL's default where it bears on the result).
        path: native key that takes the value as it is; None where `trl.py` computes it.
        default: value for a recipe without the key; None leaves Palate's default.
        accepted: values of a fixed key.
        verb: the verbs that the key belongs to, by commas; None for all.
    """

    key: str
    kind: Kind
    becomes: str
    absent: str = ""
    path: str | None = None
    default: Any = None
    accepted: tuple[Any, ...] = ()
    verb: str | None = None

    def belongs_to(self, verb: str) -> bool:
        """Whether recipes of a verb have the key."""
        return self.verb is None or verb in self.verb.split(", ")


def _direct(key: str, path: str, default: Any = None, verb: str | None = None) -> Row:
    absent = "Palate's default" if default is None else str(default).lower()
    return Row(key, "mapped", f"`{path}`", absent, path=path, default=default, verb=verb)


def _computed(key: str, becomes: str, absent: str, verb: str | None = None) -> Row:
    return Row(key, "mapped", becomes, absent, verb=verb)


def _fixed(key: str, accepted: tuple[Any, ...], reason: str, verb: str | None = None) -> Row:
    return Row(key, "fixed", reason, accepted=accepted, verb=verb)


def _refused(reason: str, *keys: str) -> Iterator[Row]:
    return (Row(key, "refused", reason) for key in keys)


TABLE: tuple[Row, ...] = (
    # Model
    Row("model_name_or_path", "mapped", "`model.path`", "required", path="model.path"),
    Row("model_revision", "mapped", "`model.revision`", "the hub's", path="model.revision"),
    _computed("dtype", "`model.dtype`; `auto` is refused: name the dtype", "float32"),
    _computed("torch_dtype", "older name of `dtype`", "float32"),
    _computed(
        "bf16",
        "nothing: TRL's bf16 autocasts float32 weights, Palate computes in `model.dtype`; "
        "a note says so. Set `dtype: bfloat16` for bf16 weights",
        "as true, TRL's default",
    ),
    _fixed("fp16", (False,), "there is no float16 loss scaling: set `dtype: bfloat16`"),
    _direct("attn_implementation", "model.attn_implementation"),
    _direct("trust_remote_code", "model.trust_remote_code"),
    Row(
        "chat_template_path",
        "mapped",
        "`model.chat_template`, for a Jinja file",
        "the tokenizer's own template",
        verb="sft, reward",
    ),
    _computed("use_peft", "`model.lora`", "full fine-tuning"),
    _computed("lora_r", "`model.lora.r`; only with use_peft", "16"),
    _computed("lora_alpha", "`model.lora.alpha`; only with use_peft", "32"),
    _computed(
        "lora_dropout",
        "`model.lora.dropout`, of sft; else 0, as in TRL, whose disable_dropout covers adapters",
        "0.05 (sft)",
    ),
    _computed(
        "lora_target_modules",
        "`model.lora.target_modules`; required with use_peft",
        "refused: PEFT's own choice differs by architecture; write `all-linear` or a list",
    ),
    _computed(
        "lora_task_type",
        "nothing: accepted where it names what is trained, `CAUSAL_LM` or (reward) `SEQ_CLS`",
        "",
    ),
    _fixed(
        "lora_modules_to_save",
        (["score"],),
        "the reward head is always trained, and saved with the adapters",
        "reward",
    ),
    _fixed("use_rslora", (False,), "rank-stabilised scaling: multiply lora_alpha by sqrt(lora_r)"),
    _fixed("use_dora", (False,), "DoRA is not offered"),
    _fixed("load_in_4bit", (False,), "quantised training is not offered: use `dtype: bfloat16`"),
    _fixed("load_in_8bit", (False,), "quantised training is not offered: use `dtype: bfloat16`"),
    *_refused(
        "only attention and linear layers get adapters: name them in lora_target_modules",
        "lora_target_parameters",
    ),
    *_refused(
        "quantised training is not offered",
        "bnb_4bit_quant_type",
        "use_bnb_nested_quant",
        "bnb_4bit_quant_storage",
    ),
    *_refused(
        "name what it holds: dtype, attn_implementation, model_revision", "model_init_kwargs"
    ),
    *_refused("Palate trains dense models' own loss", "router_aux_loss_coef"),
    _fixed("disable_dropout", (True,), "dropout is always off: policy and reference must agree"),
    # Data
    _computed("dataset_name", "`data.train[].path` and `data.eval[].path`", "required"),
    _computed("dataset_config", "`data.train[].subset` and `data.eval[].subset`", "none"),
    _computed("dataset_train_split", "`data.train[].split`", "train"),
    _computed(
        "dataset_test_split",
        "`data.eval[].split`; used, as in TRL, only with an eval_strategy",
        "test",
    ),
    _computed("datasets", "`data.train[]`, from path, name (subset) and split of each", "none"),
    _computed("test_split_size", "`data.eval_fraction`", "none"),
    _fixed("dataset_streaming", (False,), "data sets are read whole, so that rows are counted"),
    _fixed("streaming", (False,), "data sets are read whole, so that rows are counted"),
    _computed(
        "max_length",
        "`data.length.max_tokens`, and both other limits; longer responses are cut at the end, as "
        "TRL does, but a row whose prompt leaves no room is dropped and counted; of reward models "
        "longer pairs are dropped, as in TRL, and counted",
        "1024",
    ),
    _computed(
        "max_prompt_length",
        "`data.length.max_prompt_tokens` with `data.length.prompt: keep_end`, as the TRL versions "
        "that had it",
        "max_length",
        "tune, sft",
    ),
    _computed(
        "max_completion_length", "`data.length.max_response_tokens`", "max_length", "tune, sft"
    ),
    _fixed(
        "truncation_mode",
        ("keep_start",),
        "set data.length.prompt: keep_end (native recipe)",
        "tune, sft",
    ),
    *_refused(
        "data is prepared in one process; delete the key", "dataset_num_proc", "dataset_kwargs"
    ),
    *_refused("readers take the columns they know; delete the key", "remove_unused_columns"),
    *_refused("batches are padded to their longest row; delete the key", "pad_to_multiple_of"),
    _fixed(
        "padding_free",
        (False,),
        "`train.layout: auto` leaves padding out where it can; delete the key",
        "tune, sft",
    ),
    _fixed("packing", (False,), "examples are not packed", "sft"),
    _fixed("eval_packing", (False, None), "examples are not packed", "sft"),
    _fixed("completion_only_loss", (True, None), "the loss is on the response alone", "sft"),
    _computed(
        "assistant_only_loss",
        "`data.turns: all`, for true; without it TRL trains on users' turns too, Palate on the "
        "same answers; a note says so",
        "false",
        "sft",
    ),
    *_refused(
        "the tokenizer's own tokens and columns of the data decide; see docs/data.md",
        "eos_token",
        "pad_token",
        "dataset_text_field",
        "shuffle_dataset",
        "packing_strategy",
    ),
    # Loss
    _computed(
        "loss_type",
        "`loss.type`: sigmoid → dpo (label_smoothing makes it cDPO; TRL ignores it there), robust "
        "→ rdpo, ipo → ipo_mean, hinge, sigmoid_norm → dpo_norm, sft, kto, simpo → simpo (+ sft); "
        "sigmoid with cpo_alpha → cpo; sft: nll. A list → mixture. Others are refused",
        "sigmoid",
        "tune, sft",
    ),
    _direct("center_rewards_coefficient", "regularise.centring", verb="reward"),
    _computed("loss_weights", "`loss.losses[].weight`", "1 each", "tune"),
    _computed("beta", "`loss.beta`", "0.1", "tune"),
    _computed("label_smoothing", "`loss.label_smoothing`; dpo, rdpo, dpo_norm, cpo", "0", "tune"),
    _computed(
        "f_divergence_type",
        "`loss.type: fdpo` with `loss.divergence`; only with sigmoid",
        "reverse_kl (dpo)",
        "tune",
    ),
    _computed(
        "f_alpha_divergence_coef",
        "`loss.alpha` = 1 - coefficient (TRL's u^(a-1) is u^-alpha of arXiv:2309.16240)",
        "0.5",
        "tune",
    ),
    _computed("ld_alpha", "`token_weights` of type ld", "none", "tune"),
    _computed("desirable_weight", "`loss.desirable_weight`; only with kto", "1", "tune"),
    _computed("undesirable_weight", "`loss.undesirable_weight`; only with kto", "1", "tune"),
    _computed("simpo_gamma", "`loss.gamma`; only with simpo", "0.5", "tune"),
    _computed(
        "cpo_alpha",
        "`loss.nll_weight` of cpo; with simpo the weight of an added sft loss (0: none)",
        "1 with simpo",
        "tune",
    ),
    _fixed("alpha", (0, 0.0), "AlphaPO is not offered", "tune"),
    _fixed("use_weighting", (False,), "WPO weighting is not offered", "tune"),
    *_refused("DiscoPOP is not offered", "discopop_tau"),
    _fixed("label_smoothing_factor", (0, 0.0), "it smooths tokens, not labels of pairs"),
    _computed(
        "precompute_ref_log_probs", "`reference.kind: cache`", "false: a live reference", "tune"
    ),
    *_refused(
        "the cache is filled with per_device_train_batch_size; delete the key",
        "precompute_ref_batch_size",
    ),
    _fixed("sync_ref_model", (False,), "the reference stays fixed (TR-DPO is not offered)", "tune"),
    *_refused(
        "the reference stays fixed (TR-DPO is not offered)",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
    ),
    # Training
    _computed("learning_rate", "`train.learning_rate`", "1e-6 (sft: 2e-5, reward: 1e-4)"),
    _computed(
        "per_device_train_batch_size",
        "`train.micro_batch_size_pairs`; `train.batch_size_pairs` is it times "
        "gradient_accumulation_steps times the number of processes",
        "8",
    ),
    _computed("gradient_accumulation_steps", "see per_device_train_batch_size", "1"),
    _direct("per_device_eval_batch_size", "train.eval_batch_size_pairs", 8),
    _direct("num_train_epochs", "train.epochs", 3.0),
    _computed("max_steps", "`train.max_steps`; -1 is none", "none"),
    _computed(
        "lr_scheduler_type",
        "`train.scheduler`: linear, cosine, constant_with_warmup → constant, constant (without "
        "warm-up). Others are refused",
        "linear",
    ),
    _computed("warmup_steps", "`train.warmup_steps`; below 1 it is a warmup_ratio", "0"),
    _computed("warmup_ratio", "`train.warmup_fraction`", "none"),
    _computed(
        "optim",
        "`train.optimizer`: adamw_torch, adamw_torch_fused, adamw_hf → adamw; rmsprop; sgd",
        "adamw",
    ),
    _direct("weight_decay", "train.weight_decay", 0.0),
    _direct("max_grad_norm", "train.max_grad_norm", 1.0),
    _fixed("adam_beta1", (0.9,), "AdamW's betas are 0.9 and 0.999"),
    _fixed("adam_beta2", (0.999,), "AdamW's betas are 0.9 and 0.999"),
    _fixed("adam_epsilon", (1e-8,), "AdamW's epsilon is 1e-8"),
    _direct("gradient_checkpointing", "train.gradient_checkpointing", True),
    _fixed(
        "gradient_checkpointing_kwargs",
        ({"use_reentrant": False},),
        "checkpointing is never reentrant",
    ),
    _fixed(
        "average_tokens_across_devices", (True,), "losses are always averaged over all processes"
    ),
    _fixed("activation_offloading", (False,), "use gradient_checkpointing"),
    _fixed("use_liger_kernel", (False,), "Palate has its own operators; delete the key"),
    _fixed("torch_compile", (False,), "compilation is not offered"),
    _fixed("neftune_noise_alpha", (None,), "noise on embeddings is not offered"),
    _fixed("use_cache", (False,), "training has no key-value cache"),
    _fixed("auto_find_batch_size", (False,), "the batch size is part of the recipe"),
    _direct("dataloader_num_workers", "train.data_workers", 0),
    _direct("seed", "seed", 42),
    *_refused("`seed` decides the order too", "data_seed"),
    *_refused(
        "AdamW, RMSprop and SGD take no further options", "optim_args", "lr_scheduler_kwargs"
    ),
    *_refused("DeepSpeed's checkpoints are pickled: launch with FSDP 2", "deepspeed"),
    *_refused(
        "give it to `accelerate launch` (its --config_file)",
        "fsdp",
        "fsdp_config",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "ddp_backend",
        "tf32",
    ),
    *_refused(
        "pairs are in memory before training; delete the key",
        "dataloader_pin_memory",
        "dataloader_drop_last",
        "dataloader_prefetch_factor",
        "dataloader_persistent_workers",
    ),
    # Evaluation, checkpoints, logs
    _computed(
        "eval_strategy",
        "`data.eval` and `train.eval_every_steps`; `epoch` is accepted for one epoch (the end of "
        "the run is always evaluated)",
        "no",
    ),
    _computed("evaluation_strategy", "older name of `eval_strategy`", "no"),
    _computed(
        "eval_steps", "`train.eval_every_steps`; only with eval_strategy: steps", "logging_steps"
    ),
    _computed(
        "save_strategy",
        "`train.save_every_steps`; `epoch` is accepted for one epoch (the end of the run is always "
        "saved)",
        "steps",
    ),
    _computed("save_steps", "`train.save_every_steps`; only with save_strategy: steps", "500"),
    _computed("save_total_limit", "`train.keep_checkpoints`", "all"),
    _fixed("save_only_model", (False,), "a checkpoint is always complete"),
    _fixed("load_best_model_at_end", (False,), "use the native `train.early_stop_patience`"),
    *_refused(
        "the evaluation loss decides: use the native `train.early_stop_patience`",
        "metric_for_best_model",
        "greater_is_better",
    ),
    _direct("logging_steps", "train.log_every_steps", 10),
    _fixed("logging_strategy", ("steps",), "logs are by steps: set logging_steps"),
    _fixed("logging_first_step", (False,), "set logging_steps: 1"),
    _computed("report_to", "`train.report_to`; `none` is none, `all` is refused", "none"),
    *_refused("a run is named after its output_dir", "run_name", "project"),
    _direct("output_dir", "output_dir", "trainer_output"),
    _fixed("overwrite_output_dir", (False,), "a finished run is never overwritten"),
    _computed("resume_from_checkpoint", "`resume`, for true; a path is refused", "false"),
    *_refused(
        "the verb decides what is done; delete the key",
        "do_train",
        "do_eval",
        "do_predict",
    ),
    _fixed("push_to_hub", (False,), "upload `<output_dir>/model` with the hub's own client"),
    *_refused(
        "upload `<output_dir>/model` with the hub's own client",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
    ),
    _fixed("generate_during_eval", (False,), "sample with `palate eval`"),
)

BY_KEY = {row.key: row for row in TABLE}
BOOLEAN = frozenset(
    row.key
    for row in TABLE
    if isinstance(row.default, bool) or any(isinstance(value, bool) for value in row.accepted)
) | {"bf16", "use_peft", "trust_remote_code", "precompute_ref_log_probs", "assistant_only_loss"}
"""Keys that are true or false."""


def native_key(key: str) -> str | None:
    """Where a mapped TRL key goes, in the table's words; None for any other key."""
    row = BY_KEY.get(key)
    return row.becomes.partition(";")[0] if row is not None and row.kind == "mapped" else None


def markdown() -> str:
    """The three tables of docs/trl-recipes.md."""
    mapped = ["| TRL | Palate | without the key |", "| --- | --- | --- |"]
    fixed = ["| TRL | accepted | why nothing else |", "| --- | --- | --- |"]
    refused = ["| TRL | why, and what instead |", "| --- | --- |"]
    for row in TABLE:
        key = f"`{row.key}`" + (f" ({row.verb})" if row.verb else "")
        if row.kind == "mapped":
            mapped.append(f"| {key} | {row.becomes} | {row.absent} |")
        elif row.kind == "fixed":
            values = ", ".join(f"`{json.dumps(value)}`" for value in row.accepted)
            fixed.append(f"| {key} | {values} | {row.becomes} |")
        else:
            refused.append(f"| {key} | {row.becomes} |")
    return "\n\n".join(
        f"## {title}\n\n" + "\n".join(table)
        for title, table in (("Mapped", mapped), ("Fixed", fixed), ("Refused", refused))
    )
