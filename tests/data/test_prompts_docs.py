"""The recipes of docs/policy-prompts.md are recipes, and its table and samples are right."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from palate.data.prompts.tasks import TASKS
from palate.recipes.load import check_recipe
from palate.recipes.prompts import GeneratedSource, PromptsRecipe
from palate.recipes.yaml import parse_yaml
from prompting import read, write
from stand_in_images import png

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policy-prompts.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
def test_recipes_are_recipes(block: str) -> None:
    value = parse_yaml(block, "docs/policy-prompts.md")
    assert isinstance(value, dict) and list(value) == ["prompts"]
    check_recipe(PromptsRecipe, value["prompts"], "docs/policy-prompts.md")


def test_samples_are_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
    (tmp_path / "cat.png").write_bytes(png(1))
    path = write(tmp_path / "p.jsonl", block.splitlines())
    prompts = read({"path": path, "columns": ["answer"]}, sees=True)
    assert [p.columns.get("answer") for p in prompts.train] == [None, "12", "a cat"]


def test_the_table_has_the_tasks_and_their_parameters() -> None:
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)` \| .* \| (`min_.*) \|$", PAGE, re.M)}
    described = {
        name: ", ".join(
            f"`{key}` {parameter.default}"
            for key, parameter in inspect.signature(task).parameters.items()
            if key != "draw"
        )
        for name, task in TASKS.items()
    }
    assert rows == described
    told = GeneratedSource.model_fields["task"].description or ""
    assert all(name in told for name in TASKS)
