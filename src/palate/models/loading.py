"""Loading models and tokenizers: safetensors only, no remote code unless asked, one clear line."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from palate.data.containers import hub
from palate.data.templates import freeze_clock
from palate.errors import ModelError
from palate.models.attention import use_rows
from palate.models.model import Model
from palate.recipes.schema import LoraRecipe, ModelRecipe

NO_HUB = "no such folder, not in the local cache, and the hub cannot be reached"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def hub_is_needed_and_absent(path: str) -> bool:
    """Whether `path` is no local folder while no hub can be asked for it.

    Raises:
        ModelError: `path` is written like a folder and there is none.
    """
    if Path(path).expanduser().exists():
        return False
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"{path}: no such folder")
    return hub.unreachable()


def load_tokenizer(recipe: ModelRecipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token where it has none, its templates' clock stopped.

    Raises:
        ModelError: unreadable, or without an end-of-sequence token.
    """
    offline = hub_is_needed_and_absent(recipe.path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            recipe.path,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
        )
    except Exception as error:
        reason = NO_HUB if offline else f"no readable tokenizer: {_one_line(error)}"
        raise ModelError(f"{recipe.path}: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{recipe.path}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any id serves.
        tokenizer.pad_token = tokenizer.eos_token
    freeze_clock(tokenizer)
    return tokenizer


def load_model(recipe: ModelRecipe, path: str | None = None) -> PreTrainedModel:
    """The transformers model of a recipe (or of another `path`), dropout off, without adapters.

    Raises:
        ModelError: unreadable, not a language model, or without some of its weights, which
            transformers would draw at random; the reason in one line.
    """
    source = path or recipe.path
    check_whole(source)
    revision = recipe.revision if path is None else None
    offline = hub_is_needed_and_absent(source)
    try:
        config = AutoConfig.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=recipe.trust_remote_code,
            local_files_only=offline,
        )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            output_loading_info=True,
            revision=revision,
            dtype=DTYPES[recipe.dtype],
            attn_implementation=recipe.attn_implementation,
            trust_remote_code=recipe.trust_remote_code,
            use_safetensors=True,
            local_files_only=offline,
        )
    except Exception as error:
        reason = NO_HUB if offline else f"no readable model: {_one_line(error)}"
        raise ModelError(f"{source}: {reason}") from error
    model: PreTrainedModel = loaded[0]
    refuse_missing(loaded[1], source, model)
    disable_dropout(model)
    if recipe.attn_implementation is None:
        use_rows(model)
    return model


def check_whole(path: str) -> None:
    """Refuses a folder that holds adapters and no model.

    Raises:
        ModelError: says what makes one of them.
    """
    folder = Path(path).expanduser()
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{path}: LoRA adapters alone; `palate merge {path} -o FOLDER` makes a model of them"
        )


def refuse_missing(found: Mapping[str, Any], source: str, model: nn.Module) -> None:
    """Refuses a checkpoint without some weights; `found` is what transformers says of loading.

    Raises:
        ModelError: names the first weights that are not there.
    """
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"{source}: no weights {', '.join(missing[:3])}{more} for {type(model).__name__}"
        )


def load_policy(recipe: ModelRecipe, *, memory_mb: int = 256) -> Model:
    """The trainable policy of a recipe: full weights, or frozen weights with new adapters."""
    model = load_model(recipe)
    hf: nn.Module = model if recipe.lora is None else add_lora(model, recipe.lora)
    return Model.policy(hf, memory_mb=memory_mb)


def add_lora(model: PreTrainedModel, recipe: LoraRecipe, *, task: str = "CAUSAL_LM") -> nn.Module:
    """Wraps `model` with float32 LoRA adapters; the vocabulary head gets none.

    Args:
        task: PEFT's name of what the model is for.

    Raises:
        ModelError: a target module that the model has not.
    """
    from peft import LoraConfig, get_peft_model

    targets: Any = recipe.target_modules
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type] # PEFT divides; a float serves
        lora_dropout=recipe.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # A backbone has no such module, and PEFT warns of excluding what is not there.
        exclude_modules=["lm_head"] if task == "CAUSAL_LM" else None,
        task_type=task,
    )
    try:
        with quiet_peft():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.target_modules: {_one_line(error)}") from error


def load_trained(folder: Path, recipe: ModelRecipe, *, memory_mb: int = 256) -> Model:
    """A policy saved by `Model.save`: full weights, or adapters on the recipe's model."""
    if not (folder / "adapter_config.json").exists():
        return Model.policy(load_model(recipe, str(folder)), memory_mb=memory_mb)
    from peft import PeftModel

    try:
        with quiet_peft():
            hf = PeftModel.from_pretrained(load_model(recipe), folder, is_trainable=False)
    except Exception as error:
        raise ModelError(f"{folder}: no readable adapter: {_one_line(error)}") from error
    return Model.policy(hf, memory_mb=memory_mb)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides warnings of PEFT that need nothing done: it reads a name that transformers has
    deprecated, a family's vocabulary head has another name than the one to leave out, and weights
    lie the other way round (GPT-2), which it finds out by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "You have passed exclude_modules", UserWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield


_DROPOUTS = ("dropout", "dropout_prob", "_pdrop", "layerdrop")


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: the reference must see what the policy sees."""
    holders: list[Any] = [model.config, model.config.get_text_config()]  # type: ignore[union-attr, operator]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        holders.append(module)
    # Some families keep the probability in a number of their own, and call the function with it.
    for holder in holders:
        for name, value in list(vars(holder).items()):
            if isinstance(value, float) and name.endswith(_DROPOUTS):
                setattr(holder, name, 0.0)


def weights_digest(model: nn.Module) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of all weights but adapters'."""
    digest = hashlib.sha256()
    named = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    for plain, tensor in sorted(named.items()):
        digest.update(f"{plain}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
