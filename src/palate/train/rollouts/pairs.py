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

    Of soft labels `probability` is that of the first response, p = sigmoid((r_a - r_b) / scale); of
    sampled and hard ones the first response is the one that won.

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
        # As a hyperbolic tangent, which no difference overflows.
        probability = 0.5 * (1 + math.tanh((a.reward - b.reward) / (2 * algorithm.scale)))
        if algorithm.labels == "hard":
            if a.reward == b.reward:
                counts[TIE] = counts.get(TIE, 0) + 1
                continue
            first, second = (a, b) if a.reward > b.reward else (b, a)
            label = PairLabel(margin=first.reward - second.reward)
        elif algorithm.labels == "sampled":
            first, second = (a, b) if draw.random() < probability else (b, a)
            label = PairLabel(margin=first.reward - second.reward)
        else:
            first, second = a, b
            label = PairLabel(margin=a.reward - b.reward, probability=probability)
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
