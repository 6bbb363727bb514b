"""What `import palate` offers, and what it costs; no option without a reader."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import palate
from palate.recipes.keys import keys_of
from palate.recipes.load import VERBS

SOURCE = Path(palate.__file__).parent


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert palate.__all__ == sorted(palate.__all__)
    assert set(palate.__all__) == {*palate._HOMES, "__version__"}
    for name in palate.__all__:
        assert getattr(palate, name) is not None
        assert name in dir(palate)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = palate.nonsense


def test_no_name_is_that_of_a_submodule() -> None:
    """`import palate.x` sets palate.x to the module, and would hide a function of that name."""
    modules = {path.stem for path in SOURCE.iterdir()}
    assert not modules & set(palate.__all__)


def test_the_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}" if alias.asname else node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == palate._HOMES


@pytest.mark.parametrize(
    "module", ["palate", "palate.recipes", "palate.cli", "palate.store.folders"]
)
def test_import_needs_no_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'scipy', 'matplotlib'}"
    code = f"import sys, {module}; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def _is_property(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list
    )


def test_every_recipe_key_is_read() -> None:
    """A key that no module reads would be an option that does nothing."""
    read: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if file.parent.name == "recipes":
            # What a recipe works out of its keys counts, what it only checks does not.
            tree = ast.Module([n for n in ast.walk(tree) if _is_property(n)], [])
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            # Options of a loss or of a token weight are keyword arguments of its function.
            elif isinstance(node, ast.arg) and file.parent.name == "losses":
                read.add(node.arg)
    keys = {key.name: key.path for cls in VERBS for key in keys_of(cls)}
    # Replaced by the keys that it stands for while the recipe is read.
    keys.pop("preset", None)
    unread = sorted(path for name, path in keys.items() if name not in read)
    assert unread == []
