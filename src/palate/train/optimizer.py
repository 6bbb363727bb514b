"""Optimizers, the float32 copy of low-precision weights, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

from palate.recipes.schema import LoopRecipe

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8, "fused": True}),
    # The TDPO release's optimizer, with torch's own settings as there.
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
    "sgd": (torch.optim.SGD, {"momentum": 0.0}),
}
"""Recipe name -> class and options."""


class MasterWeights(torch.optim.Optimizer):
    """Runs an optimizer on float32 copies of low-precision weights.

    bfloat16 has 8 significant bits: next to a weight of 0.02 an update below 3e-5 rounds to
    nothing, so that Adam at a learning rate of 1e-6 would move almost no weight. Here updates add
    up in the copy, and the weight is its rounded image. Costs 4 bytes a trained weight, and float32
    moments. Weights that are float32 already (adapters) are their own copy.
    """

    def __init__(
        self, params: Iterable[Any], cls: type[torch.optim.Optimizer], **options: Any
    ) -> None:
        super().__init__(params, dict(options))
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        for group in self.param_groups:
            copies = [self._copy(p) for p in group["params"]]
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": copies})
        self.inner = cls(groups, **options)

    def _copy(self, weight: nn.Parameter) -> nn.Parameter:
        if weight.dtype in (torch.float32, torch.float64):
            return weight
        self._copies[weight] = nn.Parameter(weight.detach().float())
        return self._copies[weight]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the inner optimizer at the learning rates of this one's groups."""
        if closure is not None:
            raise ValueError("a closure is not supported")
        for inner, group in zip(self.inner.param_groups, self.param_groups, strict=True):
            inner["lr"] = group["lr"]
        moved = [(weight, copy) for weight, copy in self._copies.items() if weight.grad is not None]
        for _, copy in moved:
            copy.grad = torch.empty_like(copy)
        _copy_all([copy.grad for _, copy in moved], [weight.grad for weight, _ in moved])
        self.inner.step()
        _copy_all([weight for weight, _ in moved], [copy for _, copy in moved])
        for _, copy in moved:
            copy.grad = None

    def state_of(self, weight: nn.Parameter) -> dict[str, Any]:
        """What is kept of a weight: the inner optimizer's state, and `copy` where it has one."""
        copy = self._copies.get(weight)
        if copy is None:
            return dict(self.inner.state.get(weight, {}))
        return {**self.inner.state.get(copy, {}), "copy": copy}

    @torch.no_grad()
    def set_state_of(self, weight: nn.Parameter, state: Mapping[str, Any]) -> None:
        """Puts what `state_of` gave back."""
        copy = self._copies.get(weight, weight)
        for name, value in state.items():
            if name == "copy":
                copy.copy_(value)
            else:
                self.inner.state[copy][name] = value

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with the copies beside its moments."""
        inner = self.inner.state_dict()
        state = {index: dict(values) for index, values in inner["state"].items()}
        for index, weight in enumerate(_weights(self)):
            if weight in self._copies:
                state.setdefault(index, {})["copy"] = self._copies[weight].detach()
        groups = [
            {**stored, "lr": group["lr"], "initial_lr": group.get("initial_lr", group["lr"])}
            for stored, group in zip(inner["param_groups"], self.param_groups, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = {index: dict(values) for index, values in state_dict["state"].items()}
        for index, weight in enumerate(_weights(self)):
            copy: Tensor | None = state.get(index, {}).pop("copy", None)
            if copy is not None:
                self._copies[weight].copy_(copy)
        inner = {index: values for index, values in state.items() if values}
        self.inner.load_state_dict({"state": inner, "param_groups": state_dict["param_groups"]})
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["lr"], group["initial_lr"] = stored["lr"], stored["initial_lr"]


def _copy_all(targets: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> None:
    """Copies tensors, or of sharded ones this process's parts, in few kernels; None has no part."""
    pairs = zip(targets, sources, strict=True)
    local = [(_local(a), _local(b)) for a, b in pairs if a is not None and b is not None]
    if local:
        torch._foreach_copy_(*map(list, zip(*local, strict=True)))  # type: ignore[arg-type]


def _local(value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def state_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Any]:
    """What an optimizer keeps of a weight, by name."""
    if isinstance(optimizer, MasterWeights):
        return optimizer.state_of(weight)
    return dict(optimizer.state.get(weight, {}))


def set_state_of(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, state: Mapping[str, Any]
) -> None:
    """Puts what `state_of` gave back."""
    if isinstance(optimizer, MasterWeights):
        optimizer.set_state_of(weight, state)
    else:
        optimizer.state[weight].update(state)


def _weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    rates: Mapping[nn.Parameter, float] | None = None,
) -> list[dict[str, Any]]:
    """The trained weights: those that decay, and biases and norms, which do not.

    Args:
        rates: of weights that have learning rates of their own.
    """
    decaying = set(get_parameter_names(model, list(ALL_LAYERNORM_LAYERS), list(_NO_DECAY)))
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rate = None if rates is None else rates.get(p)
            groups.setdefault((rate, name in decaying), []).append(p)
    # Those at the run's rate first, and of each rate those that decay: resumed runs rely on it.
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] or 0.0, not group[0][1]))
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0}
        | ({} if rate is None else {"lr": rate})
        for (rate, decays), params in ordered
    ]


def warmup_steps(recipe: LoopRecipe, total: int) -> int:
    """Steps of warm-up of a run of `total` steps."""
    if recipe.warmup_fraction is not None:
        return math.ceil(recipe.warmup_fraction * total)
    return recipe.warmup_steps


def build_optimizer(
    groups: list[dict[str, Any]],
    *,
    name: str,
    learning_rate: float,
    precision: Literal["float32", "model"],
) -> torch.optim.Optimizer:
    """The recipe's optimizer over parameter groups.

    Args:
        precision: `float32` keeps copies of low-precision weights; `model` works on them directly.
    """
    cls, options = OPTIMIZERS[name]
    options = {**options, "lr": learning_rate}
    low = any(p.dtype in (torch.bfloat16, torch.float16) for g in groups for p in g["params"])
    if low and precision == "float32":
        return MasterWeights(groups, cls, **options)
    return cls(groups, **options)


def schedule(
    kind: Literal["cosine", "linear", "constant"], *, warmup: int, total: int
) -> Callable[[int], float]:
    """Factor of the learning rate at step k, counted from 0.

    Warm-up min(1, (k + 1) / (warmup + 1)), as the TDPO release has it: the first step already
    moves, and without warm-up it has the full rate. From then on 1 (constant), or down to 0 at the
    end of training, along a line or half a cosine.
    """

    def factor(k: int) -> float:
        if k < warmup:
            return (k + 1) / (warmup + 1)
        done = min(1.0, (k - warmup) / max(1, total - warmup))
        if kind == "constant":
            return 1.0
        return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return factor
