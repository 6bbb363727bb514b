"""One model over several processes: replicated (DDP) or sharded (FSDP 2), and its weights whole.

The launcher says which, by the environment that `accelerate launch` sets. Sharding is torch's own
`fully_shard`, on CPUs too, where accelerate leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from palate.errors import RecipeError, RunError
from palate.models.config_names import add_older_names
from palate.models.loading import load_model
from palate.models.model import Model
from palate.models.reward_files import load_reward_weights, save_reward_model
from palate.models.sharding import assign
from palate.models.structure import backbone_of
from palate.models.vision import vision_parameters
from palate.recipes.schema import ModelRecipe


def is_sharding_asked() -> bool:
    """Whether the launcher asks for FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def wrap(model: Model, accelerator: Accelerator) -> nn.Module:
    """The model on its device, over all processes; its own parameters stay those of `model`.

    Raises:
        RecipeError: sharding that cannot be done as asked.
    """
    model.to(accelerator.device)
    if not is_sharding_asked():
        wrapped: nn.Module = accelerator.prepare_model(model)
        return wrapped
    _shard(model, accelerator)
    if not is_sharded(model):
        raise RunError("the launcher asks for sharded weights, and they are whole")
    if "lm" in model.heads:
        # Weights are gathered also when a reference asks for hidden states alone.
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, "hidden")
    return model


def _shard(model: Model, accelerator: Accelerator) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes == 1:
        raise RecipeError("the launcher asks for FSDP with one process: nothing to shard over")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    wanted = {name.strip() for name in named.split(",") if name.strip()}
    wanted = wanted or set(model.base._no_split_modules or ())
    # Frozen layers of a tower stay with the rest: processes without images do not run them.
    layers = [
        module
        for module in model.modules()
        if type(module).__name__ in wanted and not _is_frozen_vision(module, model)
    ]
    if not layers:
        raise RecipeError(
            f"FSDP: the model has no layers of class {', '.join(sorted(wanted)) or '(none named)'};"
            " name them with `--fsdp_transformer_layer_cls_to_wrap`"
        )
    reshard = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=bool(reshard))
    # Head and embeddings stay gathered up to the backward pass: the reference that is the policy
    # without its adapters hands on the head after its own pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _is_frozen_vision(layer: nn.Module, model: Model) -> bool:
    vision = set(vision_parameters(backbone_of(model.base))) if model.backbone.vision else set()
    parameters = list(layer.parameters())
    frozen = not any(p.requires_grad for p in parameters)
    return frozen and bool(parameters) and parameters[0] in vision


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over processes (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def reshard(model: nn.Module) -> None:
    """Spreads again what a pass without a backward pass has left gathered."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward passes leave gradients where they are.

    Sharded weights have nowhere to keep whole gradients, so theirs are averaged every time.
    """
    if isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


def host_group(world_size: int) -> dist.ProcessGroup | None:
    """The processes, for numbers on the host; None where their own group takes those.

    By way of an accelerator a sum of host numbers would wait for all that it was asked for.
    """
    if world_size == 1 or "gloo" in dist.get_backend():
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo")
    return group


def host_sum(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of a float64 tensor of the host over processes, in the order of their ranks.

    Args:
        group: that of `host_group`.
    """
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts).sum(0)


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scales gradients to a norm of at most `limit`; the norm before that, on their device."""
    from torch.distributed.tensor import DTensor

    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gathered_weights(model: Model) -> dict[str, Tensor] | None:
    """All weights on the CPU of the main process; None where the model holds them whole.

    Every process must call it.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    reshard(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def save_model(
    model: Model, folder: Path, weights: dict[str, Tensor] | None, *, complete: bool = True
) -> None:
    """Writes what transformers (or PEFT, for adapters) loads.

    Args:
        weights: those of `gathered_weights`.
        complete: False leaves out what a resumed run has already: a frozen backbone.
    """
    if model.is_reward_model:
        save_reward_model(model, folder, tensors=weights, complete=complete)
    elif weights is None:
        model.save(folder)
    else:
        prefix = "trunks.policy.hf."
        model.save(folder, {name.removeprefix(prefix): t for name, t in weights.items()})
    add_older_names(folder)


@torch.no_grad()
def load_weights(model: Model, folder: Path, recipe: ModelRecipe) -> None:
    """Puts the weights of a checkpoint into `model`, bit for bit.

    Raises:
        RunError: they do not fit.
    """
    if model.is_reward_model:
        load_reward_weights(model, folder)
        return
    hf: Any = model.hf
    if model.has_adapters:
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        stored = load_peft_weights(str(folder), device="cpu")
        _same_names(get_peft_model_state_dict(hf), stored, folder)
        if is_sharded(model):
            by_parameter = {n.replace(".default.", "."): p for n, p in hf.named_parameters()}
            for name, tensor in stored.items():
                assign(by_parameter[name], tensor)
        else:
            set_peft_model_state_dict(hf, stored)
        return
    # By way of a model, since names on disk are not always those in memory.
    source = dict(load_model(recipe, str(folder)).named_parameters())
    parameters = dict(hf.named_parameters())
    _same_names(parameters, source, folder)
    for name, parameter in parameters.items():
        assign(parameter, source[name])


def further_weights(model: Model, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What is trained of trunks and heads besides those that `save_model` writes: a value model.

    Args:
        weights: those of `gathered_weights`.
    """
    if model.is_reward_model:
        return {}
    main = f"trunks.{next(iter(model.trunks))}."
    named = {
        n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(main)
    }
    source = named if weights is None else {name: weights[name] for name in named}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in source.items()}


@torch.no_grad()
def load_further(model: Model, stored: dict[str, Tensor], file: Path) -> None:
    """Puts what `further_weights` gave back.

    Raises:
        RunError: they do not fit.
    """
    names = further_weights(model).keys() if not is_sharded(model) else stored.keys()
    _same_names(dict.fromkeys(names), stored, file)
    parameters = dict(model.named_parameters())
    for name, tensor in stored.items():
        assign(parameters[name], tensor)


def load_optimizer(optimizer: torch.optim.Optimizer, model: Model, state: dict[str, Any]) -> None:
    """Restores the state of a checkpoint that holds it whole."""
    if not is_sharded(model):
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)


def _same_names(names: dict[str, Any], stored: dict[str, Any], folder: Path) -> None:
    odd = sorted(names.keys() ^ stored.keys())
    if odd:
        raise RunError(f"{folder}: its weights do not fit the recipe's model: {', '.join(odd[:3])}")
