"""The held-out comparisons that a trained reward model gets wrong by most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from palate.data.build import Dataset
from palate.data.items import Item, PairLabel, Ranks
from palate.data.schema import Preference
from palate.evaluate.worst_pairs import Judged, worst_pairs


def held_out_errors(
    data: Dataset, scored: Sequence[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    """The lines of examples.jsonl.

    Args:
        scored: of held-out items `index` and `rewards`. name: of the model.
    """
    rewards = {entry["index"]: entry["rewards"] for entry in scored}
    judged = [
        comparison
        for item, row in zip(data.eval, data.eval_rows, strict=True)
        if (comparison := _judged(item, row, rewards[item.index], name)) is not None
    ]
    return worst_pairs({None: judged}, [name])


def _judged(item: Item, row: Preference, rewards: Sequence[float], name: str) -> Judged | None:
    """The worst comparison of an item; None where there is none, or where its row has answers that
    could not be encoded, so that rewards and texts are not told together."""
    compared = list(_compared(item))
    if not compared or len(row.responses) != len(rewards):
        return None
    better, worse = min(compared, key=lambda pair: rewards[pair[0]] - rewards[pair[1]])
    responses = row.responses[better], row.responses[worse]
    return Judged(
        id=row.id,
        source=row.source,
        prompt=row.prompt if responses[0].prompt is None else responses[0].prompt,
        responses=tuple(response.content for response in responses),
        scores={name: (rewards[better], rewards[worse])},
    )


def _compared(item: Item) -> Iterator[tuple[int, int]]:
    """(better, worse) responses of an item."""
    match item.label:
        case PairLabel(tie=False):
            yield 0, 1
        case Ranks(ranks):
            for i, rank in enumerate(ranks):
                for j, other_rank in enumerate(ranks):
                    if rank < other_rank:
                        yield i, j
