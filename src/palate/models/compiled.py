"""Norms, feed-forwards and rotary positions of a model on compiled kernels, same numbers.

transformers writes a norm as eight operators, and each reads and writes every value; here it is one
pass (`palate.kernels.cpu.layers`). A module is taken over where its name and its parts say what it
is and where, tried on numbers, it is just that; every other one stays as it is. Weights, names and
files of the model are the same.

Embeddings that are the vocabulary head's weights, too, give the gradient of the rows that were
read alone, and not a matrix of zeros as large as the head with some rows in it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from palate.kernels import cpu
from palate.kernels.cpu import layers

_ACTIVATIONS: dict[str, layers.Activation] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
}
_OWN_CLASS = "_palate_own_class"
_READING = "_palate_reading"


def use_compiled(model: nn.Module) -> int:
    """Takes over what can be of a bfloat16 model on the CPU.

    Returns:
        How many modules it took over.
    """
    if torch.accelerator.is_available():
        return 0
    count = _take_over_embeddings(model)
    known: dict[tuple[str, type, Any], Any] = {}
    for module in model.modules():
        if _OWN_CLASS in vars(module):
            continue
        for recognise, forward in _KINDS:
            sign = recognise.__name__, type(module), _sign(module)
            if sign not in known:
                known[sign] = recognise(module)
            if known[sign] is not None:
                _take_over(module, known[sign], forward)
                count += 1
                break
    return count


def kernels_of(model: Any) -> str:
    """What a transformers model runs on, as far as its numbers depend on it."""
    compiled = any(
        _OWN_CLASS in vars(module) and not isinstance(module, nn.Embedding | nn.Linear)
        for module in model.modules()
    )
    return f"{model.config._attn_implementation}{' and compiled layers' if compiled else ''}"


def norm_reading(module: nn.Module) -> dict[str, Any] | None:
    """`epsilon`, `offset` and `early` of `palate.kernels.cpu.layers.norm`, where a module is such a
    norm."""
    if _OWN_CLASS in vars(module):
        reading = vars(module)[_READING]
        return reading if isinstance(reading, dict) else None
    return _norm(module)


def activation_of(module: Any) -> layers.Activation | None:
    """The activation of a gated feed-forward by its class; None for one that is not compiled."""
    return _ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)


@contextmanager
def own_layers(model: nn.Module) -> Iterator[None]:
    """Runs a model's own code while the block runs, whatever was taken over."""
    taken = [(m, type(m)) for m in model.modules() if _OWN_CLASS in vars(m)]
    for module, _ in taken:
        module.__class__ = vars(module)[_OWN_CLASS]
    try:
        yield
    finally:
        for module, compiled in taken:
            module.__class__ = compiled


def _take_over(module: Any, reading: Any, forward: Callable[..., Tensor]) -> None:
    kind = type(module)
    vars(module)[_OWN_CLASS], vars(module)[_READING] = kind, reading
    # A class of the same name: what asks for a module's class, or prints it, sees no other.
    members = {"forward": forward, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), members)


def _sign(module: nn.Module) -> Any:
    """What tells modules of one class apart."""
    activation = getattr(module, "act_fn", None)
    weight = getattr(module, "weight", None)
    of_weight = (weight.dtype, weight.shape) if isinstance(weight, Tensor) else None
    return type(activation), _epsilon(module), of_weight


def _epsilon(module: nn.Module) -> float | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return epsilon if isinstance(epsilon, float) else None


# Norms ------------------------------------------------------------------------------------------


def _norm(module: nn.Module) -> dict[str, Any] | None:
    """How a root mean square norm is computed, or None."""
    parameters = dict(module.named_parameters())
    weight, epsilon = parameters.get("weight"), _epsilon(module)
    if not type(module).__name__.endswith("RMSNorm") or len(parameters) != 1:
        return None
    if weight is None or weight.ndim != 1 or epsilon is None or any(module.children()):
        return None
    x = _inputs(len(weight))
    if not layers.takes_rows(x, weight) or not cpu.available():
        return None
    # Not its own weight, which may be all ones or all zeros: then nothing could be told apart.
    drawn = _values(len(weight))
    with torch.no_grad():
        right = functional_call(module, {"weight": drawn}, (x,))
        readings: list[dict[str, Any]] = [
            {"epsilon": epsilon, "offset": offset, "early": early}
            for offset in (0.0, 1.0)
            for early in (False, True)
        ]
        results = [layers.norm(x, drawn, **reading) for reading in readings]
    equal = [float((result == right).float().mean()) for result in results]
    best = max(range(len(readings)), key=equal.__getitem__)
    return readings[best] if _same(results[best], right) else None


def _norm_forward(self: Any, *inputs: Any, **options: Any) -> Tensor:
    if len(inputs) == 1 and not options and layers.takes_rows(inputs[0], self.weight):
        return layers.norm(inputs[0], self.weight, **vars(self)[_READING])
    result: Tensor = vars(self)[_OWN_CLASS].forward(self, *inputs, **options)
    return result


# Feed-forwards ----------------------------------------------------------------------------------


def _gated(module: Any) -> layers.Activation | None:
    """The activation of a gated feed-forward, or None."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if {name for name, _ in module.named_children()} - {"act_fn"} != set(parts[:3]):
        return None
    kind = activation_of(module)
    if kind is None or not all(isinstance(getattr(module, name), nn.Linear) for name in parts[:3]):
        return None
    weight = module.gate_proj.weight
    if (weight.dtype, weight.device.type) != (torch.bfloat16, "cpu") or not cpu.available():
        return None
    with torch.no_grad():
        x = _inputs(module.gate_proj.in_features)
        gate, up = module.gate_proj(x), module.up_proj(x)
        product = layers.gated(gate, up, kind=kind)
        written = module.act_fn(gate) * up
        is_so = _same(product, written) and torch.equal(module(x), module.down_proj(written))
        return kind if is_so else None


def _gated_forward(self: Any, *inputs: Any, **options: Any) -> Tensor:
    if len(inputs) != 1 or options:
        result: Tensor = vars(self)[_OWN_CLASS].forward(self, *inputs, **options)
        return result
    gate, up = self.gate_proj(inputs[0]), self.up_proj(inputs[0])
    if layers.takes_flat(gate, up):
        product = layers.gated(gate, up, kind=vars(self)[_READING])
    else:
        product = self.act_fn(gate) * up
    down: Tensor = self.down_proj(product)
    return down


# Rotary positions ---------------------------------------------------------------------------------

_ROTARY = "apply_rotary_pos_emb"
"""What a family's file calls the function that turns queries and keys."""


def _rotary(module: nn.Module) -> str | None:
    """The name of the file's module whose function turns queries and keys as usual, or None."""
    if not type(module).__name__.endswith("Attention") or not hasattr(module, "q_proj"):
        return None
    if module.q_proj.weight.dtype != torch.bfloat16 or not cpu.available():  # type: ignore[union-attr]
        return None
    forward = inspect.unwrap(type(module).forward)
    function = forward.__globals__.get(_ROTARY)
    if _ROTARY not in forward.__code__.co_names or not callable(function):
        return None
    query, key = _values(2, 3, 5, 64), _values(2, 1, 5, 64) + 1
    cos, sin = _values(2, 5, 64) - 1, _values(2, 5, 64) * 2
    try:
        with torch.no_grad():
            turned = function(query, key, cos, sin)
    # Other arguments, or other shapes: another kind of positions.
    except (TypeError, RuntimeError, ValueError):
        return None
    usual = [layers.rotated(x, cos, sin) for x in (query, key)]
    is_usual = len(turned) == 2 and all(map(torch.equal, turned, usual))
    return str(forward.__globals__["__name__"]) if is_usual else None


def _rotary_forward(self: Any, *inputs: Any, **options: Any) -> Any:
    scope = vars(sys.modules[vars(self)[_READING]])
    function = scope[_ROTARY]
    # The layer's code stays what it is; for this call its file's function is the compiled one.
    usual = getattr(function, "func", None) is not _turn
    if usual:
        scope[_ROTARY] = partial(_turn, function)
    try:
        return vars(self)[_OWN_CLASS].forward(self, *inputs, **options)
    finally:
        if usual:
            scope[_ROTARY] = function


def _turn(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if len(inputs) == 4 and not options:
        *heads, cos, sin = inputs
        if all(layers.takes_heads(x, cos, sin) for x in heads):
            return tuple(layers.rotated(x, cos, sin) for x in heads)
    return function(*inputs, **options)


_KINDS = ((_norm, _norm_forward), (_gated, _gated_forward), (_rotary, _rotary_forward))


# Weights in the order of products -----------------------------------------------------------------

FEW_ROWS = 128
"""Up to so many, arranging a weight takes longer than a tenth of its product."""
_PACKED = "_palate_packed"


def use_packed(model: nn.Module) -> int:
    """Keeps the weights of a model's linear layers as products want them, for passes of few rows.

    For models that sample or score. At each product the library arranges the weight anew, which
    with one row takes as long as the product itself; here that is done at the first pass of few
    rows without gradients, and undone where a gradient is asked for. Numbers are the same bits; a
    layer takes twice its memory from then on.

    Returns:
        How many layers it took over.
    """
    if torch.accelerator.is_available() or not torch.cpu._is_avx512_bf16_supported():
        return 0
    layers_of_model = [m for m in model.modules() if type(m) is nn.Linear]
    bfloat16 = [m for m in layers_of_model if m.weight.dtype == torch.bfloat16]
    for module in bfloat16:
        _take_over(module, None, _linear_forward)
    return len(bfloat16)


def drop_packed(model: nn.Module) -> None:
    """Forgets the arranged weights of `use_packed`; those in use are arranged anew.

    It notices changes that torch counts; what writes to a weight's `data` is not counted.
    """
    for module in model.modules():
        vars(module).pop(_PACKED, None)


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    weight = self.weight
    few = x.dtype == torch.bfloat16 and 0 < x.numel() <= FEW_ROWS * x.shape[-1]
    if torch.is_grad_enabled():
        vars(self).pop(_PACKED, None)
    elif (
        few
        and weight.is_contiguous()
        and not weight.is_inference()
        and weight.device.type == x.device.type == "cpu"
    ):
        version = weight.data_ptr(), weight._version
        known = vars(self).get(_PACKED)
        if known is None or known[0] != version:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
            known = vars(self)[_PACKED] = (version, packed)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, known[1], self.bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, self.bias)


# Embeddings ---------------------------------------------------------------------------------------

_HEAD_WEIGHTS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
"""Of embeddings whose rows were read for a gradient: the same weight, for the head to be run on."""


def head_weight(model: Any) -> Tensor | None:
    """The weight for the head of a pass that has begun, if its embedding was taken over."""
    embedding = model.get_input_embeddings()
    return _HEAD_WEIGHTS.pop(embedding, None) if torch.is_grad_enabled() else None


def _take_over_embeddings(model: nn.Module) -> int:
    get = getattr(model, "get_output_embeddings", None)
    weight = getattr(get() if get is not None else None, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != torch.bfloat16:
        return 0
    count = 0
    for module in model.modules():
        is_tied = isinstance(module, nn.Embedding) and module.weight is weight
        if is_tied and not (_OWN_CLASS in vars(module) or module.scale_grad_by_freq):
            _take_over(module, None, _embedding_forward)
            count += 1
    return count


def _embedding_forward(self: Any, *inputs: Any, **options: Any) -> Tensor:
    weight, forward = self.weight, vars(self)[_OWN_CLASS].forward
    # Shards of a weight (DTensor) know no sparse gradients.
    trained = weight.requires_grad and type(weight) is nn.Parameter
    if not (trained and torch.is_grad_enabled()):
        rows: Tensor = forward(self, *inputs, **options)
        return rows
    parameters = self._parameters
    parameters["weight"], _HEAD_WEIGHTS[self] = _Tied.apply(weight)
    self.sparse = True
    try:
        rows = forward(self, *inputs, **options)
        return rows
    finally:
        self.sparse, parameters["weight"] = False, weight


class _Tied(torch.autograd.Function):
    """A weight twice, for its rows to be read and for the vocabulary head: one dense gradient.

    What rows give is added up in float32 first: one by one, the share of a frequent word would
    vanish beside the head's in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor | None, of_head: Tensor | None) -> Tensor | None:
        if of_rows is None:
            return of_head
        rows, place = of_rows._indices()[0].unique(return_inverse=True)
        values = of_rows._values()
        total = torch.zeros(len(rows), values.shape[1], dtype=torch.float32)
        total.index_add_(0, place, values.float())
        if of_head is None:
            of_head = torch.zeros(of_rows.shape, dtype=of_rows.dtype)
        # Nobody else has the head's share: it becomes the whole, without a copy of its size.
        of_head[rows] = (of_head[rows].float() + total).to(of_head.dtype)
        return of_head


def _inputs(width: int) -> Tensor:
    """[64, width], small ones that an epsilon changes, and large ones that a clamp would."""
    return (_values(64, width).float() * torch.logspace(-3, 3, 64).unsqueeze(1)).bfloat16()


def _values(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).bfloat16()


def _same(a: Tensor, b: Tensor) -> bool:
    """The same row by row but for last bits; where b rounds more coarsely those of small values."""
    off = (a.double() - b.double()).norm(dim=-1) / b.double().norm(dim=-1)
    return a.dtype == b.dtype and bool((off < 2**-8).all())
