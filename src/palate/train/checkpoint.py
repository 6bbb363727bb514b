"""Checkpoints: whole folders of safetensors and JSON, complete or absent.

    checkpoints/step-000050/
      manifest.json            the digest of every other file, compared when it is read
      model/                   the policy, loadable by transformers or PEFT
      trainer/optimizer.safetensors, optimizer.json
      trainer/further.safetensors                  of other trunks and their heads what is trained
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
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate.errors import RunError
from palate.store.digests import damage, write_manifest
from palate.store.files import read_json, write_json
from palate.store.folders import partial_path, remove_folder, whole_folder
from palate.train import distributed, shards
from palate.train.meter import Meter

if TYPE_CHECKING:
    from palate.train.loop import Loop

STEP = re.compile(r"step-(\d{6,})")
TRAINER, RUN, FURTHER = "trainer", "run.json", "further.safetensors"

log = logging.getLogger("palate")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints by step."""
    matches = [(STEP.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in matches if match)


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


def save(loop: Loop) -> None:
    """Writes a whole checkpoint of a run, or nothing; every process must call it."""
    folder, accelerator = loop.job.folder, loop.accelerator
    model, is_main = loop.job.model, accelerator.is_main_process
    randoms = gather_object([random_state()])
    meter = loop.gathered(loop.meter)
    loop.refuse_unbounded(meter.means())
    sharded = distributed.is_sharded(model)
    # Adapters are small; of sharded full weights no process ever holds all.
    whole = not sharded or model.has_adapters
    tensors = distributed.gathered_weights(model) if whole else None
    final = checkpoint_path(folder.checkpoints, loop.step)
    with whole_folder(final) if is_main else nullcontext() as temporary:
        accelerator.wait_for_everyone()
        trainer = partial_path(final) / TRAINER
        if temporary is not None:
            trainer.mkdir()
            if whole:
                distributed.save_model(model, temporary / "model", tensors, complete=False)
            if sharded:
                (trainer / shards.FOLDER).mkdir()
            else:
                save_optimizer(loop.optimizer.state_dict(), trainer)
            if whole and (further := distributed.further_weights(model, tensors)):
                save_file(further, trainer / FURTHER)
            save_random(randoms, trainer)
            scheduler = loop.scheduler.state_dict()
            scheduler = {k: v for k, v in scheduler.items() if k != "lr_lambdas"}
            write_json(trainer / "scheduler.json", scheduler)
            write_json(temporary / RUN, _record(loop, meter))
        if sharded:
            accelerator.wait_for_everyone()
            rank = int(accelerator.process_index)
            shards.save_shard(model, loop.optimizer, trainer / shards.FOLDER, rank=rank)
            accelerator.wait_for_everyone()
        if temporary is not None:
            write_manifest(temporary)
    if is_main:
        rotate(folder.checkpoints, loop.recipe.keep_checkpoints)
    accelerator.wait_for_everyone()


def _record(loop: Loop, meter: Meter) -> dict[str, Any]:
    return {
        "identity": loop.job.identity,
        "step": loop.step,
        "source": loop.job.source.state_dict(),
        "meter": meter.state(),
        "items_seen": loop.items_seen,
        "callbacks": {c.name: state for c in loop.callbacks if (state := c.state_dict())},
        "done": loop.should_stop or loop.step >= loop.total,
    }


def load_weights(loop: Loop, folder: Path) -> None:
    """Weights of a checkpoint, and the optimizer's state where the two are in shards.

    Raises:
        RunError: they cannot be read, or do not fit.
    """
    parts = folder / TRAINER / shards.FOLDER
    if parts.exists():
        shards.load_shards(loop.job.model, loop.optimizer, parts)
    else:
        distributed.load_weights(loop.job.model, folder / "model", loop.job.model_recipe)
        file = folder / TRAINER / FURTHER
        distributed.load_further(loop.job.model, _tensors(file) if file.exists() else {}, file)


def load(loop: Loop, folder: Path) -> None:
    """Puts a run where it was when a checkpoint was written.

    Raises:
        RunError: it cannot be read, or does not fit.
    """
    trainer = folder / TRAINER
    load_weights(loop, folder)
    if not (trainer / shards.FOLDER).exists():
        stored = load_optimizer(trainer)
        distributed.load_optimizer(loop.optimizer, loop.job.model, stored)
    stored = read_json(trainer / "scheduler.json")
    loop.scheduler.load_state_dict(stored | {"lr_lambdas": [None] * len(stored["base_lrs"])})
    rates = loop.scheduler.get_last_lr()
    for group, rate in zip(loop.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    run = read_json(folder / RUN)
    loop.step = run["step"]
    loop.job.source.load_state_dict(run["source"])
    loop.items_seen = run["items_seen"]
    if loop.accelerator.is_main_process:
        loop.meter.load(run["meter"])
    for callback in loop.callbacks:
        if callback.name in run["callbacks"]:
            callback.load_state_dict(run["callbacks"][callback.name])
    set_random_state(load_random(trainer, int(loop.accelerator.process_index)))


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
