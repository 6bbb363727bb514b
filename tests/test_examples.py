"""What the documents point at runs: the flat loop, the example recipes, the README's recipe."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from palate.recipes.load import load_recipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.schema import EvalRecipe, TuneRecipe
from tiny_runs import write_pairs
from tiny_text import save_tiny

ROOT = Path(__file__).parent.parent


def test_the_flat_loop_trains(tmp_path, monkeypatch, capsys):
    model = save_tiny(tmp_path / "model", "gemma3")
    pairs = write_pairs(tmp_path / "pairs.jsonl", 6)
    arguments = ["tdpo_loop.py", str(model), str(pairs), "--steps", "4", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--learning-rate", "0.01"])
    spec = importlib.util.spec_from_file_location("tdpo_loop", ROOT / "examples/tdpo_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    # At the start policy and reference are one: ln 2, no KL.
    assert "loss 0.6931" in lines[0] and "KL chosen 0.00  rejected 0.00" in lines[0]
    assert "KL chosen 0.00" not in lines[-1]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_recipes_are_valid(path):
    load_recipe(TuneRecipe, path, [])


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("reward", RewardRecipe), ("candidates", EvalRecipe), ("curves", RewardEvalRecipe)],
)
def test_best_of_n_recipes_are_valid(name, recipe):
    load_recipe(recipe, ROOT / f"examples/best-of-n/{name}.yaml", [])


@pytest.mark.parametrize("page", ["README.md", "docs/your-own-pairs.md"])
def test_recipes_in_the_documents_are_valid(tmp_path, page):
    blocks = re.findall(
        r"```yaml\n(.*?)```", (ROOT / page).read_text().replace("\n   ", "\n"), re.S
    )
    whole = [block for block in blocks if "output_dir" in block]
    assert whole
    for block in whole:
        path = tmp_path / "recipe.yaml"
        path.write_text(block)
        load_recipe(TuneRecipe, path, [])
