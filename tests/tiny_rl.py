"""Small runs of online learning over a tiny Llama and prompts written on the spot."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from palate.data.scorer import Group, Score, Traits
from palate.recipes.rl import RlRecipe
from palate.store.folder import RunFolder
from palate.train.loop import Job
from palate.train.rl_run import RlRun, rl
from tiny_runs import lines, write_rows
from tiny_text import save_tiny

TIMES = ("time", "seconds", "_per_second", "seconds_left")
"""What the names of figures contain that no two runs share."""
_NUMBERS = itertools.count()


def save_stopping(folder: Path, *, seed: int = 0) -> Path:
    """A tiny Llama of which one token in four ends a response."""
    save_tiny(folder, seed=seed)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    # Bytes that are no letters: those have ids from 67 on.
    file.write_text(json.dumps(settings | {"eos_token_id": [2, *range(150, 210)]}))
    return folder


def write_prompts(path: Path, n: int, *, first: int = 0) -> Path:
    return write_rows(path, [{"prompt": f"{i} red cat: "} for i in range(first, first + n)])


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """a with what b says, inside of mappings too."""
    both = dict(a)
    for key, value in b.items():
        inner = both.get(key)
        nested = isinstance(inner, Mapping) and isinstance(value, Mapping)
        both[key] = merged(inner, value) if nested else value
    return both


def document(folder: Path, *, n: int = 8, out: str = "", **more: Any) -> dict[str, Any]:
    """A recipe as YAML would have it; the model and the prompts are made in `folder` on first
    use.

    Args:
        n: prompts. out: name of the run folder; default: a new one.
    """
    if not (folder / "tiny").exists():
        save_stopping(folder / "tiny")
    rows, held = folder / f"prompts{n}.jsonl", folder / "held.jsonl"
    if not rows.exists():
        write_prompts(rows, n)
    if not held.exists():
        write_prompts(held, 3, first=100)
    base: dict[str, Any] = {
        "output_dir": str(folder / (out or f"run{next(_NUMBERS)}")),
        "model": {"path": str(folder / "tiny"), "dtype": "float32"},
        "prompts": {"train": [{"path": str(rows)}]},
        "rollout": {"batch_size_prompts": 4, "num_generations": 4, "max_new_tokens": 6},
        "train": {"learning_rate": 1e-2, "max_steps": 2, "layout": "plain"},
    }
    # Asked in no test that hands over a scorer of its own.
    scorer = {"reward": {"scorer": {"type": "rule", "pattern": "e"}}}
    return merged(base if "scorer" in more.get("reward", {}) else merged(base, scorer), more)


def rl_recipe(folder: Path, **more: Any) -> RlRecipe:
    return RlRecipe.model_validate(document(folder, **more))


class ByText:
    """Scores each response by a function of its text alone; None is no score.

    Args:
        more: further fields of a score.

    Attributes:
        asked: the groups that it was asked for.
    """

    name = "by text"
    traits = Traits(modalities=frozenset({"text", "image"}), reads_prompt=False)

    def __init__(
        self,
        value: Callable[[str], float | None],
        *,
        more: Callable[[str], dict[str, Any]] | None = None,
    ) -> None:
        self.value = value
        self.more = more
        self.counts: Counter[str] = Counter()
        self.asked: list[Group] = []

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        self.asked += groups
        return [[self._score(str(text)) for text in group.responses] for group in groups]

    def _score(self, text: str) -> Score:
        value = self.value(text)
        if value is None:
            return Score(None, "no number")
        return Score(value, **({} if self.more is None else self.more(text)))


def letters(text: str) -> float:
    """The share of lower-case letters: about one in ten of random bytes."""
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


def run(folder: Path, *, scorer: Any = None, **more: Any) -> Path:
    """A finished run; its folder."""
    recipe = rl_recipe(folder, **more)
    return rl(recipe, quiet=True, scorer=scorer or ByText(letters)).path


def log_of(path: Path, split: str | None = "train") -> list[dict[str, Any]]:
    """Lines of the log without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if not any(word in k for word in TIMES)}
        for line in lines(path / "metrics.jsonl")
        if split is None or line["split"] == split
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Of the model that a run saved."""
    (file,) = (path / "model").glob("*.safetensors")
    return load_file(file)


def further(path: Path) -> dict[str, torch.Tensor]:
    """Of the value model in the last checkpoint of a run."""
    last = max((path / "checkpoints").iterdir())
    return load_file(last / "trainer" / "further.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """Two runs ended with the same weights and wrote the same log, bit for bit."""
    assert not differ(a, b)
    assert log_of(a, None) == log_of(b, None)


def differ(a: Path, b: Path) -> bool:
    """Whether two runs ended with different weights."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


def assert_close(a: Path, b: Path, *, atol: float = 1e-5) -> None:
    """Two runs ended with the same weights but for rounding."""
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=atol, msg=name)


def started(folder: Path, *, scorer: Any = None, **more: Any) -> tuple[Job, RlRecipe]:
    """The job of a run before its first step, and its recipe."""
    recipe = rl_recipe(folder, **more)
    begun = RlRun(recipe, quiet=True, scorer=scorer or ByText(letters))
    job, _ = begun.start(RunFolder(recipe, writes=True))
    return job, recipe
