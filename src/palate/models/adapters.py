"""LoRA adapters: new ones on a model, saved with what they were trained on, and read back.

adapter_config.json           PEFT's; names the base model and its revision
adapter_model.safetensors     the weights; the metadata has the digest of the base's
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from palate.errors import ModelError, in_one_line
from palate.models.stop_tokens import add_stop_tokens, read_stop_tokens
from palate.models.vision import vision_modules
from palate.recipes.schema import LoraRecipe, ModelRecipe
from palate.store.digests import MANIFEST, damage

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROUTER_NAMES = ("gate", "router", "wg")
_SHOWN = 3

log = logging.getLogger("palate")


def holds_adapters(folder: Path) -> bool:
    """Whether a folder holds adapters in place of a whole model."""
    return (folder / ADAPTER_CONFIG).exists()


def add_lora(
    model: PreTrainedModel,
    recipe: LoraRecipe,
    *,
    task: str = "CAUSAL_LM",
    revision: str | None = None,
    trained: Sequence[str] = (),
) -> nn.Module:
    """Wraps `model` with float32 LoRA adapters; vocabulary head and routers get none.

    Args:
        task: PEFT's name of what the model is for.
        revision: of the base on the hub, kept for those who load the adapters.
        trained: modules that are trained whole beside them, saved and switched off with them.

    Raises:
        ModelError: a target module that the model has not, or that cannot have adapters.
    """
    from peft import LoraConfig, get_peft_model

    targets = recipe.target_modules
    routers = _routers(model)
    tower = vision_modules(model)
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type] # PEFT divides; a float serves
        lora_dropout=recipe.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=[*routers, *tower] or None,
        modules_to_save=list(trained) or None,
        task_type=task,
        revision=revision,
    )
    try:
        with quiet_peft():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.target_modules: {in_one_line(error, 300)}") from error
    refuse_head_adapters(model, "model.lora.target_modules")
    if not isinstance(targets, str):
        _refuse_unused(model, targets)
    if routers:
        log.warning(
            "model.lora: %d routers (%s ...) get no adapters: they choose experts", *_few(routers)
        )
    if fused := [n for n, p in model.named_parameters() if ".experts." in n and p.dim() == 3]:
        log.warning(
            "model.lora: %d tensors of several experts each (%s ...) get no adapters and stay as "
            "they are",
            *_few(fused),
        )
    return adapted


def base_revision(recipe: ModelRecipe) -> str | None:
    """The commit of a hub model that is loaded for a recipe: names of revisions move on.

    None of a folder; the recipe's revision where the cache does not say.
    """
    if Path(recipe.path).expanduser().exists():
        return None
    file = try_to_load_from_cache(recipe.path, "config.json", revision=recipe.revision)
    return Path(file).parent.name if isinstance(file, str) else recipe.revision


def save_adapters(
    folder: Path,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    base_digest: str | None,
    base_dtype: torch.dtype,
) -> None:
    """Writes adapters as PEFT reads them.

    Args:
        config: PEFT's. tensors: by PEFT's names.
        base_digest: of the weights that they were trained on, in `base_dtype`; see `read_base`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(config)
    config.inference_mode = True
    config.save_pretrained(folder)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt"} | base_metadata(base_digest, base_dtype)
    save_file(whole, folder / ADAPTER_WEIGHTS, metadata=metadata)


def base_metadata(digest: str | None, dtype: torch.dtype) -> dict[str, str]:
    """What a file of weights says of the base model that they belong to."""
    if digest is None:
        return {}
    return {"base_digest": digest, "base_dtype": str(dtype).removeprefix("torch.")}


def read_base(file: Path) -> tuple[str, str] | None:
    """Digest and dtype of the base weights that the weights in a file were trained on.

    None where the file does not say: adapters of others, or saved without a run.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
    except Exception as error:
        raise ModelError(f"{file}: not readable: {in_one_line(error, 300)}") from error
    return (metadata["base_digest"], metadata["base_dtype"]) if "base_digest" in metadata else None


def check_intact(folder: Path) -> None:
    """Refuses the model of a checkpoint that is not as it was written.

    Raises:
        ModelError: names the file.
    """
    checkpoint = folder.parent
    if (checkpoint / MANIFEST).exists() and (fault := damage(checkpoint, below=f"{folder.name}/")):
        raise ModelError(f"{checkpoint}: damaged: {fault}")


def load_adapters(base: PreTrainedModel, folder: Path) -> nn.Module:
    """The adapters of a folder on their base model, for inference, with their stop tokens.

    Raises:
        ModelError: unreadable, no LoRA, or weights that do not fit the base.
    """
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    check_intact(folder)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ModelError(f"{folder}: no {ADAPTER_WEIGHTS} beside its {ADAPTER_CONFIG}")
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(base, folder, is_trainable=False)
            # Once more, for what PEFT says of it: names that fit nothing are passed over.
            report: Any = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), "cpu"))
    except Exception as error:
        raise ModelError(f"{folder}: no readable adapter: {in_one_line(error, 300)}") from error
    if adapted.peft_config["default"].is_prompt_learning:
        raise ModelError(f"{folder}: adapters of another kind than LoRA")
    lost = [name for name in report.missing_keys if ".lora_" in name]
    if odd := sorted([*report.unexpected_keys, *lost]):
        n, names = _few(odd)
        raise ModelError(
            f"{folder}: {n} of its weights do not fit {base.name_or_path}: {names}; give the base "
            "that they were trained on"
        )
    if stops := read_stop_tokens(folder):
        add_stop_tokens(base, stops)
    return adapted


def refuse_head_adapters(base: PreTrainedModel, source: str) -> None:
    """Refuses adapters on the vocabulary head, whose weight alone is read.

    Raises:
        ModelError: names the module.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = base.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        name = next(name for name, module in base.named_modules() if module is head)
        raise ModelError(
            f"{source}: the vocabulary head ({name}) can have no adapters; leave it out, or merge "
            "adapters that have it with `palate merge`"
        )


def _refuse_unused(model: nn.Module, targets: tuple[str, ...]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [name for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    unused = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in adapted)]
    if unused:
        raise ModelError(
            f"model.lora.target_modules: {', '.join(unused)}: no such layer here that can have "
            "adapters (routers and the vocabulary head cannot)"
        )


def _routers(model: PreTrainedModel) -> list[str]:
    """Linear layers of mixtures of experts that say which experts a token goes to, or how much of
    a shared one it takes: by their names, and by having an output for each expert, or one."""
    experts = _expert_counts(model.config.to_dict())
    if not experts:
        return []
    routers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            size = module.out_features
        elif isinstance(module, Conv1D):
            size = module.nf
        else:
            continue
        parts = name.split(".")[-2:]
        named = any(part.endswith(_ROUTER_NAMES) for part in parts)
        if named and (size == 1 or size in experts):
            routers.append(name)
    return routers


def _expert_counts(config: Mapping[str, Any]) -> set[int]:
    counts: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            counts |= _expert_counts(value)
        elif "expert" in str(key):
            values = value if isinstance(value, (list, tuple)) else [value]
            counts |= {v for v in values if isinstance(v, int) and v > 1}
    return counts


def _few(names: list[str]) -> tuple[int, str]:
    return len(names), ", ".join(names[:_SHOWN])


_QUIET = (
    # A name that transformers has deprecated.
    (".is_gradient_checkpointing", FutureWarning),
    # Weights lie the other way round (GPT-2), which it finds out by itself.
    ("fan_in_fan_out is set to", UserWarning),
    # Experts that it looks for are not among the targets.
    ("The following (rank|alpha)_pattern keys", RuntimeWarning),
    # `merge_adapters` sees to it.
    ("Model (has|with) `tie_word_embeddings=True`", UserWarning),
    ("Input and output embeddings are no longer tied", UserWarning),
)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides warnings of PEFT that need nothing done."""
    with warnings.catch_warnings():
        for message, category in _QUIET:
            warnings.filterwarnings("ignore", message, category)
        yield
