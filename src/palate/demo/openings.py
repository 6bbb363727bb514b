"""The demonstration's prompts: openings of reviews, expanded from templates, split by template."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Split = Literal["train", "heldout"]
_ALTERNATIVES = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One prompt.

    Attributes:
        id: domain, number of its template in the domain, and variant.
        domain: film, restaurant, book, hotel or product.
        text: 6 to 17 words, cut before the verdict, without a final space.
    """

    id: str
    domain: str
    split: Split
    text: str


def openings(split: Split, limit: int | None = None) -> list[Opening]:
    """Openings of a split in a fixed mixed order; the first `limit` of them.

    Any prefix has its domains and templates about evenly: first variants of all templates, then
    second ones.
    """
    in_split = [o for o in _expand() if o.split == split]
    by_variant: dict[str, list[Opening]] = {}
    for opening in in_split:
        by_variant.setdefault(opening.id.rsplit(".", 1)[1], []).append(opening)
    order: list[Opening] = []
    for variant, group in sorted(by_variant.items()):
        random.Random(f"{split} {variant}").shuffle(group)
        order += group
    return order[:limit]


def _expand() -> list[Opening]:
    text = resources.files("palate.demo").joinpath("openings.txt").read_text(encoding="utf-8")
    domain, split, number = "", "train", 0
    expanded: list[Opening] = []
    for line in text.splitlines():
        if line.startswith("["):
            domain, split = line.strip("[]").split()
            number = 100 if split == "heldout" else 0
        elif line and not line.startswith("#"):
            number += 1
            for variant in range(len(_ALTERNATIVES.findall(line)[0].split("|"))):
                expanded.append(
                    Opening(
                        id=f"{domain}.{number}.{variant}",
                        domain=domain,
                        split="heldout" if split == "heldout" else "train",
                        text=_ALTERNATIVES.sub(lambda m, v=variant: m[1].split("|")[v], line),  # type: ignore[misc]
                    )
                )
    return expanded
