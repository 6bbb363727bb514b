"""Pairs of the policy's own responses, for preference losses: which two, and which was better."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from palate.data.items import Item, PairLabel, Tokens
from palate.recipes.rl_algorithms import OnlineDpo
from palate.train.rollouts.responses import Group, Response

SAME, TIE = "both responses are the same tokens", "equal rewards"


def pair_items(
    group: Group,
    prompt: Tokens,
    algorithm: OnlineDpo,
    *,
    seed: str,
    counts: dict[str, int],
    id: str = "",
    source: str = "",
) -> list[Item]:
    """The pairs of a group.

    Of soft and hard labels the first response has the higher reward, of sampled ones it is the one
    that won; of soft ones `probability` is p = sigmoid((r_first - r_second) / scale).

    Args:
        seed: of the draw of pairs and labels.
        counts: pairs that tell nothing are counted here, by reason.
    """
    draw = random.Random(f"{seed}/{group.prompt}")
    items = []
    for a, b in _chosen_pairs(group.trained, algorithm, draw):
        if a.response_ids == b.response_ids:
            counts[SAME] = counts.get(SAME, 0) + 1
            continue
        first, second = (a, b) if a.reward >= b.reward else (b, a)
        gap = first.reward - second.reward
        # As a hyperbolic tangent, which no difference overflows.
        probability = 0.5 * (1 + math.tanh(gap / (2 * algorithm.scale)))
        if algorithm.labels == "hard" and gap == 0:
            counts[TIE] = counts.get(TIE, 0) + 1
            continue
        if algorithm.labels == "sampled" and draw.random() >= probability:
            first, second, gap = second, first, -gap
        label = PairLabel(
            margin=gap, probability=probability if algorithm.labels == "soft" else None
        )
        items.append(
            Item.of(
                prompt, first.response_ids, second.response_ids, label=label, id=id, source=source
            )
        )
    return items


def _chosen_pairs(
    responses: Sequence[Response], algorithm: OnlineDpo, draw: random.Random
) -> Iterator[tuple[Response, Response]]:
    if len(responses) < 2:
        return
    if algorithm.pairs == "all":
        yield from itertools.combinations(responses, 2)
    elif algorithm.pairs == "random":
        mixed = draw.sample(list(responses), len(responses))
        yield from zip(mixed[::2], mixed[1::2], strict=False)
    else:
        best = max(responses, key=lambda r: r.reward)
        worst = min(responses, key=lambda r: r.reward)
        # All equal: the first and the last, of which a soft label says that neither is better.
        yield (best, worst) if best is not worst else (responses[0], responses[-1])
