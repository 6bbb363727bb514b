"""Training state that is spread over processes: one safetensors file a process, and nothing whole.

    shards/rank-00000.safetensors    rows of weights and moments that process 0 held, and where they
                                     belong, in the file's metadata

Any number of processes reads what any number wrote: each takes the rows it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.errors import RunError
from palate.train.optimizer import set_state_of, state_of

FOLDER = "shards"


def save_shard(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, *, rank: int
) -> None:
    """Writes this process's part of the trained weights and of the optimizer's state.

    Args:
        folder: made by the main process; every process writes a file of its own there.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, dict[str, Any]] = {}
    for name, value in _state(model, optimizer):
        local, start = _local(value)
        # What is whole everywhere is written once.
        if local is value and rank > 0:
            continue
        tensors[name] = local.detach().cpu().contiguous()
        places[name] = {"shape": list(value.shape), "start": start}
    metadata = {"places": json.dumps(places)}
    save_file(tensors, folder / f"rank-{rank:05d}.safetensors", metadata=metadata)


@torch.no_grad()
def load_shards(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Puts what `save_shard` wrote back, bit for bit.

    Raises:
        RunError: files that cannot be read, or that do not fit the model.
    """
    stored = _Stored(folder)
    for name, parameter in _trained(model):
        stored.fill(parameter, f"model/{name}")
        # Moments are of the dtype that the optimizer works in.
        like = state_of(optimizer, parameter).get("copy", parameter)
        state = {}
        for key in stored.keys(f"optimizer/{name}/"):
            entry = f"optimizer/{name}/{key}"
            whole = stored.shapes[entry] == list(parameter.shape)
            state[key] = torch.empty_like(like) if whole else torch.empty(stored.shapes[entry])
            stored.fill(state[key], entry)
        set_state_of(optimizer, parameter, state)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in _trained(model):
        yield f"model/{name}", parameter
        for key, value in state_of(optimizer, parameter).items():
            yield f"optimizer/{name}/{key}", torch.as_tensor(value)


def _local(value: Tensor) -> tuple[Tensor, int]:
    """The rows that this process holds, and the first one's place; all of them of a whole tensor.

    Raises:
        RunError: sharded otherwise than by rows.
    """
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(value, DTensor):
        return value, 0
    if tuple(value.placements) != (Shard(0),):
        raise RunError(f"weights sharded as {value.placements}: only shards of rows can be saved")
    mesh = value.device_mesh
    rows = -(-value.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * rows, value.shape[0])
    local = value.to_local()
    assert len(local) == min(rows, value.shape[0] - start), (value.shape, len(local), rows)
    return local, start


@dataclass(frozen=True)
class _Piece:
    file: Any
    start: int
    stop: int


class _Stored:
    """All files of a folder, read where they lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
                places = json.loads(file.metadata()["places"])
                for name, place in places.items():
                    self.shapes[name] = place["shape"]
                    shape = file.get_slice(name).get_shape()
                    rows = shape[0] if shape else 1
                    piece = _Piece(file, place["start"], place["start"] + rows)
                    self._pieces.setdefault(name, []).append(piece)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise RunError(f"{path}: not a readable part of a checkpoint: {error}") from error

    def keys(self, prefix: str) -> list[str]:
        """Names that begin with a prefix, without it."""
        return [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]

    def fill(self, target: Tensor, name: str) -> None:
        """Copies the rows that `target` holds here.

        Raises:
            RunError: they are not all there, or of another shape.
        """
        if self.shapes.get(name) != list(target.shape):
            raise RunError(f"{self.folder}: {name} does not fit the recipe's model")
        local, start = _local(target)
        if not target.shape:
            local.copy_(self._pieces[name][0].file.get_tensor(name))
            return
        filled = 0
        for piece in self._pieces[name]:
            first, last = max(start, piece.start), min(start + len(local), piece.stop)
            if first < last:
                rows = piece.file.get_slice(name)[first - piece.start : last - piece.start]
                local[first - start : last - start].copy_(rows)
                filled += last - first
        if filled != len(local):
            raise RunError(f"{self.folder}: rows of {name} are missing: a process's file is gone")
