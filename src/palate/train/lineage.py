"""What a run was made of: digests of everything that its numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from palate.data.items import Desirable, Item, sequence_key
from palate.recipes.schema import ModelRecipe
from palate.store.files import read_json
from palate.store.versions import __version__, code_version, library_versions


def lineage(
    *,
    verb: str,
    model: ModelRecipe,
    digest: str,
    tokenizer: Any,
    template: str | None,
    data: dict[str, Any],
    reference: dict[str, Any] | None,
    seed: int,
    device: str,
    processes: int,
    layout: dict[str, Any],
) -> dict[str, Any]:
    """The content of lineage.json.

    Args:
        digest: of the base weights. template: digest of the chat template.
        data: the content of data.json.
    """
    base: dict[str, Any] = {"path": model.path, "digest": digest, "dtype": model.dtype}
    if model.revision is not None:
        base["revision"] = model.revision
    note = Path(model.path) / "palate.json"
    if note.exists():
        base["terms"] = read_json(note).get("terms")
    return {
        "palate": __version__,
        "code": code_version(),
        "verb": verb,
        "base_model": base,
        "tokenizer": {
            "digest": tokenizer_digest(tokenizer),
            "template": template,
        },
        "data": [{"path": s["path"], "sha256": s.get("sha256")} for s in data["sources"]],
        "reference": reference,
        "libraries": library_versions(),
        "seed": seed,
        "device": device,
        "processes": processes,
        "layout": layout,
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex SHA-256 of a tokenizer's vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())
    return _sha(f"{rules}|{special}")


def items_digest(items: Iterable[Item]) -> str:
    """Hex SHA-256 of encoded data: ids, token ids, weights, labels and order."""
    digest = hashlib.sha256()
    for item in items:
        for sequence in item.all_sequences:
            digest.update(sequence_key(*sequence).encode())
        # The mismatched response is a sequence already.
        label = item.label.desirable if isinstance(item.label, Desirable) else item.label
        digest.update(repr((item.id, item.source, item.weight, label)).encode())
    return digest.hexdigest()


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
