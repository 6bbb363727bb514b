"""Decoding by compiled layers: for decoders like Llama's, in bfloat16 on the CPU.

A model is read once a call: its weights are used where they lie, so that what training has changed
is what writes. The prompt is run by the model's own forward pass; its keys and values then serve
all rows that continue it, without a copy a row, and rows join and leave at any step. Whether a
model is one that is read rightly, `palate.models.generation.check` tries.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from palate.data.items import Tokens
from palate.data.trees import TEXT, plain_rows, run_of
from palate.kernels import cpu
from palate.kernels.cpu import decode
from palate.kernels.cpu.decode import Group, Layer, Layers, Linear, Norm
from palate.models.compiled import activation_of, norm_reading
from palate.models.generation.general import cache_argument
from palate.models.generation.rows import features_of, next_positions
from palate.models.model import Model
from palate.models.structure import backbone_of, sharing_obstacle, text_part

PROMPT_TOKENS = 1024
"""Of prompts that are run in one pass, padding included; a longer one is run by itself."""
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions that do not depend on how long a sequence is."""


class Unread(Exception):
    """Why a model is not one for the compiled layers, in a clause."""


class CompiledDecoder:
    """See `GeneralDecoder`, whose methods these are.

    Args:
        longest: most tokens of a prompt. room: most new tokens. rows: most rows at once.

    Raises:
        Unread: the model is another kind.
    """

    joins = True

    def __init__(self, model: Model, pad: int, *, longest: int, room: int, rows: int) -> None:
        self.model = model
        self.pad = pad
        self.backbone: Any = backbone_of(model.base)
        self.text: Any = text_part(self.backbone)
        self.layers = read_layers(model, longest + room)
        self.name = cache_argument(self.backbone)
        self.slots = rows
        self.keys, self.values = self._empty(min(room, 64))
        self.drop()

    def drop(self) -> None:
        """Forgets all rows."""
        self.groups: list[Group] = []
        self.slot = self.past = self.position = torch.empty(0, dtype=torch.int64)

    def start(self, prompts: Sequence[Tokens], counts: Sequence[int]) -> Tensor:
        """[G, d] last hidden state of each prompt, for `counts` rows each, which join."""
        states = []
        for begin, end in _passes([len(prompt) for prompt in prompts]):
            states += self._read(prompts[begin:end], counts[begin:end])
        free = sorted(set(range(self.slots)) - set(self.slot.tolist()))
        new = sum(counts)
        following = torch.tensor(next_positions(prompts, self.model.backbone.vision))
        position = following.repeat_interleave(torch.tensor(counts))
        self.slot = torch.cat([self.slot, torch.tensor(free[:new])])
        self.past = torch.cat([self.past, torch.zeros(new, dtype=torch.int64)])
        self.position = torch.cat([self.position, position])
        return torch.stack(states)

    def _read(self, prompts: Sequence[Tokens], counts: Sequence[int]) -> list[Tensor]:
        """Runs prompts in one pass."""
        vision = self.model.backbone.vision
        lays = vision or TEXT
        runs = [run_of(prompt, Tokens(()), 0, lays) for prompt in prompts]
        inputs: dict[str, Any] = dict(plain_rows(runs, self.pad, lays).inputs)
        inputs |= features_of(self.model, prompts)
        # Of all layers alike: one with a window would keep padding in the place of tokens.
        cache = DynamicCache()
        out = self.backbone(**inputs, use_cache=True, **{self.name: cache})
        for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            n = len(prompt)
            keys, values = (
                torch.stack([getattr(layer, name)[i, :, :n] for layer in cache.layers])
                for name in ("keys", "values")
            )
            keys, values = decode.blocks_of(keys, values)
            self.groups.append(Group(keys=keys, values=values, length=n, count=count))
        return [out.last_hidden_state[i, len(prompt) - 1] for i, prompt in enumerate(prompts)]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """[R, d] last hidden states after one more token a row."""
        if int(self.past.max()) == self.keys.shape[-1]:
            self._grow()
        states = self.text.embed_tokens(torch.tensor(tokens)).contiguous()
        self.layers.step(
            states,
            self.groups,
            slot=self.slot,
            past=self.past,
            position=self.position,
            keys=self.keys,
            values=self.values,
        )
        self.past += 1
        self.position += 1
        normed: Tensor = self.text.norm(states)
        return normed

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows alone, which are in order."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        groups, first = [], 0
        for group in self.groups:
            count = sum(first <= row < first + group.count for row in rows)
            if count:
                groups.append(replace(group, count=count))
            first += group.count
        self.groups = groups
        self.slot, self.past = self.slot[chosen], self.past[chosen]
        self.position = self.position[chosen]

    def _empty(self, room: int) -> tuple[Tensor, Tensor]:
        """Keys and values of so many new tokens of each row."""
        layers = self.layers
        capacity = -(-room // decode.STEP) * decode.STEP
        shape = len(layers.layers), self.slots, layers.key_heads
        return (
            torch.empty(*shape, layers.size, capacity, dtype=torch.bfloat16),
            torch.empty(*shape, capacity, layers.size, dtype=torch.bfloat16),
        )

    def _grow(self) -> None:
        """Twice the room, with what is there."""
        before = self.keys.shape[-1]
        keys, values = self._empty(2 * before)
        keys[..., :before] = self.keys
        values[..., :before, :] = self.values
        self.keys, self.values = keys, values


def _passes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of prompts that are run in one pass each."""
    spans, begin = [], 0
    for i in range(1, len(lengths) + 1):
        if i == len(lengths) or max(lengths[begin : i + 1]) * (i + 1 - begin) > PROMPT_TOKENS:
            spans.append((begin, i))
            begin = i
    return spans


# Reading a model ----------------------------------------------------------------------------------


def read_layers(model: Model, positions: int) -> Layers:
    """The layers of a model as compiled decoding takes them.

    Args:
        positions: most tokens of a row.

    Raises:
        Unread: it has other ones.
    """
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        raise Unread("its weights are not bfloat16 on the CPU")
    if not cpu.available():
        raise Unread("there is no compiled library here")
    backbone: Any = backbone_of(model.base)
    if obstacle := sharing_obstacle(backbone):
        raise Unread(obstacle)
    text: Any = text_part(backbone)
    config = text.config
    parts = {name for name, _ in text.named_children()}
    if parts != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        raise Unread(f"{type(text).__name__} has other parts than layers between two norms")
    if getattr(config, "attn_logit_softcapping", None):
        raise Unread("its attention scores are capped")
    kinds = getattr(config, "layer_types", None) or [""] * len(text.layers)
    windows = model.backbone.windows
    tables = {kind: _turns(text.rotary_emb, kind, positions, model) for kind in set(kinds)}
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    layers = []
    for kind, module in zip(kinds, text.layers, strict=True):
        window = windows.get(kind if kind in windows else "")
        layers.append(_layer(module, heads, key_heads, tables[kind], window or 0))
    activations = {activation_of(module.mlp) for module in text.layers}
    activation = activations.pop()
    if activation is None or activations:
        raise Unread("its feed-forwards have another activation")
    return Layers(layers, heads=heads, key_heads=key_heads, activation=activation)


def _layer(
    module: Any, heads: int, key_heads: int, turns: tuple[Tensor, Tensor], window: int
) -> Layer:
    plain = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    around = plain | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
    parts = {name for name, _ in module.named_children()}
    if parts not in (plain, around):
        raise Unread(f"{type(module).__name__} has other parts")
    attention, feed = module.self_attn, module.mlp
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    of_attention = {name for name, _ in attention.named_children()}
    if of_attention - {"q_norm", "k_norm"} != projections or any(attention.parameters(False)):
        raise Unread(f"{type(attention).__name__} has other parts")
    of_feed = {name for name, _ in feed.named_children()} - {"act_fn"}
    if of_feed != {"gate_proj", "up_proj", "down_proj"}:
        raise Unread(f"{type(feed).__name__} has other parts")
    query = _linear(attention.q_proj)
    size, width = len(query.weight) // heads, query.weight.shape[1]
    if size % 32 or turns[0].shape[-1] != size or width % 2:
        raise Unread("its heads have another size")

    def norm(part: Any, name: str, of: int) -> Norm | None:
        return _norm(getattr(part, name), of) if hasattr(part, name) else None

    is_plain = parts == plain
    second = module.post_attention_layernorm
    layer = Layer(
        query=query,
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        out=_linear(attention.o_proj),
        gate=_linear(feed.gate_proj),
        up=_linear(feed.up_proj),
        down=_linear(feed.down_proj),
        before_attention=_norm(module.input_layernorm, width),
        before_feed=_norm(second if is_plain else module.pre_feedforward_layernorm, width),
        query_norm=norm(attention, "q_norm", size),
        key_norm=norm(attention, "k_norm", size),
        after_attention=None if is_plain else _norm(second, width),
        after_feed=norm(module, "post_feedforward_layernorm", width),
        cos=turns[0],
        sin=turns[1],
        window=window,
        scale=float(getattr(attention, "scaling", size**-0.5)),
    )
    inner, fed = heads * size, len(layer.gate.weight)
    shapes = {
        "key": (key_heads * size, width),
        "value": (key_heads * size, width),
        "out": (width, inner),
        "gate": (fed, width),
        "up": (fed, width),
        "down": (width, fed),
    }
    if fed % 2 or any(getattr(layer, n).weight.shape != shape for n, shape in shapes.items()):
        raise Unread(f"{type(module).__name__} has weights of other shapes")
    return layer


def _norm(module: nn.Module, width: int) -> Norm:
    weight: Any = getattr(module, "weight", None)
    reading = norm_reading(module)
    if reading is None or weight.shape != (width,) or not weight.is_contiguous():
        raise Unread(f"{type(module).__name__} is another norm")
    return Norm(weight.detach(), **reading)


def _linear(module: Any) -> Linear:
    base = getattr(module, "base_layer", module)
    if not isinstance(base, nn.Linear) or type(base.weight) is not nn.Parameter:
        raise Unread(f"{type(base).__name__} is no linear layer")
    if base.weight.dtype != torch.bfloat16 or not base.weight.is_contiguous():
        raise Unread("its weights are not bfloat16 in one piece")
    weight = base.weight.detach()
    bias = None if base.bias is None else base.bias.detach()
    if base is module or module.disable_adapters or module.merged:
        return Linear(weight, bias)
    names = [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return Linear(weight, bias)
    (name, *more) = names
    down, up = module.lora_A[name], module.lora_B[name]
    plain = not more and not module.lora_variant and type(down) is type(up) is nn.Linear
    if not plain or up.bias is not None or down.weight.dtype != torch.float32:
        raise Unread("its adapters are of another kind")
    return Linear(
        weight, bias, down.weight.detach(), up.weight.detach(), float(module.scaling[name])
    )


def _turns(rotary: Any, kind: str, positions: int, model: Model) -> tuple[Tensor, Tensor]:
    """[positions, size] cos and sin of rotary positions."""
    types = getattr(rotary, "rope_type", None)
    of_kind = types.get(kind) if isinstance(types, dict) else types
    if of_kind not in _FIXED_ROTARY:
        raise Unread(f"rotary positions of type {of_kind!r} depend on the length")
    axes = 1 if model.backbone.vision is None else model.backbone.vision.axes
    place = torch.arange(positions)[None]
    if axes > 1:
        place = place.expand(axes, 1, -1)
    more = (kind,) if "layer_type" in inspect.signature(rotary.forward).parameters else ()
    cos, sin = rotary(torch.empty(1, dtype=torch.bfloat16), place, *more)
    return tuple(x.reshape(-1, positions, x.shape[-1])[0].contiguous() for x in (cos, sin))
