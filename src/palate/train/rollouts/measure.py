"""One trainer pass over a rollout before it is learned from: log-probs, the reference's, values.

It runs the very micro-batches of the first pass over the rollout, so that the ratio of the first
update is 1 to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from palate.data.items import Floats
from palate.models.model import Ask, Model, evaluating
from palate.models.reference import LiveReference, Reference
from palate.models.value import VALUE
from palate.train.sources.base import MicroBatch

Measured = dict[str, list[Floats]]
"""By name, of each sequence of a micro-batch its numbers."""


@torch.no_grad()
def measure(
    model: Model,
    micro_batches: Iterable[MicroBatch],
    *,
    reference: Reference | None,
    temperature: float,
) -> list[Measured]:
    """`old_logps`, with a reference `ref_logps`, of a model with values `values`, and `end_value`
    where the last tokens are run, of every micro-batch."""
    heads = ("lm", VALUE) if VALUE in model.heads else ("lm",)
    ask = Ask(heads=heads, temperature=temperature)
    results = []
    with evaluating(model):
        for micro in micro_batches:
            batch = micro.to(model.device).batch
            if isinstance(reference, LiveReference) and reference.identity["path"] is None:
                # One pass of the tower for both; a reference of other weights has its own.
                batch = model.with_features(batch)
            given = None if reference is None else reference.inputs(batch, kl=False)
            outputs = model(batch, ask, reference=given)
            tokens = outputs.token_stats
            lengths = batch.lengths.tolist()
            measured = {"old_logps": _cut(tokens.logp, lengths)}
            if tokens.ref_logp is not None:
                measured["ref_logps"] = _cut(tokens.ref_logp, lengths)
            if outputs.values is not None:
                measured["values"] = _cut(outputs.values, lengths)
            if outputs.end_values is not None:
                measured["end_value"] = _cut(outputs.end_values, [1] * len(lengths))
            results.append(measured)
    return results


def _cut(values: Tensor, lengths: Sequence[int]) -> list[Floats]:
    return [part.numpy().copy() for part in values.detach().float().cpu().split(list(lengths))]
