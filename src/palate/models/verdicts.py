"""Verdicts of the start checks, kept so that only the first run of a model pays for them.

Files of JSON for each model, under a key that names everything a verdict depends on: the weights,
the configuration, dtype, attention kernel, device, libraries, and the code of the checks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from palate.caches import cache_folder
from palate.data.layouts import Layout
from palate.errors import RunError
from palate.models.check import LayoutCheck, check_tokens, layout_check, start_check
from palate.models.compiled import kernels_of
from palate.models.limits import positions_of
from palate.models.model import Model
from palate.models.structure import backbone_of, sharing_obstacle
from palate.store.files import read_json, write_json

FOLDER = "layout_checks"
SAMPLES = 4096
"""Numbers of each tensor that tell one set of weights from another."""


def kept_layout_check(
    model: Model, *, longest: int | None = None, beside: Path | None = None
) -> LayoutCheck:
    """`layout_check`, or what an earlier one said of the same model.

    What is exact for longer sequences is so for shorter ones; what is not, is not for longer ones
    either. What parts alone decide costs nothing and is not kept.

    Args:
        beside: a run folder, next to which the folder of verdicts is; None keeps nothing.

    Raises:
        RunError: the folder cannot be written.
    """
    if beside is None or sharing_obstacle(backbone_of(model.base)) is not None:
        return layout_check(model, longest=longest)
    tokens = check_tokens(model.backbone.windows, longest, positions_of(model.base))
    path = beside.parent / FOLDER / f"{verdict_key(model)}.json"
    known = _read(path)
    for verdict in known:
        enough = verdict.tokens >= tokens if verdict.ok else verdict.tokens <= tokens
        if enough:
            return verdict
    check = layout_check(model, longest=longest)
    # A crash may be of this machine's memory alone.
    if math.isfinite(check.max_abs_difference):
        write_json(path, [dataclasses.asdict(verdict) for verdict in (*known, check)])
    return check


def exact_layout(model: Model) -> Layout:
    """`shared`, which runs no padding, where its numbers are those of the plain layout; or `plain`.

    For models that score or are evaluated outside a run: verdicts are in the user's cache.
    """
    try:
        verdict = kept_layout_check(model, beside=cache_folder(FOLDER))
    except RunError:  # a cache that cannot be written
        verdict = layout_check(model)
    return "shared" if verdict.ok else "plain"


def kept_start_check(model: Model, *, beside: Path | None = None) -> None:
    """`start_check`, where the same model has not passed it before.

    Args:
        beside: as for `kept_layout_check`.

    Raises:
        ModelError: as `start_check`. RunError: the folder cannot be written.
    """
    if beside is None:
        start_check(model)
        return
    path = beside.parent / FOLDER / f"{verdict_key(model)}.start.json"
    if path.exists():
        return
    start_check(model)
    write_json(path, {"passed": True})


def _read(path: Path) -> tuple[LayoutCheck, ...]:
    """Verdicts of a file; an unreadable one counts as none, and is written anew."""
    if not path.exists():
        return ()
    try:
        return tuple(LayoutCheck(**entry) for entry in read_json(path))
    except (RunError, TypeError):
        return ()


def verdict_key(model: Model) -> str:
    """Hex digest of everything that a verdict depends on."""
    config = model.config.to_dict()
    parts = {
        "reward model": model.is_reward_model,
        "class": type(model.base).__qualname__,
        "modelling code": _file_digest(inspect.getfile(type(model.base))),
        "config": {key: repr(value) for key, value in config.items() if key != "_name_or_path"},
        "dtype": str(model.dtype),
        "kernels": kernels_of(model.base),
        "images": None if model.pictures is None else model.pictures.processor.digest,
        "device": str(torch.cuda.get_device_name() if _on_cuda(model) else model.device.type),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "palate": _code_digest(),
        "weights": _weights_sample(model.hf),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _on_cuda(model: Model) -> bool:
    return model.device.type == "cuda"


@torch.no_grad()
def _weights_sample(model: nn.Module) -> str:
    """Digest of names, dtypes, shapes, and of numbers spread over every tensor.

    Training and merging move all of a tensor, so that a sample tells; to read all of a large model
    would take longer than the check.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        # The half of an adapter that is drawn at random does nothing while the other half is 0.
        if "lora_A" in name or not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat: Any = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def _code_digest() -> str:
    """Of the code that lays batches out, masks, runs and compares them."""
    root = Path(__file__).parents[1]
    data = [root / "data" / name for name in ("items.py", "layouts.py")]
    files = [*sorted((root / "models").glob("*.py")), *sorted((root / "kernels").glob("*.py"))]
    files += [*data, root / "testing.py"]
    files += sorted(path for path in (root / "kernels" / "cpu").iterdir() if path.is_file())
    return hashlib.sha256("".join(map(_file_digest, map(str, files))).encode()).hexdigest()


@cache
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
