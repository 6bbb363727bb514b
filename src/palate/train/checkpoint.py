"""Checkpoints: whole folders of safetensors and JSON, complete or absent.

    checkpoints/step-000050/
      manifest.json            the digest of every other file, compared when it is read
      model/                   the policy, loadable by transformers or PEFT
      trainer/optimizer.safetensors, optimizer.json
      trainer/random.safetensors, random.json      one entry a process
      trainer/shards/          of sharded runs weights and optimizer state, a file a process; full
                               weights are there alone
      run.json                 what must be equal to go on from here, counters, the partial log line

A checkpoint is written under a hidden name beside its place, flushed to the disk, and renamed in
one step. Nothing is pickled.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate.errors import RunError
from palate.store.digests import damage
from palate.store.files import read_json, write_json
from palate.store.folders import remove_folder

STEP = re.compile(r"step-(\d{6,})")
TRAINER = "trainer"

log = logging.getLogger("palate")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints by step."""
    found = [(STEP.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_intact(folder: Path) -> Path | None:
    """The last checkpoint that is as it was written; None where there is none at all.

    Damaged ones after it are set aside under another name.

    Raises:
        RunError: there are checkpoints, and none is intact.
    """
    damaged: list[tuple[Path, str]] = []
    for _, path in reversed(checkpoints(folder)):
        fault = damage(path)
        if fault is None:
            for bad, reason in damaged:
                aside = bad.with_name(f"damaged-{bad.name}")
                remove_folder(aside)
                bad.rename(aside)
                log.warning("%s: %s; kept as %s", bad, reason, aside.name)
            if damaged:
                log.warning("%s: intact: going on from here", path)
            return path
        damaged.append((path, fault))
    if damaged:
        path, reason = damaged[0]
        raise RunError(
            f"{folder}: no checkpoint is intact ({path.name}: {reason}); choose another output_dir "
            "to begin anew"
        )
    return None


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def rotate(folder: Path, keep: int | None) -> None:
    """Deletes all but the newest `keep` checkpoints."""
    if keep is None:
        return
    for _, path in checkpoints(folder)[:-keep]:
        remove_folder(path)


def save_optimizer(state: Mapping[str, Any], folder: Path) -> None:
    """Writes `optimizer.state_dict()` as tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value.detach().cpu().contiguous()
            else:
                values.setdefault(str(index), {})[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", {"values": values, "param_groups": state["param_groups"]})


def load_optimizer(folder: Path) -> dict[str, Any]:
    """What `save_optimizer` wrote, for `load_state_dict`."""
    rest = read_json(folder / "optimizer.json")
    state: dict[Any, dict[str, Any]] = {_key(k): dict(v) for k, v in rest["values"].items()}
    for name, value in _tensors(folder / "optimizer.safetensors").items():
        index, _, entry = name.rpartition("/")
        state.setdefault(_key(index), {})[entry] = value
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators; tensors, and JSON values."""
    version, internal, gauss = random.getstate()
    numpy: Any = np.random.get_state()
    name, keys, *rest = numpy
    tensors = {"torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return {
        "tensors": tensors,
        "values": {
            "python": [version, list(internal), gauss],
            "numpy": [name, keys.tolist(), *rest],
        },
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    version, internal, gauss = state["values"]["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["values"]["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.random.set_rng_state(state["tensors"]["torch"])
    if "cuda" in state["tensors"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["tensors"]["cuda"])


def save_random(states: list[dict[str, Any]], folder: Path) -> None:
    """Writes the random states of all processes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}/{k}": v for i, s in enumerate(states) for k, v in s["tensors"].items()}
    save_file(tensors, folder / "random.safetensors")
    write_json(folder / "random.json", [s["values"] for s in states])


def load_random(folder: Path, rank: int) -> dict[str, Any]:
    """The random state of one process; of the first where fewer processes wrote the checkpoint."""
    values = read_json(folder / "random.json")
    rank = rank if rank < len(values) else 0
    tensors = {
        name.partition("/")[2]: value
        for name, value in _tensors(folder / "random.safetensors").items()
        if name.startswith(f"{rank}/")
    }
    return {"tensors": tensors, "values": values[rank]}


def _key(index: str) -> Any:
    # Parameters have numbers in a plain state and names in a gathered one.
    return int(index) if index.isdigit() else index


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
