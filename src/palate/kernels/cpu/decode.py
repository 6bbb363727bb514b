"""One token more for rows of a decoder, compiled; `decode.cpp` says how."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palate.kernels.cpu.build import library
from palate.kernels.cpu.layers import Activation
from palate.kernels.cpu.tensors import pointer

BLOCK = 32
"""Tokens of a prompt that are worked on at once."""
STEP = 16
"""Room for a row's own tokens is a multiple of this."""


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "down", "up")),
        *((name, ctypes.c_int64) for name in ("out", "in_", "rank")),
        ("scale", ctypes.c_float),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("early", ctypes.c_int32),
    )


_LINEARS = ("query", "key", "value", "out", "gate", "up", "down")
_NORMS = (
    "before_attention", "query_norm", "key_norm", "after_attention", "before_feed", "after_feed"
)  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in _LINEARS),
        *((name, _Norm) for name in _NORMS),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("length", "blocks", "first", "count")),
    )


_SIZES = (
    "n_layers", "n_groups", "rows", "slots", "capacity",
    "width", "heads", "key_heads", "size", "feed",
)  # fmt: skip


class _Decode(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "groups", "slot", "past", "position")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("gelu", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Linear:
    """A linear layer, with or without an adapter of low rank.

    Attributes:
        weight: [out, in] bfloat16. bias: [out] bfloat16.
        down: [rank, in] float32. up: [out, rank] float32. scale: of the adapter.
    """

    weight: Tensor
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 0.0


@dataclass(frozen=True)
class Norm:
    """As `palate.kernels.cpu.layers.norm` takes it."""

    weight: Tensor
    epsilon: float
    offset: float
    early: bool


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A decoder layer: attention and a gated feed-forward, each behind a norm.

    Attributes:
        after_attention, after_feed: norms of what is added, where there are such.
        cos, sin: [positions, size] bfloat16.
        window: tokens that attention reaches back; 0: all. scale: of its scores.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Norm
    before_feed: Norm
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    after_attention: Norm | None = None
    after_feed: Norm | None = None
    cos: Tensor
    sin: Tensor
    window: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that follow one another and go on with one prompt.

    Attributes:
        keys: [layers, key heads, blocks, BLOCK, size] bfloat16, zero past the prompt's end.
        values: [layers, key heads, blocks, size, BLOCK].
        length: tokens of the prompt. count: rows.
    """

    keys: Tensor
    values: Tensor
    length: int
    count: int


class Layers:
    """The layers of a decoder as the library takes them. It reads weights where they are: they may
    change between steps, but must stay where they lie."""

    def __init__(
        self, layers: Sequence[Layer], *, heads: int, key_heads: int, activation: Activation
    ) -> None:
        self.layers = tuple(layers)
        self.heads, self.key_heads = heads, key_heads
        self.size = len(layers[0].query.weight) // heads
        self.width = layers[0].query.weight.shape[1]
        self.feed = len(layers[0].gate.weight)
        self.gelu = activation == "gelu_tanh"
        self._array = (_Layer * len(layers))(*map(_layer, layers))

    def step(
        self,
        states: Tensor,
        groups: Sequence[Group],
        *,
        slot: Tensor,
        past: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """Turns embeddings into the states behind the last layer, in place.

        Args:
            states: [rows, width] bfloat16.
            groups: of all rows, in order.
            slot: [rows] int64, where each row's own keys and values lie.
            past: [rows] int64, tokens that it has so far, behind its prompt.
            position: [rows] int64, in the tables of `cos` and `sin`.
            keys: [layers, slots, key heads, size, capacity] and values: [layers, slots, key heads,
                capacity, size], bfloat16: the new token's are written there.
        """
        assert states.is_contiguous() and keys.is_contiguous() and values.is_contiguous()
        assert int(past.max()) < keys.shape[-1] and keys.shape[-1] % STEP == 0
        first = 0
        array = (_Group * len(groups))()
        for n, group in enumerate(groups):
            blocks = group.keys.shape[2]
            array[n] = _Group(
                group.keys.data_ptr(), group.values.data_ptr(),
                group.length, blocks, first, group.count,
            )  # fmt: skip
            first += group.count
        assert first == len(states)
        args = _Decode(
            ctypes.cast(self._array, ctypes.c_void_p), ctypes.cast(array, ctypes.c_void_p),
            pointer(slot), pointer(past), pointer(position), pointer(keys), pointer(values),
            len(self.layers), len(groups), len(states), keys.shape[1], keys.shape[-1],
            self.width, self.heads, self.key_heads, self.size, self.feed, int(self.gelu),
        )  # fmt: skip
        library().palate_decode(ctypes.byref(args), torch.get_num_threads(), pointer(states))


def blocks_of(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a prompt, [layers, key heads, T, size], as `Group` has them."""
    layers, heads, length, size = keys.shape
    blocks = -(-length // BLOCK)
    room = (0, 0, 0, blocks * BLOCK - length)
    keys, values = (torch.nn.functional.pad(x, room) for x in (keys, values))
    shape = layers, heads, blocks, BLOCK, size
    return keys.reshape(shape).contiguous(), values.reshape(shape).transpose(-1, -2).contiguous()


def _layer(layer: Layer) -> _Layer:
    given = _Layer(window=layer.window, scale=layer.scale)
    for name in _LINEARS:
        setattr(given, name, _linear(getattr(layer, name)))
    for name in _NORMS:
        if (norm := getattr(layer, name)) is not None:
            setattr(
                given, name, _Norm(norm.weight.data_ptr(), norm.epsilon, norm.offset, norm.early)
            )
    given.cos, given.sin = layer.cos.data_ptr(), layer.sin.data_ptr()
    return given


def _linear(linear: Linear) -> _Linear:
    out, width = linear.weight.shape
    rank = 0 if linear.down is None else len(linear.down)
    return _Linear(
        linear.weight.data_ptr(), pointer(linear.bias), pointer(linear.down), pointer(linear.up),
        out, width, rank, linear.scale,
    )  # fmt: skip
