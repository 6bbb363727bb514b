"""From the recipe's data section to encoded data, with an account of every row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from palate.data.containers import source_name
from palate.data.encode import Drop, Encoder
from palate.data.ledger import Ledger, Role, describe
from palate.data.pairing import needs_pairing, pairs_of, to_demonstrations, to_unpaired
from palate.data.pairs import Example, Pair
from palate.data.readers import read_source
from palate.data.schema import Preference
from palate.data.split import held_out, shared_prompts, with_mismatched
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataRecipe, DataSource, PairingRecipe

ItemKind = Literal["pair", "unpaired", "demonstration"]
Item = TypeVar("Item", Pair, Example)

_NEEDS = {
    "pair": "pairs or ratings",
    "unpaired": "unpaired feedback, pairs or ratings",
    "demonstration": "demonstrations, pairs, ratings or unpaired feedback",
}
_HOLDS = {"unpaired": "unpaired feedback", "demonstration": "demonstrations"}


@dataclass(frozen=True, kw_only=True)
class Dataset(Generic[Item]):
    """Encoded data.

    Attributes:
        train, eval: items; `eval` is empty where nothing is held out. `index` counts through both.
        train_rows, eval_rows: the row of each item, in the same order and with the same ids.
        report: the content of data.json.
        quarantine: the lines of quarantine.jsonl: what was rejected, dropped or left out.
    """

    train: list[Item]
    eval: list[Item]
    train_rows: list[Preference]
    eval_rows: list[Preference]
    report: dict[str, Any]
    quarantine: list[dict[str, Any]]


def build_pairs(data: DataRecipe, encoder: Encoder, seed: int) -> Dataset[Pair]:
    """The data as pairs; see `build`."""
    return cast("Dataset[Pair]", build(data, encoder, kind="pair", seed=seed))


def build_examples(
    data: DataRecipe,
    encoder: Encoder,
    seed: int,
    *,
    kind: Literal["unpaired", "demonstration"] = "demonstration",
) -> Dataset[Example]:
    """The data as single examples; see `build`."""
    return cast("Dataset[Example]", build(data, encoder, kind=kind, seed=seed))


def build(data: DataRecipe, encoder: Encoder, *, kind: ItemKind, seed: int) -> Dataset[Any]:
    """Reads, pairs, encodes and splits the data of a recipe.

    Args:
        kind: `pair` for preference losses; `unpaired` for KTO (pairs are taken apart);
            `demonstration` for supervised fine-tuning (the chosen side of pairs).
        seed: of drawing rows, pairing, holding out and KTO's mismatched responses, each of which
            has a stream of its own.

    Raises:
        DataError: a source that cannot be read, is of an unfit kind, or of which nothing is left.
        RecipeError: `pairing` or `format` that does not fit the sources.
        ModelError: the chat template cannot be used.
    """
    readings = [
        *(_read(source, "train", seed) for source in _named(data.train)),
        *(_read(source, "eval", seed) for source in _named(data.eval)),
    ]
    rated = any(row.kind == "rated" for ledger in readings for row in ledger.result.rows)
    if data.pairing is not None and not rated:
        raise RecipeError("`data.pairing`: no source holds ratings; delete the key")
    encoded: dict[Role, list[tuple[Any, Preference]]] = {"train": [], "eval": []}
    for ledger in readings:
        encoded[ledger.role] += _encode(ledger, encoder, kind, data.pairing, seed)
    _check_left(readings, encoded, bool(data.eval))
    train, held = encoded["train"], encoded["eval"]
    if data.eval_fraction is not None:
        prompts = [row.prompt for _, row in train]
        ids = [item.prompt_ids for item, _ in train]
        out = held_out(prompts, ids, data.eval_fraction, seed)
        held = [both for both, is_out in zip(train, out, strict=True) if is_out]
        train = [both for both, is_out in zip(train, out, strict=True) if not is_out]
    items = [item for item, _ in train]
    held_items = [item for item, _ in held]
    if kind == "unpaired":
        limit = encoder.length.max_tokens
        items = with_mismatched(items, seed, max_tokens=limit, split="train")
        if held_items:
            held_items = with_mismatched(held_items, seed, max_tokens=limit, split="eval")
    numbered = [dataclasses.replace(item, index=i) for i, item in enumerate([*items, *held_items])]
    items, held_items = numbered[: len(items)], numbered[len(items) :]
    report: dict[str, Any] = {
        "kind": kind,
        "sources": [ledger.entry() for ledger in readings],
        "train": describe(items),
        "eval": None,
    }
    if held_items:
        report["eval"] = describe(held_items)
        report["eval"]["prompts_in_train"] = shared_prompts(items, held_items)
    return Dataset(
        train=items,
        eval=held_items,
        train_rows=[row for _, row in train],
        eval_rows=[row for _, row in held],
        report=report,
        quarantine=[line for ledger in readings for line in ledger.quarantine],
    )


def _read(source: DataSource, role: Role, seed: int) -> Ledger:
    result = read_source(source, seed=seed)
    return Ledger(name=source_name(source), path=source.path, role=role, result=result)


def _encode(
    ledger: Ledger, encoder: Encoder, kind: ItemKind, pairing: PairingRecipe | None, seed: int
) -> list[tuple[Any, Preference]]:
    """The source's items with their rows, all others entered in its ledger."""
    made = [_made_of(row, kind, pairing, seed) for row in ledger.result.rows]
    rows = [row for found in made if not isinstance(found, str) for row in found]
    encoded = iter(zip(encoder.encode(rows), rows, strict=True))
    items: list[tuple[Any, Preference]] = []
    for row, found in zip(ledger.result.rows, made, strict=True):
        if isinstance(found, str):
            ledger.drop(row.row, found)
            continue
        mine = [next(encoded) for _ in found]
        kept = [(e.item, r) for e, r in mine if not isinstance(e.item, Drop)]
        reasons = [e.item.reason for e, _ in mine if isinstance(e.item, Drop)]
        if kept:
            ledger.keep(len(kept), _cut([e.cut for e, _ in mine]))
            for reason in reasons:
                ledger.drop_item(row.row, reason)
        else:
            ledger.drop(row.row, reasons[0])
        items += kept
    return items


def _cut(cuts: Sequence[tuple[str, ...]]) -> list[str]:
    # In one order, so that equal cuts are counted together.
    return sorted({name for cut in cuts for name in cut}, key=_CUT_ORDER.index)


_CUT_ORDER = ("prompt", "chosen", "rejected", "response")


def _made_of(
    row: Preference, kind: ItemKind, pairing: PairingRecipe | None, seed: int
) -> list[Preference] | str:
    pairs: list[Preference] = [row]
    if row.kind == "rated":
        if pairing is None:
            raise needs_pairing(row.source)
        found = pairs_of(row, pairing, seed)
        if isinstance(found, str):
            return found
        pairs = found
    if kind == "demonstration":
        # All pairs of a rated row have one chosen response.
        return to_demonstrations(pairs[0])
    if row.kind in _HOLDS and row.kind != kind:
        raise DataError(
            f"'{row.source}' holds {_HOLDS[row.kind]}, and this needs {_NEEDS[kind]}"
            + ("; use `loss.type: kto` or `palate sft`" if row.kind == "unpaired" else "")
        )
    if kind == "unpaired":
        sides = [side for pair in pairs for side in to_unpaired(pair)]
        # Pairs of one rated row share their chosen response: it counts once.
        distinct: dict[tuple[bool | None, str], Preference] = {}
        for side in sides:
            distinct.setdefault((side.responses[0].label, repr(side.responses[0].content)), side)
        return list(distinct.values())
    return pairs


def _check_left(
    readings: Sequence[Ledger], encoded: dict[Role, list[tuple[Any, Preference]]], has_eval: bool
) -> None:
    roles: tuple[Role, ...] = ("train", "eval") if has_eval else ("train",)
    for role in roles:
        if encoded[role]:
            continue
        mine = [ledger for ledger in readings if ledger.role == role]
        reasons = sum((ledger.dropped for ledger in mine), Counter[str]())
        listed = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        names = ", ".join(ledger.name for ledger in mine)
        raise DataError(f"nothing usable is left of the {role} data ({names}): {listed}")


def _named(sources: Sequence[DataSource]) -> list[DataSource]:
    """The sources, those without a name told apart by their folder or split."""
    names = [source_name(source) for source in sources]
    taken: set[str] = set()
    found = []
    for source, name in zip(sources, names, strict=True):
        if source.name is None and names.count(name) > 1:
            parent = Path(source.path).parent.name
            parts = [parent, name, source.subset, source.split]
            name = "/".join(part for part in parts if part)
        plain, n = name, 1
        while source.name is None and name in taken:
            n += 1
            name = f"{plain} {n}"
        taken.add(name)
        found.append(source.model_copy(update={"name": name}))
    return found
