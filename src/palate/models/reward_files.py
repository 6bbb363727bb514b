"""Reward models on disk: safetensors and JSON that others read, and nothing else.

    reward_config.json      head, pooling, end tokens, scale, limits; read by `load_reward_model`

and, where the head is linear and read at the end token, what transformers and PEFT call sequence
classification (one label, problem type regression, so that servers return raw scores):

    config.json, model.safetensors                          AutoModelForSequenceClassification
    adapter_config.json, adapter_model.safetensors          the same with PEFT, head included

or, with any other head or pooling:

    config.json, model.safetensors (or adapter_*)           the backbone (or its adapters) alone
    reward_head.safetensors                                 head and pooling

A checkpoint of a frozen backbone has the last two JSON and head files only.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from palate.errors import ModelError, RunError
from palate.models.adapters import (
    ADAPTER_WEIGHTS,
    base_metadata,
    check_intact,
    quiet_peft,
    save_adapters,
)
from palate.models.loading import check_base, disable_dropout, from_pretrained, readable
from palate.models.model import Model
from palate.models.reward_backbone import load_whole
from palate.models.reward_config import CONFIG, Files, check_no_run, document, read_config
from palate.models.reward_config import read_spec as read_spec
from palate.models.reward_import import REWARD_MODEL, classifier_class, imported
from palate.models.sharding import assign
from palate.models.structure import backbone_of
from palate.recipes.schema import Dtype, ModelRecipe
from palate.store.files import write_json

HEAD = "reward_head.safetensors"
SCORE = "score.weight"
_LINEAR = "head.layers.0.weight"
_PEFT = "base_model.model."
_TRUNK, _HEADS = "trunks.reward.hf.", "heads.reward."
"""What the names in memory begin with; those on disk go without."""


def save_reward_model(
    model: Model,
    folder: Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    complete: bool = True,
) -> None:
    """Writes a model whole; see the module's head for the files.

    Args:
        tensors: weights by their names in `model`, where the model holds only shards of them.
        complete: False leaves out the weights of a frozen backbone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model.state_dict() if tensors is None else tensors)
    heads = {
        k.removeprefix(_HEADS): v.detach().cpu().contiguous()
        for k, v in state.items()
        if k.startswith(_HEADS)
    }
    backbone = {k.removeprefix(_TRUNK): v for k, v in state.items() if k.startswith(_TRUNK)}
    cls = classifier_class(model)
    kind: Files
    if model.backbone.is_frozen and not complete:
        kind = "head"
        save_file(heads, folder / HEAD, metadata=base_metadata(model.base_digest, model.dtype))
    elif model.has_adapters:
        kind = "adapter_classifier" if cls is not None else "adapter"
        _save_adapter(model, folder, backbone, heads, cls)
    elif cls is not None:
        kind = "classifier"
        prefix = cls.base_model_prefix
        named = {f"{prefix}.{k}": v for k, v in backbone.items()}
        shell = _shell(model, cls)
        shell.save_pretrained(folder, state_dict=named | {SCORE: heads[_LINEAR]})
    else:
        kind = "backbone"
        model.base.save_pretrained(folder, state_dict=backbone)
        save_file(heads, folder / HEAD)
    write_json(folder / CONFIG, document(model.spec, kind))


def load_reward_model(
    path: str | Path,
    *,
    dtype: Dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A reward model in evaluation mode, on the CPU.

    Args:
        path: folder that palate saved, or folder or hub name of any decoder with one linear `score`
            (`AutoModelForSequenceClassification`, num_labels=1), as others publish them.
        dtype: of the backbone; default: as trained, or as saved.
        revision: of a hub model.
        trust_remote_code: run code that came with the model; a folder cannot ask for it by itself.

    Raises:
        ModelError: unreadable, no scalar reward model, or one that needs code of its own.
    """
    folder = Path(path)
    if not (folder / CONFIG).exists():
        check_no_run(folder)
        return imported(str(path), dtype, revision, trust_remote_code=trust_remote_code)
    check_intact(folder)
    kind, spec = read_config(folder)
    if spec.model.trust_remote_code and not trust_remote_code:
        raise ModelError(
            f"{path}: needs code that came with {spec.model.path}: read it, then load with "
            "`trust_remote_code: true` (of a scorer, or of `load_reward_model`)"
        )
    if dtype is not None:
        spec = dataclasses.replace(spec, model=spec.model.model_copy(update={"dtype": dtype}))
    with readable(str(path), what=REWARD_MODEL):
        model = Model.reward(_backbone(folder, kind, spec.model), spec)
        _assign(model, _head_tensors(folder, kind) | _adapter_tensors(model, folder, kind), folder)
    disable_dropout(model.base)
    return model.eval().requires_grad_(False)


def load_reward_weights(model: Model, folder: Path) -> None:
    """Puts the weights of a saved model of the same kind into `model`, bit for bit.

    Weights may be sharded over processes: all must call it then.

    Raises:
        RunError: they do not fit.
    """
    kind, _ = read_config(folder)
    named = _head_tensors(folder, kind) | _adapter_tensors(model, folder, kind)
    if kind in _WHOLE:
        # By way of a model, since names on disk are not always those in memory.
        base = _backbone(folder, kind, model.spec.model)
        named |= {_TRUNK + k: v for k, v in base.named_parameters()}
    _assign(model, named, folder)


_WHOLE = ("classifier", "backbone")


def _backbone(folder: Path, kind: Files, recipe: ModelRecipe) -> nn.Module:
    """The backbone of a saved model; adapters, where it has any, are still to be filled."""
    if kind in _WHOLE:
        auto = AutoModelForSequenceClassification if kind == "classifier" else AutoModel
        at = recipe.model_copy(update={"revision": None})
        whole: PreTrainedModel = from_pretrained(auto, str(folder), at, what=REWARD_MODEL)
        return backbone_of(whole)
    base = _base(recipe)
    file = ADAPTER_WEIGHTS if kind.startswith("adapter") else HEAD
    check_base(folder / file, base, recipe, load=_base)
    return _with_adapters(base, folder) if kind.startswith("adapter") else base


def _base(recipe: ModelRecipe) -> PreTrainedModel:
    return backbone_of(load_whole(recipe))


def _head_tensors(folder: Path, kind: Files) -> dict[str, Tensor]:
    """Head and pooling, from the file: a model in another dtype would round them."""
    if kind == "classifier":
        return {_HEADS + _LINEAR: _stored(folder, SCORE)}
    if kind == "adapter_classifier":
        return {_HEADS + _LINEAR: _stored(folder, _PEFT + SCORE)}
    return {_HEADS + name: tensor for name, tensor in load_file(folder / HEAD).items()}


@torch.no_grad()
def _assign(model: Model, named: Mapping[str, Tensor], folder: Path) -> None:
    parameters = dict(model.named_parameters())
    # What is not stored beside the head was loaded with the backbone.
    loaded = {
        k for k in parameters if k.startswith(_TRUNK) and k not in named and not _is_adapter(k)
    }
    odd = sorted((parameters.keys() - loaded) ^ named.keys())
    if odd or any(parameters[k].shape != v.shape for k, v in named.items()):
        first = ", ".join(odd[:3]) or "other shapes"
        raise RunError(f"{folder}: its weights do not fit the recipe's model: {first}")
    for name, tensor in named.items():
        assign(parameters[name], tensor)


def _shell(model: Model, cls: type[PreTrainedModel]) -> PreTrainedModel:
    """The classifier without weights, whose configuration tells others what it is."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.problem_type = "regression"
    with torch.device("meta"):
        shell = cls(config)
    shell.config.architectures = [cls.__name__]
    return shell


def _save_adapter(
    model: Model,
    folder: Path,
    backbone: Mapping[str, Tensor],
    heads: dict[str, Tensor],
    cls: type[PreTrainedModel] | None,
) -> None:
    from peft import get_peft_model_state_dict

    hf: Any = model.hf
    config = copy.deepcopy(hf.peft_config["default"])
    config.base_model_name_or_path = model.spec.model.path
    state = get_peft_model_state_dict(hf, state_dict=dict(backbone))
    if cls is not None:
        # As PEFT names the weights of the classifier: one level more, and the head among them.
        config.task_type = "SEQ_CLS"
        config.modules_to_save = ["score", *(config.modules_to_save or ())]
        inner = f"{_PEFT}{cls.base_model_prefix}."
        state = {inner + k.removeprefix(_PEFT): v for k, v in state.items()}
        state[_PEFT + SCORE] = heads[_LINEAR]
    else:
        save_file(heads, folder / HEAD)
    digest = model.base_digest
    save_adapters(folder, config, state, base_digest=digest, base_dtype=model.dtype)


def _with_adapters(base: PreTrainedModel, folder: Path) -> nn.Module:
    from peft import PeftConfig, get_peft_model

    config: Any = PeftConfig.from_pretrained(str(folder))
    # The head is not PEFT's here.
    saved = [name for name in config.modules_to_save or () if name != "score"]
    config.task_type, config.modules_to_save = "FEATURE_EXTRACTION", saved or None
    with quiet_peft():
        adapted: nn.Module = get_peft_model(base, config)
    return adapted


def _adapter_tensors(model: Model, folder: Path, kind: Files) -> dict[str, Tensor]:
    """The adapters' weights by their names in the model."""
    if not kind.startswith("adapter"):
        return {}
    stored = load_file(folder / ADAPTER_WEIGHTS)
    if kind == "adapter_classifier":
        del stored[_PEFT + SCORE]
        # The classifier's own level.
        (level,) = {k.removeprefix(_PEFT).partition(".")[0] for k in stored}
        stored = {_PEFT + k.removeprefix(f"{_PEFT}{level}."): v for k, v in stored.items()}
    names = {
        n.replace(".modules_to_save.default.", ".").replace(".default.", "."): n
        for n, _ in model.named_parameters()
        if _is_adapter(n)
    }
    return {names.get(_TRUNK + k, _TRUNK + k): v for k, v in stored.items()}


def _is_adapter(name: str) -> bool:
    """Whether a weight is beside the base model's: an adapter, or a module trained whole."""
    return "lora_" in name or ".modules_to_save." in name


def _stored(folder: Path, name: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - a safetensors handle, not a mapping
                tensor: Tensor = tensors.get_tensor(name)
                return tensor
    raise ModelError(f"{folder}: no weights {name}")
