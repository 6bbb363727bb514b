"""What the documents point at runs: the flat loop, the example recipes, the README's recipe."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from build_cases import rows_of
from palate.data.construct.build import build
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.judge import Texts
from palate.recipes.load import VERBS, load_recipe
from palate.recipes.reward import RewardRecipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.schema import TuneRecipe
from palate.recipes.scorers import CriticScorer, Scorer, parts_of
from palate.recipes.yaml import parse_yaml
from tiny_runs import write_pairs
from tiny_text import save_tiny

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("PALATE_DATA") or ROOT.parent.resolve() / "shared" / "data")
RATINGS = DATA / "alpaca_eval_ratings" / "test.jsonl.gz"
SIDES = ("chosen", "rejected")


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


@pytest.mark.parametrize("path", sorted((ROOT / "examples/build").glob("*.yaml")), ids=str)
def test_example_builds_are_valid(path):
    load_recipe(DataBuildRecipe, path, [])


@pytest.mark.skipif(not RATINGS.exists(), reason=f"no public data at {DATA}: set PALATE_DATA")
def test_ratings_are_built_without_attacks_and_length_tells_nothing_of_them(tmp_path):
    overrides = [f"output_dir={tmp_path / 'out'}", f"sources.0.path={RATINGS}", "workers=1"]
    build(
        load_recipe(DataBuildRecipe, ROOT / "examples/build/alpaca-ratings.yaml", overrides),
        code={},
    )
    with gzip.open(RATINGS, "rt") as file:
        answers = [answer for line in file for answer in json.loads(line)["completions"]]
    attacks = {a["output"] for a in answers if a["generator"] == "example"}
    attacks |= {a["output"] for a in answers if len(a["output"]) <= 10}
    assert len(attacks) > 70
    rows = rows_of(tmp_path / "out")
    texts = [[turn["content"] for turn in row[side]] for row in rows for side in SIDES]
    assert len(rows) > 100 and not attacks & {text for (text,) in texts}
    sizes = [[len(row[side][0]["content"]) for side in SIDES] for row in rows]
    longer = sum(chosen > rejected for chosen, rejected in sizes)
    shorter = sum(chosen < rejected for chosen, rejected in sizes)
    # Of 750 pairs with the same rule four in five have the longer answer chosen.
    assert 0.4 * len(rows) < longer <= shorter


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("reward", RewardRecipe), ("candidates", EvalRecipe), ("curves", RewardEvalRecipe)],
)
def test_best_of_n_recipes_are_valid(name, recipe):
    load_recipe(recipe, ROOT / f"examples/best-of-n/{name}.yaml", [])


def blocks(page):
    """The blocks of YAML of a page; those in a list are indented with it."""
    found = re.findall(r"^( *)```yaml\n(.*?)^\1```", (ROOT / page).read_text(), re.S | re.M)
    return [textwrap.dedent(text) for _, text in found]


@pytest.mark.parametrize("page", ["README.md", "docs/your-own-pairs.md"])
def test_recipes_in_the_documents_are_valid(tmp_path, page):
    whole = [block for block in blocks(page) if "output_dir" in block]
    assert whole
    for block in whole:
        path = tmp_path / "recipe.yaml"
        path.write_text(block)
        load_recipe(TuneRecipe, path, [])


@pytest.mark.parametrize(
    ("page", "verbs"),
    [
        ("reward-models", ["reward"]),
        ("judges", ["judge", "eval reward"]),
        ("evaluating-reward-models", ["eval reward"]),
        ("serving", ["score", "serve", "serve"]),
    ],
)
def test_recipes_that_say_whose_they_are_are_valid(tmp_path, page, verbs):
    """By their first line, as `palate` knows them."""
    classes = {verb: cls for cls, verb in VERBS.items()}
    whole = [block for block in blocks(f"docs/{page}.md") if block.startswith("# palate ")]
    assert [block.partition("\n")[0].removeprefix("# palate ") for block in whole] == verbs
    for verb, block in zip(verbs, whole, strict=True):
        path = tmp_path / "recipe.yaml"
        path.write_text(block)
        load_recipe(classes[verb], path, [])


def test_parts_of_a_judges_recipe_are_valid():
    parts = [b for b in blocks("docs/judges.md") if not b.startswith("# palate ")]
    block, given = parts
    TypeAdapter(CriticScorer).validate_python(parse_yaml(given, "test")["scorer"])
    texts = re.split(r"^(?=texts:)", block, flags=re.M)[1:]
    kinds = [TypeAdapter(Texts).validate_python(parse_yaml(t, "test")["texts"]).type for t in texts]
    assert kinds == ["column"] * 3 + ["chat"] * (len(kinds) - 3)


def test_rewards_of_online_learning_are_valid_and_all_there():
    parts = [parse_yaml(block, "test")["scorer"] for block in blocks("docs/rewards-online.md")]
    shown = [TypeAdapter(Scorer).validate_python(part) for part in parts]
    kinds = {part.type for scorer in shown for _, part in parts_of(scorer) if hasattr(part, "type")}
    new = {
        "function",
        "rule",
        "verifier",
        "hybrid",
        "rubric",
        "pairwise",
        "judge_verdict",
        "remote",
    }
    assert new | {"mixture"} <= kinds


def test_what_the_pages_of_reward_models_link_to_is_there():
    pages = ("reward-models", "judges", "evaluating-reward-models", "serving", "rewards-online")
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / f"docs/{page}.md").read_text()):
            assert "://" in target or (ROOT / "docs" / target).exists(), (page, target)
    assert "../examples/best-of-n/" in (ROOT / "docs/evaluating-reward-models.md").read_text()
