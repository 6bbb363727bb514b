"""Freed memory that stays in the process, where tensors live in the machine's own memory.

A step frees nearly all that it took, and the next takes it again. By default glibc gives large
freed blocks back to the system, which then has to find, clear and map every page of them anew: on
small models up to a third of a training step (`benchmarks/kept_memory.py`).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MAX_FAST, TRIM_THRESHOLD, MMAP_THRESHOLD = 1, -1, -3
"""Parameters of glibc's `mallopt`: size up to which freed blocks are not joined with free
neighbours; free memory at the end of the heap beyond which it goes back to the system; size from
which a block has pages of its own, which go back when it is freed."""

KEPT = {MMAP_THRESHOLD: 2**31 - 1, TRIM_THRESHOLD: 2**31 - 1, MAX_FAST: 0}
"""Everything stays, and is joined: beside an aligned tensor lie a few bytes of no use, which would
part what was freed into pieces just too small for the next tensor of that size."""

USUAL = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20, MAX_FAST: 128}
"""glibc's own; the first two grow with what is freed, to these values in such a process."""

_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory is kept for later tensors until the block ends, and given back then.

    Does nothing with an accelerator, with another C library than glibc, or where the environment
    has settings for malloc. No number that is computed depends on it. Peak memory is the same to a
    few percent where activations make it, and a fifth more where a small model only scores. Blocks
    may be nested; the outermost decides.
    """
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    if _depth == 0:
        for parameter, value in KEPT.items():
            library.mallopt(parameter, value)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            for parameter, value in USUAL.items():
                library.mallopt(parameter, value)
            library.malloc_trim(0)


def peak_bytes() -> int:
    """The most memory that this process has held: on CUDA that torch allocated, else its own.

    0 where the system does not tell.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        # Of this program alone: what `getrusage` tells begins with that of whatever started it.
        peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        peak = None
    return int(peak[1]) * 1024 if peak else _rusage_bytes()


def _rusage_bytes() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _glibc() -> ctypes.CDLL | None:
    """The C library, where its settings are ours to choose."""
    # glibc's thresholds are set by variables that end in an underscore.
    chosen = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    if torch.accelerator.is_available():
        return None
    try:
        library = ctypes.CDLL(None)
        # Only glibc has all three; musl and others have no `mallopt`.
        if library.gnu_get_libc_version and library.mallopt and library.malloc_trim:
            return library
    except (AttributeError, OSError, TypeError):
        pass
    return None
