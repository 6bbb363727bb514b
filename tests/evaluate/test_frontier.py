"""Sequence KL on samples against full logits, and the frontier point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palate.evaluate.frontier import frontier_point, sample_stats
from palate.evaluate.sample import sample
from palate.evaluate.statistics import mean_interval
from palate.models.model import Model
from palate.models.reference import FrozenCopy
from tiny_text import tiny_text_model, tiny_tokenizer


@pytest.fixture(scope="module")
def setting():
    policy = Model.policy(tiny_text_model("gemma3", seed=1, spread=3.0))
    reference = FrozenCopy(Model.policy(tiny_text_model("gemma3", seed=2, spread=3.0)), digest="x")
    tokenizer = tiny_tokenizer()
    prompts = [tuple(tokenizer(t)["input_ids"]) for t in ("A film", "The hotel was", "I")]
    return (
        policy,
        reference,
        sample(policy, tokenizer, prompts, samples_per_prompt=2, max_new_tokens=9, seed=1),
    )


def test_both_directions_entropy_and_logp_are_exact(setting):
    policy, reference, samples = setting
    stats = sample_stats(policy, samples, reference=reference, batch_size=4)
    for s, found in zip(samples, stats, strict=True):
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        take = slice(len(s.prompt_ids) - 1, -1)
        with torch.no_grad():
            log_q, log_p = (
                p.base(ids, use_cache=False).logits[0, take].double().log_softmax(-1)
                for p in (policy, reference.policy)
            )
        assert found.tokens == len(s.response_ids) == len(log_q)
        reverse = float((log_q.exp() * (log_q - log_p)).sum())
        forward = float((log_p.exp() * (log_p - log_q)).sum())
        entropy = float(-(log_q.exp() * log_q).sum(-1).mean())
        logp = float(log_q.gather(1, torch.tensor(s.response_ids)[:, None]).sum())
        assert found.kl == pytest.approx(reverse, rel=1e-4)
        assert found.forward_kl == pytest.approx(forward, rel=1e-4)
        assert found.entropy == pytest.approx(entropy, rel=1e-4)
        assert found.logp == pytest.approx(logp, rel=1e-4)


def test_the_reference_has_no_kl_to_itself(setting):
    _, reference, samples = setting
    for found in sample_stats(reference.policy, samples, reference=reference):
        assert found.kl == pytest.approx(0, abs=1e-4)
        assert found.forward_kl == pytest.approx(0, abs=1e-4)


def test_point_has_intervals_over_prompts(setting):
    policy, reference, samples = setting
    stats = sample_stats(policy, samples, reference=reference)
    rewards = [0.1, 0.3, -0.5, -0.1, 0.8, 0.6]
    point = frontier_point(samples, stats, rewards)
    assert point["n"] == 6 and point["prompts"] == 3
    assert (point["reward"], point["reward_ci"]) == mean_interval([0.2, -0.3, 0.7])
    assert point["kl"] == pytest.approx(np.mean([s.kl for s in stats]))
    assert point["kl_ci"][0] < point["kl"] < point["kl_ci"][1]


def test_without_reference_or_reward_the_point_has_neither(setting):
    policy, _, samples = setting
    stats = sample_stats(policy, samples, reference=None)
    assert set(frontier_point(samples, stats, None)) == {"n", "prompts", "tokens", "finished"}
