"""From the recipe's data section to encoded data, with an account of every row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from palate.data.containers import named, source_name
from palate.data.content import content_key, prompt_key
from palate.data.encode import Drop, Encoder
from palate.data.image_account import describe_images
from palate.data.image_contrast import ImageContrasts, TrainingPair, image_contrasts
from palate.data.images import image_root, rooted
from palate.data.items import Item, ItemKind
from palate.data.ledger import Ledger, Role, describe
from palate.data.mixture import row_keys, select
from palate.data.pairing import (
    needs_pairing,
    pair_row,
    refuse_needless,
    to_demonstrations,
    to_ranked,
    to_unpaired,
)
from palate.data.schema import Content, Preference
from palate.data.split import (
    joined_keys,
    shared_images,
    shared_prompts,
    split_by_prompt,
    with_mismatched,
)
from palate.data.stream import read_source
from palate.errors import DataError, RecipeError
from palate.recipes.mixture import MixtureRecipe
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataRecipe, DataSource, SftDataRecipe

_NEEDS = {
    "pair": "pairs or ratings",
    "rated": "ratings, ranks or pairs",
    "unpaired": "unpaired feedback, pairs or ratings",
    "demonstration": "demonstrations, pairs, ratings or unpaired feedback",
}
_HOLDS = {
    "unpaired": "unpaired feedback",
    "demonstration": "demonstrations",
    "answers": "answers that nobody judged",
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
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


@dataclass(kw_only=True)
class _Row:
    """A row that gave items, until it is known how many of them the mixture takes."""

    ledger: Ledger
    cut: list[str]
    given: int
    taken: int

    def settle(self) -> None:
        if self.taken:
            self.ledger.keep(self.taken, self.cut, not_selected=self.given - self.taken)
        else:
            self.ledger.not_selected += 1


_Made = tuple[Item, Preference, _Row]
"""An item, its pair or example before encoding, and the row it was made of."""


def build(
    data: DataRecipe, encoder: Encoder, *, kind: ItemKind, seed: int, ties: bool = False
) -> Dataset:
    """Reads, pairs, encodes and splits the data of a recipe.

    Args:
        kind: `pair` for preference losses; `rated` for losses of whole lists; `unpaired` for KTO
            (pairs are taken apart); `demonstration` for supervised fine-tuning (the chosen side of
            pairs).
        seed: of drawing rows, pairing, holding out and KTO's mismatched responses, each of which
            has a stream of its own.
        ties: whether pairs may be kept as ties (`pairing.ties: as_ties`).

    Raises:
        DataError: a source that cannot be read, is of an unfit kind, or of which nothing is left.
        RecipeError: `pairing` or `format` that does not fit the sources.
        ModelError: the chat template cannot be used.
    """
    readings = [
        *(_read(source, "train", seed) for source in named(data.train)),
        *(_read(source, "eval", seed) for source in named(data.eval)),
    ]
    rated = any(row.kind == "rated" for ledger in readings for row in ledger.result.rows)
    refuse_needless(data.pairing, rated=rated)
    _check_pairing(data.pairing, kind, ties=ties)
    if data.image_contrast is not None:
        _check_image_contrast(encoder, kind)
    encoded: dict[Role, list[_Made]] = {"train": [], "eval": []}
    for ledger in readings:
        encoded[ledger.role] += _encode(ledger, encoder, kind, data, seed)
    _check_left(readings, encoded, bool(data.eval))
    train, held = encoded["train"], encoded["eval"]
    if data.eval_fraction is not None:
        keys = np.array(
            [prompt_key(_asked_first(row, data), seed, row.source) for _, row, _ in train],
            np.uint64,
        )
        keys = joined_keys(keys, [item.prompts[0] for item, _, _ in train])
        out = split_by_prompt(keys, data.eval_fraction, where="data.eval_fraction").tolist()
        held = [made for made, is_out in zip(train, out, strict=True) if is_out]
        train = [made for made, is_out in zip(train, out, strict=True) if not is_out]
    rows_given = [row for *_, row in (*train, *held)]
    mixture: dict[str, Any] | None = None
    if data.mixture is not None:
        names = _sources(readings, encoded["train"])
        train, mixture = _mixed(train, names, data.mixture, kind, seed)
    for row in {id(row): row for row in rows_given}.values():
        row.settle()
    contrasts = _contrasts(train, data, encoder, seed)
    if contrasts is not None:
        train = _with_contrasts(train, contrasts, replace=contrasts.report["replaced"] > 0)
    items = [item for item, *_ in train]
    held_items = [item for item, *_ in held]
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
        "mixture": mixture,
        "train": describe(items),
        "eval": None,
        "images": describe_images(numbered, encoder.images),
    }
    if contrasts is not None:
        report["image_contrast"] = contrasts.report
    if held_items:
        report["eval"] = describe(held_items)
        report["eval"]["prompts_in_train"] = shared_prompts(items, held_items)
        if (shared := shared_images(items, held_items)) is not None:
            report["eval"]["images_in_train"] = shared
    return Dataset(
        train=items,
        eval=held_items,
        train_rows=[row for _, row, _ in train],
        eval_rows=[row for _, row, _ in held],
        report=report,
        quarantine=[line for ledger in readings for line in ledger.quarantine],
    )


def _read(source: DataSource, role: Role, seed: int) -> Ledger:
    result = read_source(source, seed=seed)
    root = image_root(source.path)
    result = dataclasses.replace(result, rows=[rooted(row, root) for row in result.rows])
    return Ledger(name=source_name(source), path=source.path, role=role, result=result)


def _check_pairing(pairing: PairingRecipe | None, kind: ItemKind, *, ties: bool) -> None:
    if pairing is None:
        return
    if pairing.ties == "as_ties" and not ties:
        raise RecipeError(
            "`data.pairing.ties`: this loss knows no ties; use `drop`, or `keep` for pairs in an "
            "order drawn by chance"
        )
    if kind == "unpaired" and pairing.chosen == "every":
        raise RecipeError(
            "`data.pairing.chosen`: with `every`, one response is both chosen and rejected, and "
            "`loss.type: kto` takes each by itself; use `best` or `top_k`"
        )


def _check_image_contrast(encoder: Encoder, kind: ItemKind) -> None:
    if kind != "pair":
        raise RecipeError(
            f"`data.image_contrast`: makes pairs, and this is trained on {_NEEDS[kind]}: delete it"
        )
    if encoder.images is None:
        raise RecipeError("`data.image_contrast`: this model sees no images: delete it")


def _contrasts(
    train: Sequence[_Made], data: DataRecipe, encoder: Encoder, seed: int
) -> ImageContrasts | None:
    """What `image_contrast` makes, with what it loses entered in the ledgers."""
    if data.image_contrast is None:
        return None
    pairs = [
        TrainingPair(item=item, row=row, root=image_root(origin.ledger.path))
        for item, row, origin in train
    ]
    contrasts = image_contrasts(pairs, data.image_contrast, encoder, seed)
    for place, reason in contrasts.dropped.items():
        _, row, origin = train[place]
        origin.ledger.drop_contrast(row.row, reason)
    return contrasts


def _with_contrasts(
    train: Sequence[_Made], contrasts: ImageContrasts, *, replace: bool
) -> list[_Made]:
    """The pairs, each with its contrast behind it or in its place."""
    pairs: list[_Made] = []
    for place, made in enumerate(train):
        contrast = contrasts.pairs.get(place)
        if contrast is None or not replace:
            pairs.append(made)
        if contrast is not None:
            pairs.append((*contrast, made[2]))
    return pairs


def _encode(
    ledger: Ledger, encoder: Encoder, kind: ItemKind, data: DataRecipe, seed: int
) -> list[_Made]:
    """The source's items with what they were made of, all that is lost entered in its ledger."""
    made = [_made_of(row, kind, data, seed, ledger) for row in ledger.result.rows]
    rows = [row for pairs in made if not isinstance(pairs, str) for row in pairs]
    encoded = iter(zip(encoder.encode(rows, image_root(ledger.path)), rows, strict=True))
    items: list[_Made] = []
    for row, pairs in zip(ledger.result.rows, made, strict=True):
        if isinstance(pairs, str):
            ledger.drop(row.row, pairs)
            continue
        parts = [next(encoded) for _ in pairs]
        kept = [(e.item, r) for e, r in parts if not isinstance(e.item, Drop)]
        reasons = [e.item.reason for e, _ in parts if isinstance(e.item, Drop)]
        if not kept:
            ledger.drop(row.row, reasons[0])
            continue
        for reason in reasons:
            ledger.drop_item(row.row, reason)
        for encoding, _ in parts:
            for reason in encoding.left_out:
                ledger.leave_out(row.row, reason)
        cut = _cut([e.cut for e, _ in parts])
        source = _Row(ledger=ledger, cut=cut, given=len(kept), taken=len(kept))
        items += [(item, r, source) for item, r in kept]
    return items


def _sources(readings: Sequence[Ledger], train: Sequence[_Made]) -> list[str]:
    """Names of all training sources, also of those that have no rows left."""
    names = [row.source for _, row, _ in train]
    given = {id(row.ledger) for *_, row in train}
    empty = [r.name for r in readings if r.role == "train" and id(r) not in given]
    return list(dict.fromkeys([*names, *empty]))


def _mixed(
    train: list[_Made], names: Sequence[str], recipe: MixtureRecipe, kind: ItemKind, seed: int
) -> tuple[list[_Made], dict[str, Any]]:
    """What the mixture takes, the rest marked in its rows, and the account for data.json."""
    place = {name: i for i, name in enumerate(names)}
    tokens = recipe.unit == "tokens"
    selection = select(
        source=np.array([place[row.source] for _, row, _ in train]),
        key=row_keys(seed, (item.id for item, *_ in train)),
        size=np.array([item.n_tokens if tokens else 1 for item, *_ in train]),
        names=names,
        recipe=recipe,
        counted_in="tokens" if tokens else "pairs" if kind == "pair" else "examples",
        where="data.mixture",
    )
    taken = []
    for made, is_taken in zip(train, selection.mask.tolist(), strict=True):
        if is_taken:
            taken.append(made)
        else:
            made[2].taken -= 1
    return taken, selection.account


def _cut(cuts: Sequence[tuple[str, ...]]) -> list[str]:
    # In one order, so that equal cuts are counted together.
    return sorted({name for cut in cuts for name in cut}, key=_CUT_ORDER.index)


_CUT_ORDER = ("prompt", "chosen", "rejected", "response")


def _made_of(
    row: Preference, kind: ItemKind, data: DataRecipe, seed: int, ledger: Ledger
) -> list[Preference] | str:
    pairs, pairing = [row], data.pairing
    if row.kind == "answers":
        raise _unfit(row, kind)
    if kind == "rated" and row.kind in ("rated", "pair"):
        ranked = to_ranked(row, pairing or PairingRecipe())
        return ranked if isinstance(ranked, str) else [ranked]
    if row.kind == "rated" and pairing is None:
        raise needs_pairing(row.source)
    if row.kind in ("rated", "pair"):
        made = pair_row(row, pairing or PairingRecipe(), seed)
        ledger.flips.update(made.flips)
        if made.scored_by is not None:
            ledger.scored_by[made.scored_by] += 1
        if not made.pairs:
            return made.dropped[0]
        for reason in made.dropped:
            ledger.drop_item(row.row, reason)
        pairs = list(made.pairs)
    if kind == "demonstration":
        demonstrations = [to_demonstrations(pair, _turns(data)) for pair in pairs]
        if isinstance(demonstrations[0], str):
            return demonstrations[0]
        return _distinct(
            demonstration
            for made_of_pair in demonstrations
            if not isinstance(made_of_pair, str)
            for demonstration in made_of_pair
        )
    if row.kind in _HOLDS and row.kind != kind:
        raise _unfit(row, kind)
    if kind == "unpaired":
        return _distinct(side for pair in pairs for side in to_unpaired(pair))
    return pairs


def _turns(data: DataRecipe) -> Literal["last", "all"]:
    return data.turns if isinstance(data, SftDataRecipe) else "last"


def _asked_first(row: Preference, data: DataRecipe) -> Content:
    """The prompt that decides the split: answers of one conversation are held out together."""
    if _turns(data) == "last" or not row.conversation or isinstance(row.prompt, str):
        return row.prompt
    roles = [turn["role"] for turn in row.prompt]
    return row.prompt[: roles.index("assistant", 1) if "assistant" in roles[1:] else None]


def _unfit(row: Preference, kind: ItemKind) -> DataError:
    advice = ""
    if row.kind == "unpaired":
        advice = "; use `loss.type: kto` or `palate sft`"
    elif row.kind == "answers" and kind == "demonstration":
        advice = "; call the field `completion` where they are to be imitated"
    return DataError(
        f"'{row.source}' holds {_HOLDS[row.kind]}, and this needs {_NEEDS[kind]}{advice}"
    )


def _distinct(examples: Iterable[Preference]) -> list[Preference]:
    """Pairs of one rated row share responses: each counts once."""
    distinct: dict[tuple[bool | None, bytes, bytes], Preference] = {}
    for example in examples:
        response = example.responses[0]
        key = (response.label, content_key(example.prompt), content_key(response.content))
        distinct.setdefault(key, example)
    return list(distinct.values())


def _check_left(
    readings: Sequence[Ledger], encoded: dict[Role, list[_Made]], has_eval: bool
) -> None:
    roles: tuple[Role, ...] = ("train", "eval") if has_eval else ("train",)
    for role in roles:
        if encoded[role]:
            continue
        ledgers = [ledger for ledger in readings if ledger.role == role]
        reasons = sum((ledger.dropped for ledger in ledgers), Counter[str]())
        listed = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        names = ", ".join(ledger.name for ledger in ledgers)
        raise DataError(f"nothing usable is left of the {role} data ({names}): {listed}")
