"""Weights and optimizer state as whole tensors, wherever their shards are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from palate.errors import RunError
from palate.models.config_names import add_older_names
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward_files import load_reward_weights, save_reward_model
from palate.models.sharding import assign
from palate.recipes.schema import ModelRecipe


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over processes (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def gather_on_use(policy: Model) -> None:
    """Lets sharded weights be gathered also when a reference asks for hidden states alone."""
    if is_sharded(policy) and not policy.is_reward_model:
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(policy, "hidden")


def gathered_weights(policy: Model) -> dict[str, Tensor] | None:
    """All weights on the CPU of the main process; None where the policy holds them whole.

    Every process must call it.
    """
    if not is_sharded(policy):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(policy, options=options)
    return found


def gathered_optimizer(trainer: Trainer, policy: Model) -> dict[str, Any]:
    """The optimizer's state, whole; every process must call it."""
    optimizer: Any = trainer.optimizer
    if not is_sharded(policy):
        state: dict[str, Any] = optimizer.state_dict()
        return state
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(policy, optimizer.optimizer, options=options)


def save_policy(
    policy: Model,
    folder: Path,
    weights: dict[str, Tensor] | None,
    *,
    complete: bool = True,
) -> None:
    """Writes what transformers (or PEFT, for adapters) loads.

    Args:
        complete: False leaves out what a resumed run has already: a frozen backbone.
    """
    if policy.is_reward_model:
        save_reward_model(policy, folder, tensors=weights, complete=complete)
    elif weights is None:
        policy.save(folder)
    else:
        own = {name.removeprefix("trunks.policy.hf."): t for name, t in weights.items()}
        policy.hf.save_pretrained(folder, state_dict=own)  # type: ignore[operator]
    add_older_names(folder)


@torch.no_grad()
def load_weights(policy: Model, folder: Path, recipe: ModelRecipe) -> None:
    """Puts the weights of a checkpoint into `policy`, bit for bit.

    Raises:
        RunError: they do not fit.
    """
    if policy.is_reward_model:
        load_reward_weights(policy, folder)
        return
    if policy.has_adapters:
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        stored = load_peft_weights(str(folder), device="cpu")
        own = get_peft_model_state_dict(policy.hf)
        _same_names(own, stored, folder)
        if is_sharded(policy):
            by_parameter = {n.replace(".default.", "."): p for n, p in policy.hf.named_parameters()}
            for name, tensor in stored.items():
                assign(by_parameter[name], tensor)
        else:
            set_peft_model_state_dict(policy.hf, stored)
        return
    # By way of a model, since names on disk are not always those in memory.
    source = dict(load_model(recipe, str(folder)).named_parameters())
    own = dict(policy.hf.named_parameters())
    _same_names(own, source, folder)
    for name, parameter in own.items():
        assign(parameter, source[name])


def load_optimizer(trainer: Trainer, policy: Model, state: dict[str, Any]) -> None:
    """Restores what `gathered_optimizer` returned."""
    optimizer: Any = trainer.optimizer
    if not is_sharded(policy):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(policy, optimizer.optimizer, state, options=options)


def _same_names(own: dict[str, Any], stored: dict[str, Any], folder: Path) -> None:
    odd = sorted(own.keys() ^ stored.keys())
    if odd:
        raise RunError(f"{folder}: its weights do not fit the recipe's model: {', '.join(odd[:3])}")
