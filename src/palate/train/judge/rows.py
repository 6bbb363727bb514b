"""From data to what judges are asked about: comparisons, ratings, with an account of every row."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.data.containers import named
from palate.data.content import content_key, prompt_key
from palate.data.critiques import columns_of, critiques_of, filled_text, listed
from palate.data.images import ImageError, ImageStore, checked, image_root
from palate.data.ledger import Ledger, Role
from palate.data.pairing import (
    OWN_PROMPTS,
    TIE,
    needs_pairing,
    pair_row,
    refuse_needless,
)
from palate.data.schema import Content, Preference, Response
from palate.data.scores import scores_of
from palate.data.split import split_by_prompt
from palate.data.stream import read_source
from palate.data.videos import with_frames
from palate.errors import DataError, RecipeError
from palate.recipes.images import ImagesRecipe
from palate.recipes.judge import (
    ColumnTexts,
    CriticKind,
    JudgeRecipe,
    PairwiseKind,
    PointwiseKind,
)
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from palate.store.names import unique_names

HAS_IMAGES = "has images, and `model` is one of text alone"
NO_PAIR = "no pair: a response without another to compare it with"
NOT_RATED = "responses without a rating"
NO_TEXT = "no text in its column: {}"
NOT_EACH = "{}: not one text for each response"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two responses of which the first is better, or neither.

    Attributes:
        text: reasoning of the data. critiques: of the data, better and worse.
    """

    id: str
    source: str
    prompt: Content
    better: Content
    worse: Content
    tie: bool = False
    text: str | None = None
    critiques: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A response with its rating in the data; those of one `row` answer one prompt."""

    id: str
    row: str
    source: str
    prompt: Content
    response: Content
    rating: float
    text: str | None = None


QuestionItem = Comparison | Rating


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is trained and evaluated on.

    Attributes:
        account: `sources` and what was held out, for data.json.
        quarantine: lines of quarantine.jsonl. digest: changes with anything in the rows.
    """

    train: list[Any]
    eval: list[Any]
    account: dict[str, Any]
    quarantine: list[dict[str, Any]]
    digest: str


def read_rows(recipe: JudgeRecipe, images: ImageStore | None = None) -> Rows:
    """Reads, pairs and splits the data of a recipe.

    Args:
        images: takes the images of rows, of a model that sees; default: such rows are dropped.

    Raises:
        RecipeError: `pairing` or `texts` that do not fit the sources.
        DataError: a source that cannot be read, or of which nothing is left.
    """
    data, ledgers, rated = recipe.data, [], False
    frames = recipe.model.images.video_frames
    items: dict[Role, list[Any]] = {"train": [], "eval": []}
    parts: list[tuple[Role, tuple[DataSource, ...]]] = [("train", data.train), ("eval", data.eval)]
    for role, sources in parts:
        for source in named(sources):
            result = read_source(source, seed=recipe.seed, keep=_columns(recipe))
            ledger = Ledger(name=source.name or "", path=source.path, role=role, result=result)
            ledgers.append(ledger)
            source_items = [
                item
                for row in result.rows
                if (seen := _seen(row, ledger, images, frames)) is not None
                for item in _items(seen, ledger, recipe)
            ]
            rated = rated or any(row.kind == "rated" for row in result.rows)
            items[role] += source_items
    if not isinstance(recipe.judge, PointwiseKind):
        refuse_needless(data.pairing, rated=rated)
    for role in ("train", *(("eval",) if data.eval else ())):
        if not items[role]:
            raise _nothing(role, [ledger for ledger in ledgers if ledger.role == role])
    train, held = _unique(items["train"]), _unique(items["eval"])
    if data.eval_fraction is not None:
        keys = np.array(
            [prompt_key(item.prompt, recipe.seed, item.source) for item in train], np.uint64
        )
        out = split_by_prompt(keys, data.eval_fraction, where="data.eval_fraction").tolist()
        held = [item for item, is_out in zip(train, out, strict=True) if is_out]
        train = [item for item, is_out in zip(train, out, strict=True) if not is_out]
    drawn = _drawn(held, data.max_eval_rows, recipe.seed)
    known = {content_key(item.prompt, item.source) for item in train}
    account = {
        "kind": "judge",
        "sources": [ledger.entry() for ledger in ledgers],
        "train": {"items": len(train)},
        "eval": None
        if not held
        else {
            "items": len(drawn),
            "not_selected": len(held) - len(drawn),
            "prompts_in_train": len(
                {content_key(item.prompt, item.source) for item in drawn} & known
            ),
        },
    }
    return Rows(
        train=train,
        eval=drawn,
        account=account,
        quarantine=[line for ledger in ledgers for line in ledger.quarantine],
        digest=_digest([*train, None, *drawn]),
    )


def mapped(ratings: Sequence[float], kind: PointwiseKind) -> tuple[list[float], float, float]:
    """How ratings become 1 .. best: the cut points between them, and the range of the ratings.

    A rating becomes 1 plus the number of cut points that it reaches (linear) or exceeds (quantile).

    Raises:
        DataError: all ratings are equal, or `lowest` and `highest` leave no steps between them.
    """
    low, high = min(ratings), max(ratings)
    steps = kind.best - 1
    if kind.scale == "quantile":
        shares = np.arange(1, kind.best) / kind.best
        cuts = np.quantile(np.asarray(ratings), shares, method="inverted_cdf").tolist()
    else:
        first = low if kind.lowest is None else kind.lowest
        last = high if kind.highest is None else kind.highest
        if low == high and not first < last:
            raise DataError(f"all ratings are {low:g}: give `judge.lowest` and `judge.highest`")
        if not 0 < last - first < math.inf:
            raise DataError(
                f"no equal steps from {first:g} to {last:g}: set `judge.lowest` and `judge.highest`"
                f" (the training ratings are {low:g} to {high:g}), or `scale: quantile`"
            )
        cuts = [first + (last - first) * (k + 0.5) / steps for k in range(steps)]
    if low == high:
        raise DataError(f"all training ratings are {low:g}: there is nothing to tell apart")
    return cuts, low, high


def on_scale(rating: float, cuts: Sequence[float], kind: PointwiseKind) -> int:
    """A rating of the data as one of 1 .. best; see `mapped`."""
    side = bisect.bisect_left if kind.scale == "quantile" else bisect.bisect_right
    return 1 + side(list(cuts), rating)


def _columns(recipe: JudgeRecipe) -> tuple[str, ...]:
    return () if recipe.text_columns is None else columns_of(recipe.text_columns)


def _seen(
    row: Preference, ledger: Ledger, store: ImageStore | None, frames: int
) -> Preference | None:
    """The row with its images in the store; None, entered in its ledger, of one that cannot be
    used.

    Args:
        frames: of a video, each of which is an image.
    """
    if not row.has_images:
        return row
    if store is None:
        ledger.drop(row.row, HAS_IMAGES)
        return None
    try:
        root = image_root(ledger.path)
        framed = row.with_contents(lambda c: with_frames(c, root, frames, as_images=True))
        stored, _ = checked(framed, root=root, limits=ImagesRecipe(), store=store)
    except ImageError as error:
        ledger.drop(row.row, error.reason)
        return None
    return stored.with_images(lambda image: dataclasses.replace(image, root=store.folder))


def _items(row: Preference, ledger: Ledger, recipe: JudgeRecipe) -> list[Any]:
    """What is asked about one row, all that is lost entered in its ledger."""
    if row.has_own_prompts:
        ledger.drop(row.row, OWN_PROMPTS)
        return []
    if isinstance(recipe.judge, PointwiseKind):
        return list(_ratings(row, ledger, recipe))
    if row.kind not in ("pair", "rated"):
        ledger.drop(row.row, NO_PAIR)
        return []
    pairing = recipe.data.pairing
    if row.kind == "rated" and pairing is None:
        raise needs_pairing(row.source)
    if pairing is None:
        keeps = isinstance(recipe.judge, PairwiseKind) and recipe.judge.ties
        pairing = PairingRecipe(ties="as_ties" if keeps else "drop")
    made = pair_row(row, pairing, recipe.seed)
    ledger.flips.update(made.flips)
    if made.scored_by is not None:
        ledger.scored_by[made.scored_by] += 1
    if not made.pairs:
        ledger.drop(row.row, made.dropped[0])
        return []
    if len(made.pairs) > 1 and isinstance(recipe.texts, ColumnTexts) and recipe.reasoning:
        raise RecipeError(
            f"`texts.column`: '{row.source}' has one text a row, and `data.pairing` makes "
            f"several pairs of row {row.row}: pair so that each row gives one"
        )
    reasons = list(made.dropped)
    items = []
    for pair in made.pairs:
        item = _comparison(pair, row, recipe)
        if isinstance(item, str):
            reasons.append(item)
        else:
            items.append(item)
    if not items:
        ledger.drop(row.row, reasons[-1])
        return []
    for reason in reasons:
        ledger.drop_item(row.row, reason)
    ledger.keep(len(items), ())
    return items


def _comparison(pair: Preference, row: Preference, recipe: JudgeRecipe) -> Comparison | str:
    item = Comparison(
        id=pair.id,
        source=pair.source,
        prompt=pair.prompt,
        better=pair.chosen.content,
        worse=pair.rejected.content,
        tie=pair.tie,
    )
    if pair.tie and isinstance(recipe.judge, PairwiseKind) and not recipe.judge.ties:
        return TIE
    texts = recipe.text_columns
    if texts is None:
        return item
    if not isinstance(recipe.judge, CriticKind):
        assert texts.column is not None
        text = filled_text((row.extra or {}).get(texts.column))
        if text is None:
            return NO_TEXT.format(texts.column)
        return dataclasses.replace(item, text=text)
    if texts.chosen is not None and row.kind != "pair":
        raise RecipeError(
            f"`texts.chosen`: '{row.source}' holds ratings, not pairs: give `texts.column`, "
            "which lists a critique for each response"
        )
    given = critiques_of(row, texts)
    if given is None:
        return NOT_EACH.format(texts.column)
    better, worse = (given[_place(row, side)] for side in pair.responses)
    if better is None or worse is None:
        names = (texts.chosen or texts.column, texts.rejected or texts.column)
        return NO_TEXT.format(names[0] if better is None else names[1])
    return dataclasses.replace(item, critiques=(better, worse))


def _ratings(row: Preference, ledger: Ledger, recipe: JudgeRecipe) -> Iterator[Rating]:
    by, scores = scores_of(row.responses, recipe.data.pairing or PairingRecipe())
    known = [(i, s) for i, s in enumerate(scores) if s is not None and math.isfinite(s)]
    if not known or by in ("votes", "rank"):
        ledger.drop(row.row, NOT_RATED)
        return
    texts: list[str | None] = [None] * len(row.responses)
    column = recipe.texts.column if isinstance(recipe.texts, ColumnTexts) else None
    if column is not None:
        values = listed(row.extra or {}, column)
        if values is None or len(values) != len(row.responses):
            ledger.drop(row.row, NOT_EACH.format(column))
            return
        texts = list(map(filled_text, values))
    kept = [i for i, _ in known if column is None or texts[i] is not None]
    if not kept:
        ledger.drop(row.row, NO_TEXT.format(column))
        return
    for _ in range(len(known) - len(kept)):
        ledger.drop_item(row.row, NO_TEXT.format(column))
    for _ in range(len(row.responses) - len(known)):
        ledger.drop_item(row.row, NOT_RATED)
    ledger.scored_by[by] += 1
    ledger.keep(len(kept), ())
    for i, score in known:
        if i in kept:
            yield Rating(
                id=f"{row.id}/{i + 1}",
                row=row.id,
                source=row.source,
                prompt=row.prompt,
                response=row.responses[i].content,
                rating=score,
                text=texts[i],
            )


def _place(row: Preference, side: Response) -> int:
    return next(
        i for i, response in enumerate(row.responses) if response is side or response == side
    )


def _unique(items: Sequence[Any]) -> list[Any]:
    """Ids that two sources share are numbered."""
    ids = unique_names((item.id for item in items), "{}#{}")
    return [dataclasses.replace(item, id=name) for item, name in zip(items, ids, strict=True)]


def _drawn(held: Sequence[Any], limit: int, seed: int) -> list[Any]:
    if len(held) <= limit:
        return list(held)
    places = random.Random(f"{seed}|held out rows").sample(range(len(held)), limit)
    return [held[i] for i in sorted(places)]


def _digest(items: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        values = None if item is None else {n: _plain(v, item) for n, v in vars(item).items()}
        digest.update(json.dumps(values, sort_keys=True).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _plain(value: Any, item: QuestionItem) -> Any:
    """A JSON value that says the same: of chat turns their key, which covers images."""
    return content_key(value, item.source).hex() if isinstance(value, list) else value


def _nothing(role: str, ledgers: Sequence[Ledger]) -> DataError:
    reasons: dict[str, int] = {}
    for ledger in ledgers:
        for reason, n in ledger.dropped.items():
            reasons[reason] = reasons.get(reason, 0) + n
    listed = "; ".join(f"{r} ({n})" for r, n in sorted(reasons.items(), key=lambda x: -x[1])[:3])
    names = ", ".join(ledger.name for ledger in ledgers)
    return DataError(f"nothing usable is left of the {role} data ({names}): {listed}")
