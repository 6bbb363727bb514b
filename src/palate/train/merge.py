"""LoRA adapters added to the weights they were trained on: one whole model, read like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from palate.data.items import Item
from palate.data.layouts import collate
from palate.errors import ModelError, RunError
from palate.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    holds_adapters,
    load_adapters,
    quiet_peft,
)
from palate.models.config_names import add_older_names, save_tokenizer
from palate.models.loading import check_base, load_config, load_model, load_tokenizer
from palate.models.model import Ask, Model
from palate.models.reward_config import CONFIG
from palate.models.reward_files import load_reward_model, save_reward_model
from palate.recipes.schema import Dtype, ModelRecipe
from palate.store.files import read_json
from palate.store.folders import whole_folder

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".md")
"""Endings of what is not taken over: weights, and a card that tells of adapters."""
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""What rounding of the merged weights may make: KL of the next token in nats, mean over a sequence,
or the difference of rewards, as a share of rewards above 1."""
_PROBE_TOKENS = 24


def merge_adapters(
    path: str | Path,
    out: str | Path,
    *,
    dtype: Dtype | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Writes the model of a LoRA run whole: a policy, or a reward model with its head.

    Tokenizer and template are those of the run. In float32 scores and log-probs stay the same to
    rounding; in a smaller dtype the merged weights are rounded to it. What is written is read again
    and must give the same log-probs (or reward) of one sequence as the adapters. Input embeddings
    and vocabulary head that are the same weights become two where adapters change one of them.

    Args:
        path: run folder, or its `model` folder. out: folder to write, which must not be there.
        dtype: of the weights written; default: that in which they were trained (of a policy: in
            which its base model was saved).
        trust_remote_code: run code that came with the base model.

    Returns:
        `out`.

    Raises:
        ModelError: no adapters, unreadable, or trained on other weights than the base has now.
        RunError: `out` is there, or cannot be written.
    """
    folder, final = _adapters(Path(path)), Path(out)
    if final.exists():
        raise RunError(f"{final}: is there already; name another folder")
    is_reward_model = (folder / CONFIG).exists()
    merge = _merge_reward_model if is_reward_model else _merge_policy
    with whole_folder(final) as whole:
        for file in sorted(folder.iterdir()):
            # Tokenizer and template as they are.
            kept = file.name not in (ADAPTER_CONFIG, CONFIG) and file.suffix not in _NOT_COPIED
            if file.is_file() and kept:
                shutil.copyfile(file, whole / file.name)
        difference, precision = merge(folder, whole, dtype, trust_remote_code)
        # Written so that NaN is refused, too.
        if not difference <= _TOLERANCES[precision]:
            what = "rewards" if is_reward_model else "log-probs"
            raise ModelError(
                f"{folder}: the merged model's {what} are not the adapters', by {difference:.3g} "
                f"in {str(precision).removeprefix('torch.')}: nothing is written"
            )
    return final


def _adapters(path: Path) -> Path:
    for folder in (path, path / "model"):
        if holds_adapters(folder):
            return folder
    raise ModelError(f"{path}: no LoRA adapters to merge (no {ADAPTER_CONFIG})")


Merged = tuple[float, torch.dtype]
"""How far one sequence's numbers are from those before, and the dtype of the weights written."""


def _merge_reward_model(
    folder: Path, whole: Path, dtype: Dtype | None, trust_remote_code: bool
) -> Merged:
    model = load_reward_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    before = _reward(model)
    model.backbone.merge_adapters()
    # Adapters have no configuration that could say it.
    padding = AutoTokenizer.from_pretrained(folder).pad_token_id
    model.config.get_text_config().pad_token_id = padding
    save_reward_model(model, whole)
    add_older_names(whole)
    written = load_reward_model(whole, dtype=dtype, trust_remote_code=trust_remote_code)
    return abs(_reward(written) - before) / max(1.0, abs(before)), model.dtype


def _merge_policy(
    folder: Path, whole: Path, dtype: Dtype | None, trust_remote_code: bool
) -> Merged:
    recipe = _base_recipe(folder, trust_remote_code)
    recipe = recipe.model_copy(update={"dtype": dtype or _saved_dtype(recipe)})
    base = load_model(recipe)
    check_base(folder / ADAPTER_WEIGHTS, base, recipe)
    adapted: Any = load_adapters(base, folder)
    before = _log_probs(adapted, base)
    _untie(base)
    with quiet_peft():
        merged = adapted.merge_and_unload()
    merged.save_pretrained(whole)
    add_older_names(whole)
    if not (whole / "tokenizer_config.json").exists():
        save_tokenizer(load_tokenizer(recipe), whole)
    precision = merged.get_input_embeddings().weight.dtype
    del merged, adapted, base
    written = load_model(recipe, str(whole))
    after = _log_probs(written, written)
    divergence = torch.where(before.isfinite(), before.exp() * (before - after), 0.0)
    return float(divergence.sum(-1).mean()), precision


def _base_recipe(folder: Path, trust_remote_code: bool) -> ModelRecipe:
    """The base model as the adapters' configuration names it.

    Raises:
        ModelError: none, or adapters of another kind of model.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"{folder}: adapters of a model for {config['task_type']}: only language models and "
            "reward models of palate's are merged"
        )
    if not config.get("base_model_name_or_path"):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: names no base model")
    return ModelRecipe(
        path=str(config["base_model_name_or_path"]),
        revision=config.get("revision"),
        trust_remote_code=trust_remote_code,
    )


def _untie(base: PreTrainedModel) -> None:
    """Gives the vocabulary head weights of its own where adapters change it, or the input
    embeddings, of a model in which the two are the same."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    plain = (nn.Embedding, nn.Linear)
    # Of models that see the outer configuration may say it alone.
    configs = [base.config, base.config.get_text_config()]
    if not any(getattr(c, "tie_word_embeddings", False) for c in configs) or head is None:
        return
    if type(embeddings).__module__.startswith("torch") and type(head).__module__.startswith(
        "torch"
    ):
        return
    for layer in (embeddings, head):
        for part in layer.modules():
            if isinstance(part, plain) and part.weight is not None:
                part.weight = nn.Parameter(part.weight.detach().clone(), requires_grad=False)
    for config in configs:
        config.tie_word_embeddings = False


@torch.no_grad()
def _log_probs(model: nn.Module, base: PreTrainedModel) -> Tensor:
    """[T, V] log-probs after each token of one sequence."""
    ids = _probe(len(base.get_input_embeddings().weight))  # type: ignore[arg-type]
    logits: Tensor = model(input_ids=ids[None]).logits
    return logits[0].double().log_softmax(-1)


@torch.no_grad()
def _reward(model: Model) -> float:
    """The reward of one sequence."""
    ids = _probe(model.vocabulary).tolist()
    item = Item.of(tuple(ids[: len(ids) // 2]), tuple(ids[len(ids) // 2 :]))
    batch = collate([item], layout="plain", pad_id=0, keep_last=True)
    return float(model(batch, Ask(heads=("reward",))).sequence_rewards)


def _probe(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (_PROBE_TOKENS,), generator=generator)


def _saved_dtype(recipe: ModelRecipe) -> Dtype:
    config = load_config(recipe.path, recipe)
    name = str(getattr(config.get_text_config(), "dtype", None)).removeprefix("torch.")
    return cast(Dtype, name) if name in get_args(Dtype) else recipe.dtype
