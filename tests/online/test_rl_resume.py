"""Interrupted online runs, killed or stopped anywhere, end as if they had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.errors import RunError
from palate.models.generation.local import LocalEngine
from palate.recipes import resolve_yaml
from palate.store.rollouts import read_rollouts
from palate.train import checkpoint
from palate.train.loop import Loop
from palate.train.rollouts.collect import Collector
from palate.train.rollouts.held_out import HeldOutPrompts
from palate.train.sources.rollout import RolloutSource
from tiny_rl import ByText, assert_same, further, letters, log_of, merged, rl_recipe, run

COMMON: dict[str, Any] = {
    "n": 24,
    "train": {"max_steps": 9, "save_every_steps": 3, "log_every_steps": 2},
}
PPO: dict[str, Any] = merged(
    COMMON,
    {
        "algorithm": {"type": "ppo", "truncated": "bootstrap"},
        "train": {"num_mini_batches": 2, "num_iterations": 2},
        "kl": {"target": 0.05, "horizon": 50},
        "reward": {"whiten": True, "missing_eos": {"penalty": 0.1}},
    },
)
RUNS: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "ppo shared lora": merged(
        PPO,
        {
            "model": {"lora": {"r": 4}, "dtype": "bfloat16"},
            "value": {"kind": "shared", "warmup_steps": 2, "learning_rate": 1e-3},
        },
    ),
    "ppo lora": merged(PPO, {"model": {"lora": {"r": 4}}, "fidelity": "corrected"}),
    "ppo paper": merged(PPO, {"fidelity": "paper", "kl": {"target": None, "horizon": None}}),
    "grpo": merged(
        COMMON,
        {
            "algorithm": {"type": "grpo", "target_kl": 1e-3, "zero_variance": "resample"},
            "kl": {"form": "exact", "place": "loss", "future": True},
            "prompts": {"curriculum": {}},
            "train": {"num_mini_batches": 2, "num_iterations": 2, "layout": "shared"},
        },
    ),
    "online dpo": merged(
        COMMON,
        {
            "algorithm": {
                "type": "online_dpo",
                "sync_every": 4,
                "labels": "sampled",
                "pairs": "random",
            }
        },
    ),
}


class Stop(Exception):
    pass


def stops(method: Any, when: Callable[..., bool]) -> Any:
    def stopping(self: Any, *args: Any, **more: Any) -> Any:
        if when(self):
            raise Stop
        return method(self, *args, **more)

    return stopping


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], Path]:
    """Runs that nothing interrupts, each once."""
    finished: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in finished:
            held = {"prompts": {"eval": [{"path": str(folder / "held.jsonl")}]}}
            finished[name] = run(folder, **merged(RUNS[name], held))
        return finished[name]

    return of


def interrupted(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, *patches: tuple[Any, str, Any]
) -> Path:
    """A run of RUNS that is stopped by the patches, and then goes on without them."""
    held = {"prompts": {"eval": [{"path": str(folder / "held.jsonl")}]}}
    settings = merged(RUNS[name], held) | {"out": f"stopped-{name}-{time.monotonic_ns()}"}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        for owner, method, replacement in patches:
            patch.setattr(owner, method, replacement)
        run(folder, **settings)
    return run(folder, **settings, resume=True)


def assert_equal(a: Path, b: Path) -> None:
    """Weights, value model, log and rollouts, to the bit."""
    assert_same(a, b)
    one, other = (list(read_rollouts(path)) for path in (a, b))
    assert [(r.prompt, r.sample, r.response_ids, r.reward, r.dropped) for r in one] == [
        (r.prompt, r.sample, r.response_ids, r.reward, r.dropped) for r in other
    ]
    for x, y in zip(one, other, strict=True):
        assert x.tokens.keys() == y.tokens.keys()
        assert all((x.tokens[k] == y.tokens[k]).all() for k in x.tokens)
    if (max((a / "checkpoints").iterdir()) / "trainer/further.safetensors").exists():
        values, others = further(a), further(b)
        assert all(torch.equal(values[k], others[k]) for k in values)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("ppo", 4),
        ("ppo", 7),
        ("ppo shared lora", 4),
        ("ppo lora", 7),
        ("ppo paper", 7),
        ("grpo", 4),
        ("grpo", 7),
        ("online dpo", 7),
    ],
)
def test_stopped_in_an_update(
    name: str,
    after: int,
    folder: Path,
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Going on from the middle of the first rollout of four updates, or of the second."""
    step = stops(Loop.train_step, lambda loop: loop.step == after)
    assert_equal(whole(name), interrupted(folder, name, monkeypatch, (Loop, "train_step", step)))


WRITING = (LocalEngine, "generate", stops(LocalEngine.generate, lambda e: e.version == 2))
SCORING = (Collector, "_score", stops(Collector._score, lambda c: c.engine.version == 2))
MEASURED = (
    RolloutSource,
    "_micro_batches",
    stops(RolloutSource._micro_batches, lambda source: source._number == 1),
)


@pytest.mark.parametrize(
    ("name", "place"),
    [("ppo", WRITING), ("ppo", MEASURED), ("grpo", SCORING), ("online dpo", WRITING)],
    ids=["ppo writing", "ppo measured", "grpo scoring", "online dpo writing"],
)
def test_stopped_in_a_rollout(
    name: str,
    place: tuple[Any, str, Any],
    folder: Path,
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before it is written, before it is scored, and when it is on the disk, before an update."""
    assert_equal(whole(name), interrupted(folder, name, monkeypatch, place))


def test_stopped_in_an_evaluation_and_in_a_checkpoint(
    folder: Path, whole: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = stops(HeldOutPrompts.__call__, lambda measure: True)
    path = interrupted(folder, "ppo", monkeypatch, (HeldOutPrompts, "__call__", evaluation))
    assert_equal(whole("ppo"), path)
    count = 0

    def second_time(states: Any, folder: Path) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise Stop
        save_random(states, folder)

    save_random = checkpoint.save_random
    path = interrupted(folder, "ppo", monkeypatch, (checkpoint, "save_random", second_time))
    assert_equal(whole("ppo"), path)


def test_no_prompt_is_skipped_or_repeated(whole: Callable[[str], Path]) -> None:
    for name, first in (("ppo", 12), ("online dpo", 24)):
        prompts = [row.prompt for row in read_rollouts(whole(name)) if row.sample == 0]
        assert len(set(prompts[:first])) == len(prompts[:first]) == first


CHILD = """
import sys, time
from palate.recipes import load_recipe
from palate.recipes.rl import RlRecipe
from palate.models.generation.local import LocalEngine
from palate.train.rl_run import rl
import palate.report
palate.report.write_report = lambda runs, *more: runs[0] / "report.html"
from pathlib import Path
from palate.train import checkpoint
from tiny_rl import ByText, letters

recipe, mode = sys.argv[1:3]
if mode == "rollout":
    generate = LocalEngine.generate
    def slow(self, *args, **more):
        if self.version == 2:
            Path(recipe).with_suffix(".there").touch()
            time.sleep(60)
        return generate(self, *args, **more)
    LocalEngine.generate = slow
else:
    save = checkpoint.save_random
    def slow(states, folder):
        save(states, folder)
        if "000006" in str(folder):
            Path(recipe).with_suffix(".there").touch()
            time.sleep(60)
    checkpoint.save_random = slow
rl(load_recipe(RlRecipe, recipe), quiet=True, scorer=ByText(letters))
"""


@pytest.mark.parametrize("mode", ["rollout", "checkpoint"])
def test_killed(mode: str, folder: Path, whole: Callable[[str], Path]) -> None:
    held = {"prompts": {"eval": [{"path": str(folder / "held.jsonl")}]}}
    settings = merged(RUNS["ppo"], held) | {"out": f"killed-{mode}"}
    file = folder / f"{mode}.yaml"
    file.write_text(resolve_yaml(rl_recipe(folder, **settings)))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), mode],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    end = time.monotonic() + 240
    while not file.with_suffix(".there").exists():
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    path = run(folder, **settings, resume=True)
    assert_equal(whole("ppo"), path)


def test_what_changed_meanwhile_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_rl import write_prompts

    rows = folder / "prompts9.jsonl"
    settings: dict[str, Any] = {"n": 9, "out": "changed", "train": {"save_every_steps": 1}}
    step = stops(Loop.train_step, lambda loop: loop.step == 1)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Loop, "train_step", step)
        run(folder, **settings)
    write_prompts(rows, 9, first=50)
    with pytest.raises(RunError, match="the training prompts changed"):
        run(folder, **settings, resume=True)
    write_prompts(rows, 9)
    (folder / "changed/rollouts/000000.parquet").unlink()
    # The rollout that the checkpoint is at the end of is not needed again.
    assert log_of(run(folder, **settings, resume=True))[-1]["step"] == 2
    assert ByText(letters).counts == {}
