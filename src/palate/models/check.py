"""Start-of-run checks: is the head what we think it is, and is the shared layout exact here?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from palate.data.items import Item, PairLabel
from palate.data.layouts import Layout, collate
from palate.errors import ModelError
from palate.models.backbone import windows_of
from palate.models.model import Ask, Model, Outputs
from palate.testing import full_logits

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.75, torch.float16: 0.1}
"""Largest accepted difference of a log-prob, nats. A model that sees the wrong tokens is off by
whole nats; bf16 attention sums differ by tenths at single tokens."""
MEAN_TOLERANCE = {
    torch.float64: 1e-7,
    torch.float32: 2e-4,
    torch.bfloat16: 0.06,
    torch.float16: 0.01,
}


@dataclass(frozen=True)
class LayoutCheck:
    """One pair in the shared layout against the plain one.

    Attributes:
        max_abs_difference: of the response log-probs, nats.
        ok: within the tolerance of the dtype.
        reason: why not, in words; None when ok.
    """

    max_abs_difference: float
    ok: bool
    reason: str | None


def example_pair(vocabulary: int, window: int | None) -> Item:
    """A pair of pseudo-random tokens that reaches past the sliding window, if it is short."""
    generator = torch.Generator().manual_seed(0)
    prompt_len = 24 if window is None or window > 1024 else window + 8

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, max(vocabulary, 4), (n,), generator=generator).tolist())

    return Item.of(ids(prompt_len), ids(17), ids(11), label=PairLabel())


def layout_check(policy: Model, pair: Item | None = None) -> LayoutCheck:
    """Runs one pair in both layouts, without gradients."""
    if pair is None:
        windows = [w for w in windows_of(policy.config).values() if w is not None]
        pair = example_pair(policy.vocabulary, min(windows) if windows else None)
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            plain = _logps(policy, pair, "plain")
            shared = _logps(policy, pair, "shared")
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return LayoutCheck(float("inf"), False, f"the model does not run the shared layout: {text}")
    finally:
        policy.train(was_training)
    gap = (plain - shared).abs()
    worst, mean = float(gap.max()), float(gap.mean())
    ok = worst <= TOLERANCE[policy.dtype] and mean <= MEAN_TOLERANCE[policy.dtype]
    reason = None if ok else f"log-probs differ by up to {worst:.3g} nats (mean {mean:.3g})"
    return LayoutCheck(worst, ok, reason)


STATE_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.25,
    torch.float16: 0.05,
}
"""Largest accepted distance of two pooled states, as a share of their length: a model that sees the
wrong tokens is off by about its whole length. Rewards say less: a new head has no scale yet."""


def reward_layout_check(model: Model) -> LayoutCheck:
    """As `layout_check`, of the states that the head reads; the difference is a share of them."""
    windows = [w for w in windows_of(model.config).values() if w is not None]
    pair = example_pair(model.vocabulary, min(windows) if windows else None)
    # Two more pairs, so that a row holds several.
    prompt, chosen = pair.prompts[0].ids, pair.responses[0].ids
    short = [Item.of(prompt[:5], chosen[:n], (7, 8), label=PairLabel()) for n in (4, 6)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain, shared = (_features(model, [pair, *short], way) for way in _LAYOUTS)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        why = f"the model does not run the shared layout: {text}"
        return LayoutCheck(float("inf"), False, why)
    finally:
        model.train(was_training)
    gap = (plain - shared).norm(dim=1) / plain.norm(dim=1)
    worst = float(gap.max())
    ok = worst <= STATE_TOLERANCE[model.dtype]
    reason = None if ok else f"pooled states differ by up to {worst:.2g} of their length"
    return LayoutCheck(worst, ok, reason)


_LAYOUTS: tuple[Layout, Layout] = ("plain", "shared")


def _features(model: Model, pairs: list[Item], layout: Layout) -> torch.Tensor:
    batch = collate(pairs, layout=layout, pad_id=0, keep_last=True)
    return model.pooled(batch.to(model.device)).float()


def _logps(policy: Model, pair: Item, layout: Layout) -> torch.Tensor:
    batch = collate([pair], layout=layout, pad_id=0)
    outputs: Outputs = policy(batch.to(policy.device), Ask())
    return outputs.token_stats.logp


def head_check(policy: Model) -> None:
    """Asserts that `Model.vocabulary_head` reproduces the model's own logits.

    Raises:
        ModelError: the family transforms its logits in a way that is not known here.
    """
    pair = example_pair(policy.vocabulary, None)
    batch = collate([pair], layout="plain", pad_id=0).to(policy.device)
    ids = batch.inputs["input_ids"][:1, :8]
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            own = policy.base(input_ids=ids, use_cache=False).logits[0].float()
            states = policy.base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = full_logits(states, policy.vocabulary_head()).float()
    finally:
        policy.train(was_training)
    scale = max(1.0, float(own.abs().max()))
    tolerance = 1e-3 if policy.dtype == torch.float32 else 2e-2
    if own.shape != ours.shape or float((own - ours).abs().max()) > tolerance * scale:
        raise ModelError(
            f"{type(policy.base).__name__} transforms its logits in a way palate does not know"
        )
