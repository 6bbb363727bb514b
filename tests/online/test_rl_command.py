"""`palate rl` on the command line: what it shows, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from palate.cli import app
from palate.recipes import load_recipe, resolve_yaml
from palate.recipes.load import shipped_recipes
from palate.recipes.rl import RlRecipe
from palate.store.files import read_json
from tiny_rl import document, merged
from tiny_runs import write_rows
from tiny_text import tiny_tokenizer


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def written(folder: Path, **more: Any) -> str:
    file = folder / "command.yaml"
    file.write_text(yaml.safe_dump(document(folder, **more)))
    return str(file)


def placed(folder: Path) -> Path:
    path = folder / "placed"
    if not path.exists():
        config = GPT2Config(
            vocab_size=259, n_embd=32, n_layer=1, n_head=2, n_positions=16, eos_token_id=2
        )
        GPT2LMHeadModel(config).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path


def test_help_names_the_keys() -> None:
    result = invoke("rl", "--help")
    assert result.exit_code == 0
    for words in ("algorithm", "kl.form", "rollout.num_generations", "value.kind", "grpo-small"):
        assert words in result.output, words


def test_print_recipe_shows_what_will_run(folder: Path) -> None:
    result = invoke("rl", written(folder), "--set", "algorithm.type=ppo", "--print-recipe")
    assert result.exit_code == 0
    shown = yaml.safe_load(result.output)
    assert shown["algorithm"]["lam"] == 0.95 and shown["rollout"]["temperature"] == 1.0
    recipe = RlRecipe.model_validate(shown)
    assert recipe.algorithm.type == "ppo" and not Path(shown["output_dir"]).exists()


def test_shipped_recipes_load() -> None:
    kinds = {name: load_recipe(RlRecipe, name) for name in shipped_recipes("rl")}
    assert len(kinds) >= 5
    assert {recipe.algorithm.type for recipe in kinds.values()} >= {"ppo", "grpo", "rloo"}
    assert [r.fidelity for n, r in kinds.items() if "paper" in n] == ["paper"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"algorithm": {"type": "pro"}}, "algorithm"),
        ({"algorithm": {"type": "grpo", "lam": 0.9}}, "algorithm.lam"),
        ({"kl": {"form": "k4"}}, "kl.form"),
        ({"kl": {"form": "k3"}}, "`kl.form`: k3 in the reward"),
        ({"rollout": {"num_generation": 3}}, "rollout.num_generation"),
        ({"train": {"num_mini_batches": 3}}, "`train.num_mini_batches`: does not divide"),
        ({"prompts": {"train": [{"path": "none.jsonl"}]}}, "none.jsonl"),
        ({"model": {"path": "/no/such/model"}}, "/no/such/model"),
        ({"reward": {"scorer": {"type": "model", "path": "/no/reward"}}}, "/no/reward"),
        (
            {"reward": {"scorer": {"type": "function", "path": "/no/rewards.py:f"}}},
            "/no/rewards.py",
        ),
        ({"model": {"path": "placed"}}, "`rollout.max_new_tokens`: a sequence has 18 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_that_names_it(
    more: dict[str, Any], words: str, folder: Path
) -> None:
    if more == {"model": {"path": "placed"}}:
        # A model with places for sixteen tokens.
        more = {"model": {"path": str(placed(folder))}}
    result = invoke("rl", written(folder, **more))
    assert result.exit_code != 0
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if "model shards" not in line]
    assert words in result.stderr and "Traceback" not in result.stderr
    assert len(lines) == 1, lines


@pytest.mark.parametrize(
    "more",
    [
        {"algorithm": {"type": "grpo", "loss_type": "cispo"}, "prompts": {"curriculum": {}}},
        {"algorithm": {"type": "ppo"}, "value": {}, "kl": {}, "reference": {}},
        {"algorithm": {"type": "online_dpo"}},
    ],
    ids=["grpo", "ppo", "online dpo"],
)
def test_a_recipe_with_every_key_written_out_is_the_same_recipe(
    more: dict[str, Any], folder: Path
) -> None:
    recipe = RlRecipe.model_validate(document(folder, **more))
    file = folder / "whole.yaml"
    file.write_text(resolve_yaml(recipe))
    assert load_recipe(RlRecipe, file) == recipe


def test_what_was_read_and_dropped_is_recorded(folder: Path) -> None:
    rows = [{"prompt": f"{i} cat: "} for i in (0, 1, 1, 2)]
    file = write_rows(folder / "repeated.jsonl", [*rows, {"prompt": ""}, {"prompt": "x" * 600}])
    settings = merged({"prompts": {"train": [{"path": str(file)}]}}, {"train": {"max_steps": 1}})
    recipe = written(folder, **settings, rollout={"batch_size_prompts": 2})
    result = invoke("rl", recipe)
    assert result.exit_code == 0, result.stderr
    out = Path(yaml.safe_load(Path(recipe).read_text())["output_dir"])
    (source,) = read_json(out / "data.json")["sources"]
    assert source["kept"] == 3
    lost = [*source["dropped"].values(), *source["rejected"].values()]
    assert lost == [1, 1, 1] and source["read"] == source["kept"] + sum(lost)
    assert "learning from 3 prompts, 1 steps" in result.stderr
