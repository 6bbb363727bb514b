"""What a figure was measured on, in one line: it stands beside every ratio."""

from __future__ import annotations

import os
import platform
from pathlib import Path

FEATURES = {
    "amx_bf16": "AMX bfloat16",
    "avx512_bf16": "AVX-512 bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""Flags of /proc/cpuinfo that decide how fast products in bfloat16 are, the strongest first."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, what it has and lacks for bfloat16, the cores that may be used, and torch's own.

    Where there is no such file, the platform's word for the machine.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, has = platform.processor() or platform.machine(), "features not known"
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        name = facts.get("model name", name)
        if family := facts.get("cpu family"):
            name += f" (family {family}, model {facts.get('model', '?')})"
        if flags := facts.get("flags", facts.get("Features")):
            words = flags.split()
            best = ("amx_bf16", "avx512_bf16")
            have = [FEATURES[flag] for flag in FEATURES if flag in words]
            lack = [f"no {FEATURES[flag]}" for flag in best if flag not in words]
            has = ", ".join([*have, *lack])
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"processor: {name}, {cores} cores, {torch.get_num_threads()} threads: {has}{device}; "
        f"torch {torch.__version__}"
    )
