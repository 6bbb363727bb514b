"""The cache of tensors by content: kept as it goes, whole, shared, one for every format."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palate.errors import ModelError, RunError
from palate.store import cache as module
from palate.store.cache import Column, TensorCache, share_of

RAGGED = {"logp": Column(), "hidden": Column((3,), torch.bfloat16)}
ROWS = {"features": Column((5,), torch.float16)}


def key(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def ragged(i: int) -> dict[str, torch.Tensor]:
    """An entry of i % 4 rows, of its number alone; some entries have none."""
    rows = torch.arange(i % 4)
    return {
        "logp": (rows + i).float(),
        "hidden": (rows[:, None] * 3 + torch.arange(3) + i).to(torch.bfloat16),
    }


def row(i: int) -> dict[str, torch.Tensor]:
    return {"features": (torch.arange(5)[None] - i).half()}


FORMATS: dict[str, tuple[Any, Any]] = {"ragged": (RAGGED, ragged), "rows": (ROWS, row)}


def filled(root: Path, n: int, form: str = "ragged", identity: Any = "a") -> TensorCache:
    columns, make = FORMATS[form]
    made = TensorCache(root, identity, columns)
    with made.writing():
        for i in range(n):
            made.add({key(i): make(i)})
    made.refresh()
    return made


@pytest.mark.parametrize("form", FORMATS)
def test_what_was_added_is_read_back_through_any_number_of_shards(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 40)
    columns, make = FORMATS[form]
    filled(tmp_path, 12, form)
    again = TensorCache(tmp_path, "a", columns)
    again.refresh()
    again.check()
    assert len(again) == 12 and len(list(again.folder.glob("shard-*"))) > 2
    for i in range(12):
        found, want = again.read(key(i)), make(i)
        assert found.keys() == want.keys()
        assert all(torch.equal(found[name], want[name]) for name in want)
        assert all(found[name].dtype == want[name].dtype for name in want)
    with pytest.raises(RunError, match="lacks entry"):
        again.read(key(99))


def test_rows_are_gathered_in_the_order_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 40)
    made = filled(tmp_path, 12, "rows")
    order = np.random.default_rng(0).integers(0, 12, 40)
    got = made.gather("features", made.places(key(i) for i in order))
    assert torch.equal(got, torch.cat([row(i)["features"] for i in order]))
    with pytest.raises(RunError, match="lacks entry"):
        made.places([key(3), key(99)])


def test_identities_do_not_meet_and_equal_entries_are_kept_once(tmp_path: Path) -> None:
    first = filled(tmp_path, 3)
    assert first.folder != filled(tmp_path, 2, identity={"of": "b"}).folder
    again = TensorCache(tmp_path, "a", RAGGED)
    again.refresh()
    again.add({key(i): ragged(i) for i in range(3)})
    again.flush()
    assert len(list(again.folder.glob("shard-*"))) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_pass_that_ends_half_way_keeps_what_it_computed(
    error: type[BaseException], tmp_path: Path
) -> None:
    made = TensorCache(tmp_path, "a", RAGGED)
    with pytest.raises(error), made.writing():
        for i in range(10):
            if i == 7:
                raise error
            made.add({key(i): ragged(i)})
    again = TensorCache(tmp_path, "a", RAGGED)
    again.refresh()
    assert [key(i) in again for i in range(10)] == [True] * 7 + [False] * 3


CHILD = """
import hashlib, sys, time, torch
from pathlib import Path
from palate.store import cache
cache.SHARD_SECONDS = 0.05
made = cache.TensorCache(Path(sys.argv[1]), "a", {"features": cache.Column((5,), torch.float16)})
with made.writing():
    for i in range(1_000):
        features = (torch.arange(5)[None] - i).half()
        made.add({hashlib.sha256(str(i).encode()).digest(): {"features": features}})
        time.sleep(0.005)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_process_loses_no_more_than_the_last_shard(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    try:
        while len(list(tmp_path.glob("*/shard-*"))) < 3:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    again = TensorCache(tmp_path, "a", ROWS)
    again.refresh()
    again.check()
    assert len(again) >= 3
    # From the first on without a gap: all but what was not yet written.
    for i in range(len(again)):
        assert torch.equal(again.read(key(i))["features"], row(i)["features"])


def test_processes_add_to_one_folder_and_share_the_work_by_content(tmp_path: Path) -> None:
    parts = [TensorCache(tmp_path, "a", RAGGED) for _ in range(3)]
    for rank, part in enumerate(parts):
        part.refresh()
        with part.writing():
            part.add({key(i): ragged(i) for i in range(20) if share_of(key(i), 3) == rank})
    counts = []
    for part in parts:
        counts.append(sum(key(i) in part for i in range(20)))
        part.refresh()
        assert len(part) == 20 and all(
            torch.equal(part.read(key(7))[n], ragged(7)[n]) for n in RAGGED
        )
    assert counts[0] < 20


def flip(path: Path, tensor: str) -> None:
    """One bit of a tensor's first value, on the disk."""
    import json

    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + size])[tensor]["data_offsets"][0]
    data[8 + size + start] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("tensor", ["logp", "hidden", "keys", "offsets", "checksums"])
@pytest.mark.parametrize("way", ["read", "check"])
def test_a_damaged_shard_is_refused_by_name(tensor: str, way: str, tmp_path: Path) -> None:
    (path,) = filled(tmp_path, 9).folder.glob("shard-*")
    flip(path, tensor)
    again = TensorCache(tmp_path, "a", RAGGED)
    with pytest.raises(RunError, match=f"{path.name}.*damaged.*delete it"):
        again.refresh()
        again.check() if way == "check" else again.read(key(1))


def test_one_damaged_row_is_refused_when_it_is_gathered(tmp_path: Path) -> None:
    made = filled(tmp_path, 9, "rows")
    (path,) = made.folder.glob("shard-*")
    flip(path, "features")
    again = TensorCache(tmp_path, "a", ROWS)
    again.refresh()
    again.gather("features", again.places([key(1), key(2)]))
    with pytest.raises(RunError, match=f"{path.name}.*damaged"):
        again.gather("features", again.places([key(1), key(0)]))


def test_a_shard_of_another_cache_or_form_is_refused(tmp_path: Path) -> None:
    (path,) = filled(tmp_path, 3).folder.glob("shard-*")
    for identity, columns in (("b", RAGGED), ("a", ROWS), ("a", {"logp": Column()})):
        wrong = TensorCache(tmp_path, identity, columns)
        wrong.folder.mkdir(exist_ok=True)
        if not (wrong.folder / path.name).exists():
            (wrong.folder / path.name).write_bytes(path.read_bytes())
        with pytest.raises(RunError, match=f"{path.name}.*another model"):
            wrong.refresh()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match=f"{path.name}: not a readable cache shard"):
        TensorCache(tmp_path, "a", RAGGED).refresh()


def test_stored_entries_are_compared_with_live_ones(tmp_path: Path) -> None:
    made = filled(tmp_path, 9)

    def distance(stored: Any, live: Any) -> float:
        return float((stored["logp"] - live["logp"]).abs().max())

    def compare(record: Any) -> None:
        made.compare([(key(7), record)], distance, tolerance=0.1, of="backbone")

    compare(ragged(7))
    for change in (lambda t: t + 1, lambda t: t[:-1], lambda t: t * torch.nan):
        record = ragged(7)
        record["logp"] = change(record["logp"])
        with pytest.raises(ModelError, match="off the live backbone"):
            compare(record)
