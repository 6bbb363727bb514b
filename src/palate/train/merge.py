"""LoRA adapters added to the weights they were trained on: one whole model, read like any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from transformers import AutoConfig, AutoTokenizer

from palate.errors import ModelError, RunError
from palate.models.config_names import add_older_names
from palate.models.loading import load_trained
from palate.models.reward_config import CONFIG
from palate.models.reward_files import load_reward_model, save_reward_model
from palate.recipes.schema import Dtype, ModelRecipe
from palate.store.files import read_json
from palate.store.folders import whole_folder

ADAPTER = "adapter_config.json"
_OTHER = (".safetensors", ".bin", ".pt", ".pth", ".md")
"""Endings of what is not taken over: weights, and a card that tells of adapters."""


def merge_adapters(
    path: str | Path,
    out: str | Path,
    *,
    dtype: Dtype | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Writes the model of a LoRA run whole: a policy, or a reward model with its head.

    Tokenizer and template are those of the run. In float32 scores and log-probs stay the same to
    rounding; in a smaller dtype the merged weights are rounded to it.

    Args:
        path: run folder, or its `model` folder. out: folder to write, which must not be there.
        dtype: of the weights written; default: that in which they were trained (of a policy: in
            which its base model was saved).
        trust_remote_code: run code that came with the base model.

    Returns:
        `out`.

    Raises:
        ModelError: no adapters, or unreadable. RunError: `out` is there, or cannot be written.
    """
    folder, final = _adapters(Path(path)), Path(out)
    if final.exists():
        raise RunError(f"{final}: is there already; name another folder")
    if (folder / CONFIG).exists():
        write = _reward_model(folder, dtype, trust_remote_code)
    else:
        write = _policy(folder, dtype, trust_remote_code)
    with whole_folder(final) as whole:
        for file in sorted(folder.iterdir()):
            # Tokenizer and template as they are.
            if file.is_file() and file.name not in (ADAPTER, CONFIG) and file.suffix not in _OTHER:
                shutil.copyfile(file, whole / file.name)
        write(whole)
    return final


def _adapters(path: Path) -> Path:
    for folder in (path, path / "model"):
        if (folder / ADAPTER).exists():
            return folder
    raise ModelError(f"{path}: no LoRA adapters to merge (no {ADAPTER})")


def _reward_model(
    folder: Path, dtype: Dtype | None, trust_remote_code: bool
) -> Callable[[Path], None]:
    model = load_reward_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    model.backbone.merge_adapters()
    # Adapters have no configuration that could say it.
    padding = AutoTokenizer.from_pretrained(folder).pad_token_id
    model.config.get_text_config().pad_token_id = padding
    return partial(save_reward_model, model)


def _policy(folder: Path, dtype: Dtype | None, trust_remote_code: bool) -> Callable[[Path], None]:
    config = read_json(folder / ADAPTER)
    base = str(config["base_model_name_or_path"])
    recipe = ModelRecipe(
        path=base, revision=config.get("revision"), trust_remote_code=trust_remote_code
    )
    recipe = recipe.model_copy(update={"dtype": dtype or _saved_dtype(recipe)})
    hf: Any = load_trained(folder, recipe).hf
    return partial(save_merged, hf)


def save_merged(hf: Any, folder: Path) -> None:
    """Writes a language model with its adapters added to its weights, which it loses."""
    hf.merge_and_unload().save_pretrained(folder)
    add_older_names(folder)


def _saved_dtype(recipe: ModelRecipe) -> Dtype:
    try:
        config = AutoConfig.from_pretrained(
            recipe.path,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
        )
    except Exception:
        # Loading the model says in one line what is wrong with it.
        return recipe.dtype
    found = str(getattr(config.get_text_config(), "dtype", None)).removeprefix("torch.")
    return cast(Dtype, found) if found in get_args(Dtype) else recipe.dtype
