"""Of which distribution are a server's log-probs? Asked and compared, when a run begins.

Training compares them with those of the distribution that tokens were drawn from: with logits
divided by the temperature, after top-p and top-k. vLLM gives others unless it is told to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from palate.errors import ModelError
from palate.models.generation.engine import Sampling
from palate.models.generation.servers.kind import FEW_ALTERNATIVES, Answer, Wanted

if TYPE_CHECKING:
    from palate.models.generation.servers.node import Node

TEXTS = ("Once upon a time", "1 + 1 =", "The", "import numpy as np\n")
"""What is gone on with, until one has alternatives that lie apart."""
TEMPERATURE = 0.5
LEAST_GAP = 0.1
"""Between the log-probs of two alternatives, nats: closer ones tell nothing apart."""
EXCLUDED = -1000.0
"""What servers give in the place of minus infinity lies below."""
SHARE = 0.02
"""By which probabilities may miss a sum of 1."""


def check_log_probs(node: Node, tokenizer: Any, *, stops: tuple[int, ...]) -> bool:
    """Whether a server's log-probs are those of the distribution that it draws from.

    Returns:
        False where alternatives lie too close together to tell.

    Raises:
        ModelError: they are others: says what to start the server with.
    """
    for text in TEXTS:
        ids = tuple(tokenizer(text)["input_ids"])
        wanted = Wanted(
            ids=ids,
            sampling=Sampling(max_new_tokens=1),
            seed=0,
            model=node.model,
            stops=stops,
            alternatives=FEW_ALTERNATIVES,
        )
        plain = _first(node, wanted)
        if min(plain.values()) < EXCLUDED:
            raise _problem(node, "draws from a part of the distribution although none is asked for")
        cold = _first(node, _with(wanted, temperature=TEMPERATURE))
        pair = _far_apart(plain, cold)
        if pair is None:
            continue
        factor = (cold[pair[0]] - cold[pair[1]]) / (plain[pair[0]] - plain[pair[1]])
        if abs(factor - 1) < 0.25:
            raise _problem(
                node, f"gives log-probs from before the temperature: {node.kind.raw_hint}"
            )
        total = sum(map(math.exp, plain.values()))
        if abs(factor - 1 / TEMPERATURE) > 0.25 or total > 1 + SHARE:
            raise _problem(node, f"gives other numbers than log-probs: {node.kind.raw_hint}")
        if node.kind.filters:
            two = _first(node, _with(wanted, top_k=2))
            kept = sum(math.exp(logp) for logp in two.values() if logp > EXCLUDED)
            if abs(kept - 1) > SHARE:
                raise _problem(
                    node,
                    f"gives log-probs from before top-k (two tokens have {kept:.2f} of the "
                    f"probability): {node.kind.raw_hint}",
                )
        return True
    return False


def _with(wanted: Wanted, **changes: Any) -> Wanted:
    return replace(wanted, sampling=replace(wanted.sampling, **changes))


def _first(node: Node, wanted: Wanted) -> Mapping[int, float]:
    answer: Answer = node.ask(wanted)
    if not answer.first:
        raise _problem(node, "gives no alternatives beside the token that was drawn")
    return answer.first


def _far_apart(plain: Mapping[int, float], cold: Mapping[int, float]) -> Sequence[int] | None:
    """The two alternatives of both that lie farthest apart, where that is far enough."""
    shared = sorted((t for t in plain if cold.get(t, -math.inf) > EXCLUDED), key=plain.__getitem__)
    if len(shared) < 2 or plain[shared[-1]] - plain[shared[0]] < LEAST_GAP:
        return None
    return shared[-1], shared[0]


def _problem(node: Node, words: str) -> ModelError:
    return ModelError(f"{node.url} ({node.kind.name}): {words}")
