"""What a run was made of: digests of everything that its numbers depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palate.recipes.schema import ModelRecipe
from palate.store.digests import sha256_text
from palate.store.files import read_json
from palate.store.records import Lineage
from palate.store.versions import __version__, code_version, library_versions


def lineage(
    *,
    verb: str,
    seed: int,
    device: str,
    sources: Iterable[Mapping[str, Any]] = (),
    **more: Any,
) -> Lineage:
    """The content of lineage.json: this code, the libraries, and what the caller names.

    Args:
        sources: entries of data.json.
        more: further fields of the record.
    """
    return Lineage(
        palate=__version__,
        code=code_version(),
        verb=verb,
        data=tuple({"path": s["path"], "sha256": s.get("sha256")} for s in sources),
        libraries=library_versions(),
        seed=seed,
        device=device,
        **more,
    )


def model_entry(model: ModelRecipe, digest: str | None) -> dict[str, Any]:
    """A base model's entry in lineage.json.

    Args:
        digest: of its weights.
    """
    entry: dict[str, Any] = {"path": model.path, "digest": digest, "dtype": model.dtype}
    if model.revision is not None:
        entry["revision"] = model.revision
    note = Path(model.path) / "palate.json"
    if note.exists():
        entry["terms"] = read_json(note).get("terms")
    return entry


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex SHA-256 of a tokenizer's vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())
    return sha256_text(f"{rules}|{special}")
