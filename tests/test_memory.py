"""Freed memory that is kept: seen by the pages that the system has to map, in a fresh process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import json
import resource
from pathlib import Path

import torch

from palate.memory import kept_memory

# Beyond the size up to which glibc may learn to keep blocks by itself.
BLOCK = 40 * 2**20


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(BLOCK, dtype=torch.uint8) for _ in range(5)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


faults()
found = {"before": faults()}
start = resident()
with kept_memory():
    # It takes some rounds until what lies between the blocks no longer parts them.
    for _ in range(12):
        faults()
    with kept_memory():
        found["kept"] = faults()
    found["after_inner"] = faults()
    found["held"] = resident() - start
found["left"] = resident() - start
found["after"] = faults()
print(json.dumps(found))
"""

BYTES = 5 * 40 * 2**20
PAGES = BYTES // 4096


def run(**environment: str) -> dict[str, int]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**own, **environment},
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc"
    or os.sysconf("SC_PAGE_SIZE") != 4096
    or torch.accelerator.is_available(),
    reason="needs glibc, pages of 4 KiB, and no accelerator",
)
class TestKeptMemory:
    def test_pages_are_mapped_once_and_given_back_at_the_end(self) -> None:
        found = run()
        assert found["before"] > 0.9 * PAGES  # the reason for all this
        assert found["kept"] < 0.1 * PAGES
        assert found["after_inner"] < 0.1 * PAGES  # the outer block decides
        assert 0.9 * BYTES < found["held"] < 4 * BYTES
        assert found["left"] < 0.1 * BYTES
        assert found["after"] > 0.9 * PAGES

    @pytest.mark.parametrize(
        "environment",
        [
            {"MALLOC_MMAP_THRESHOLD_": "1000000"},
            {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
        ],
        ids=["variable", "tunable"],
    )
    def test_settings_of_the_environment_stay(self, environment: dict[str, str]) -> None:
        found = run(**environment)
        assert found["kept"] > 0.9 * PAGES
        assert found["after"] > 0.9 * PAGES
