"""Online runs of models that see: GRPO, and PPO whose value model sees too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palate.models import model as model_module
from palate.models import vision
from palate.recipes.rl import RlRecipe
from palate.store.rollouts import read_rollouts
from palate.train.loop import Loop
from palate.train.rl_run import rl
from tiny_rl import ByText, letters, log_of, merged
from tiny_runs import write_rows
from tiny_vision import IMAGE, VIDEO, save_tiny_vision


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees, and six prompts about two pictures, one of them about none."""
    folder = tmp_path_factory.mktemp("sees")
    save_tiny_vision(folder / "base", "qwen2_5_vl")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        squares = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((64, 48), Image.Resampling.NEAREST).save(
            folder / f"{name}.png"
        )
    rows = []
    for i, shown in enumerate((["a"], ["b"], ["a", "b"], [], ["b"], ["a"])):
        parts: list[Any] = [{"type": "image"} for _ in shown]
        parts.append({"type": "text", "text": f"What is here, {i}?"})
        content: Any = parts if shown else f"What is here, {i}?"
        turn = {"role": "user", "content": content}
        rows.append({"prompt": [turn], "images": [f"{name}.png" for name in shown]})
    write_rows(folder / "prompts.jsonl", rows)
    return folder


def recipe(root: Path, out: str, **more: Any) -> RlRecipe:
    base: dict[str, Any] = {
        "output_dir": str(root / out),
        "model": {"path": str(root / "base"), "dtype": "float32"},
        "prompts": {"train": [{"path": str(root / "prompts.jsonl")}]},
        "reward": {"scorer": {"type": "rule", "pattern": "e"}},
        "rollout": {"batch_size_prompts": 3, "num_generations": 3, "max_new_tokens": 5},
        "train": {"learning_rate": 1e-2, "max_steps": 4, "layout": "shared", "num_mini_batches": 3},
    }
    return RlRecipe.model_validate(merged(base, more))


@pytest.mark.parametrize(
    "more",
    [
        {"algorithm": {"type": "grpo"}, "kl": {"form": "exact", "place": "loss"}},
        {"algorithm": {"type": "ppo"}, "model": {"lora": {"r": 4}}},
        {"algorithm": {"type": "ppo"}, "kl": {"form": "exact", "place": "loss"}},
        {"algorithm": {"type": "ppo"}, "value": {"kind": "shared"}},
    ],
    ids=["grpo", "ppo lora", "ppo exact", "ppo shared"],
)
def test_policy_and_value_see(
    more: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Counter[int]] = []
    features = vision.image_features

    def counted(backbone: Any, pixels: Any, lengths: Any) -> Any:
        if passes:
            passes[-1][id(backbone)] += len(pixels)
        return features(backbone, pixels, lengths)

    step = Loop._forward

    def watched(self: Loop, micro: Any, state: Any, meter: Any) -> Any:
        passes.append(Counter())
        output = step(self, micro, state, meter)
        seen = passes[-1]
        unique = 0 if micro.batch.images is None else len(micro.batch.images.digests)
        # Each tower once for each image, that of the policy for its reference too.
        assert set(seen.values()) <= {unique}
        assert len(seen) == (len(self.job.model.trunks) if unique else 0)
        return output

    for module in (vision, model_module):
        monkeypatch.setattr(module, "image_features", counted)
    monkeypatch.setattr(Loop, "_forward", watched)
    name = f"run{len(list(root.iterdir()))}"
    path = rl(recipe(root, name, **more), quiet=True, scorer=ByText(letters)).path
    log = log_of(path)
    assert len(log) == 4 and any(sum(seen.values()) for seen in passes)
    assert log[0]["ratio/first"] == 0.0 and log[1]["ratio/max"] > 1.0
    rows = list(read_rollouts(path))
    # Tokens that stand for pictures are never drawn.
    assert not {IMAGE, VIDEO} & {token for row in rows for token in row.response_ids}


def test_values_and_samples_depend_on_the_picture(root: Path) -> None:
    """Two prompts of the same words under two pictures."""
    rows = [
        {
            "prompt": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
            ],
            "images": [f"{name}.png"],
        }
        for name in ("a", "b")
    ]
    write_rows(root / "two.jsonl", rows)
    more: dict[str, Any] = {
        "algorithm": {"type": "ppo"},
        "prompts": {"train": [{"path": str(root / "two.jsonl")}]},
        "rollout": {"batch_size_prompts": 2, "num_generations": 4},
        "train": {"max_steps": 2, "num_mini_batches": 1, "optimizer": "sgd"},
    }
    path = rl(recipe(root, "two", **more), quiet=True, scorer=ByText(letters)).path
    second = [row for row in read_rollouts(path) if row.rollout == 1]
    first_values = {row.prompt: float(row.tokens["values"][0]) for row in second}
    first_logps = {row.prompt: float(row.tokens["old_logps"][0]) for row in second}
    assert len(set(first_values.values())) == 2 and len(set(first_logps.values())) == 2
