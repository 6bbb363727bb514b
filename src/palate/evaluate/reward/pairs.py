"""Pairs of any format that palate reads; ratings become pairs as a recipe says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from palate.data.containers.open import named
from palate.data.images import ImageError
from palate.data.ledger import Ledger
from palate.data.pairing import OWN_PROMPTS, needs_pairing, pair_row, refuse_needless
from palate.data.schema import Preference
from palate.data.stream import read_source
from palate.errors import DataError, RecipeError
from palate.evaluate.reward.accuracy import accuracy
from palate.evaluate.reward.benchmark import Column, Official, Read
from palate.evaluate.reward.images import EvalImages, SourceImages
from palate.evaluate.reward.items import BenchmarkItem, Scores, compare, unique
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource

NO_PAIR = "no pair: a response without another to compare it with"


@contextmanager
def _own_key() -> Iterator[None]:
    """Errors about ratings name the benchmark's key, not that of training data."""
    try:
        yield
    except RecipeError as error:
        text = str(error).replace("to `data`", "to the benchmark")
        raise RecipeError(text.replace("`data.pairing`", "`pairing` of the benchmark")) from error


class Pairs:
    """Any pairs.

    Args:
        pairing: how rated rows become pairs.
        images: where the images of rows lie.
    """

    title = "pairs"
    definition = "share of pairs whose better response scores strictly higher"
    version = 1

    def __init__(
        self,
        pairing: PairingRecipe | None = None,
        images: EvalImages | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        """Args: `columns` of the rows are kept by their items."""
        self.pairing = pairing
        self.columns = tuple(columns)
        self.images = images or EvalImages()

    def read(self, sources: Sequence[DataSource], seed: int) -> Read:
        """See `Benchmark.read`.

        Raises:
            RecipeError: ratings without `pairing`, or `pairing` without ratings.
        """
        items: list[BenchmarkItem] = []
        ledgers = []
        rated = False
        for source in named(sources):
            result = read_source(source, seed=seed, keep=self.columns)
            ledger = Ledger(name=source.name or "", path=source.path, role="eval", result=result)
            ledgers.append(ledger)
            images = self.images.of(source)
            for row in result.rows:
                rated = rated or row.kind == "rated"
                items += self._items(row, ledger, images, seed)
        with _own_key():
            refuse_needless(self.pairing, rated=rated)
        if not items:
            raise DataError(f"{sources[0].path}: no pair to evaluate on")
        return Read(
            items=unique(items),
            entries=[ledger.entry() for ledger in ledgers],
            quarantine=[line for ledger in ledgers for line in ledger.quarantine],
        )

    def _items(
        self, row: Preference, ledger: Ledger, images: SourceImages, seed: int
    ) -> list[BenchmarkItem]:
        if row.kind not in ("pair", "rated"):
            ledger.drop(row.row, NO_PAIR)
            return []
        if row.has_own_prompts:
            ledger.drop(row.row, OWN_PROMPTS)
            return []
        if row.kind == "rated" and self.pairing is None:
            with _own_key():
                raise needs_pairing(row.source)
        if row.has_images:
            try:
                row = images.located(row)
            except ImageError as error:
                ledger.drop(row.row, f"image: {error.reason}")
                return []
        # Ties are kept for what a model says of them; they are no part of any accuracy.
        recipe = self.pairing or PairingRecipe(ties="as_ties")
        made = pair_row(row, recipe, seed)
        ledger.flips.update(made.flips)
        if not made.pairs:
            ledger.drop(row.row, made.dropped[0])
            return []
        for reason in made.dropped:
            ledger.drop_item(row.row, reason)
        if made.scored_by is not None:
            ledger.scored_by[made.scored_by] += 1
        ledger.keep(len(made.pairs), ())
        return [
            BenchmarkItem(
                id=pair.id,
                source=pair.source,
                prompt=pair.prompt,
                responses=(pair.chosen.content, pair.rejected.content),
                margin=pair.margin,
                tie=pair.tie,
                columns={name: (row.extra or {}).get(name) for name in self.columns},
            )
            for pair in made.pairs
        ]

    def official(
        self, items: Sequence[BenchmarkItem], scores: Scores, confidence: float
    ) -> Official:
        """Accuracy over all pairs."""
        overall = accuracy(compare(items, scores), confidence)
        column = Column(
            name="accuracy",
            value=overall["accuracy"],
            n=overall["n"],
            ci=overall["accuracy_ci"],
            of="pairs",
            ties=overall["ties"],
        )
        return Official(value=overall["accuracy"], columns=(column,))
