"""Preference scores against closed forms on full logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from palate.data.items import Tokens
from palate.errors import RunError
from palate.evaluate.preference import PairScore, score_pairs, summarise_pairs
from palate.intervals import wilson
from palate.models.model import Model
from palate.models.reference import FrozenCopy
from palate.recipes.losses import D2poWeights, Dpo, Kto, Mixture, Sft, SimPo, Tdpo1, Tdpo2
from tiny import tiny_model, tiny_pairs


@pytest.fixture(scope="module")
def setting():
    policy = Model.policy(tiny_model("llama", seed=1, dtype=torch.float64))
    reference = Model.policy(tiny_model("llama", seed=2, dtype=torch.float64))
    return policy, FrozenCopy(reference, digest="x"), tiny_pairs(7)


def closed_form(policy, reference, pair):
    """(m_w, m_l, K_w, K_l, log p_w, log p_l) from the models' own logits."""

    def one(ids):
        whole = torch.tensor([[*pair.prompts[0].ids, *ids]])
        take = slice(len(pair.prompts[0].ids) - 1, -1)
        log_q, log_p = (
            p.base(whole, use_cache=False).logits[0, take].log_softmax(-1)
            for p in (policy, reference.policy)
        )
        index = torch.tensor(ids)[:, None]
        q, p = log_q.gather(1, index).sum(), log_p.gather(1, index).sum()
        return float(q - p), float((log_p.exp() * (log_p - log_q)).sum()), float(q)

    with torch.no_grad():
        (mw, kw, qw), (ml, kl, ql) = one(pair.responses[0].ids), one(pair.responses[1].ids)
    return mw, ml, kw, kl, qw, ql


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize(
    ("loss", "margin"),
    [
        (None, lambda mw, ml, kw, kl, qw, ql, nw, nl: mw - ml),
        (Dpo(beta=0.3), lambda mw, ml, kw, kl, qw, ql, nw, nl: 0.3 * (mw - ml)),
        (Kto(beta=0.2), lambda mw, ml, kw, kl, qw, ql, nw, nl: 0.2 * (mw - ml)),
        (Sft(), lambda mw, ml, kw, kl, qw, ql, nw, nl: mw - ml),
        (Tdpo1(beta=0.1), lambda mw, ml, kw, kl, qw, ql, nw, nl: 0.1 * (mw + kw - ml - kl)),
        (
            Tdpo2(beta=0.1, alpha=0.4),
            lambda mw, ml, kw, kl, qw, ql, nw, nl: 0.1 * (mw - ml + 0.4 * (kw - kl)),
        ),
        (SimPo(beta=2.0), lambda mw, ml, kw, kl, qw, ql, nw, nl: 2 * (qw / nw - ql / nl)),
        (
            Mixture(losses=(Sft(), Dpo(beta=0.3, weight=2.0))),
            lambda mw, ml, kw, kl, qw, ql, nw, nl: 0.3 * (mw - ml),
        ),
    ],
)
def test_margins_are_the_losses_rewards(setting, loss, margin, layout):
    policy, reference, pairs = setting
    scores = score_pairs(policy, pairs, loss=loss, reference=reference, batch_size=3, layout=layout)
    for pair, score in zip(pairs, scores, strict=True):
        values = closed_form(policy, reference, pair)
        expected = margin(*values, len(pair.responses[0].ids), len(pair.responses[1].ids))
        assert score.id == pair.id
        assert score.margin == pytest.approx(expected, abs=1e-4, rel=1e-4)
        assert score.log_ratio_margin == pytest.approx(values[0] - values[1], abs=1e-4, rel=1e-4)


def test_margins_of_weighted_losses_are_weighted(setting):
    policy, reference, pairs = setting

    def decayed(pair, ids):
        whole = torch.tensor([[*pair.prompts[0].ids, *ids]])
        take = slice(len(pair.prompts[0].ids) - 1, -1)
        q, p = (
            m.base(whole, use_cache=False)
            .logits[0, take]
            .log_softmax(-1)
            .gather(1, torch.tensor(ids)[:, None])[:, 0]
            for m in (policy, reference.policy)
        )
        return float(((q - p) * 0.5 ** torch.arange(1, len(ids) + 1)).sum())

    scores = score_pairs(
        policy,
        pairs,
        loss=Dpo(beta=0.3),
        token_weights=D2poWeights(gamma=0.5),
        reference=reference,
        batch_size=3,
    )
    plain = score_pairs(policy, pairs, loss=Dpo(beta=0.3), reference=reference)
    with torch.no_grad():
        for pair, score, other in zip(pairs, scores, plain, strict=True):
            expected = 0.3 * (
                decayed(pair, pair.responses[0].ids) - decayed(pair, pair.responses[1].ids)
            )
            assert score.margin == pytest.approx(expected, abs=1e-4, rel=1e-4)
            assert score.log_ratio_margin == pytest.approx(other.log_ratio_margin, abs=1e-4)


def test_a_reference_is_asked_for_only_where_the_reward_has_one(setting):
    policy, _, pairs = setting
    scores = score_pairs(policy, pairs, loss=SimPo(), reference=None)
    assert all(s.log_ratio_margin is None for s in scores)
    assert "log_ratio_accuracy" not in summarise_pairs(scores)["all"]
    with pytest.raises(RunError, match="needs a reference"):
        score_pairs(policy, pairs, loss=Dpo(), reference=None)


def test_the_reference_itself_ties_everywhere(setting):
    _, reference, pairs = setting
    scores = score_pairs(reference.policy, pairs, loss=Tdpo2(), reference=reference)
    found = summarise_pairs(scores)["all"]
    assert found["ties"] == found["n"] == 7
    assert found["accuracy"] == 0.5 and found["margin"] == 0 and found["p_value"] == 1.0


def test_evaluation_restores_training_mode(setting):
    policy, reference, pairs = setting
    policy.train()
    score_pairs(policy, pairs[:1], loss=None, reference=reference)
    assert policy.training
    policy.eval()


def test_lengths_are_those_as_written_and_pairs_that_are_even_once_cut_are_counted(setting):
    policy, reference, pairs = setting
    even = (Tokens((3, 4, 5)), Tokens((6, 7, 8)))
    cut = [dataclasses.replace(pair, responses=even) for pair in pairs[:4]]
    tokens = score_pairs(policy, cut, loss=None, reference=reference)
    assert [(s.longer, s.cut_even) for s in tokens] == [(0, False)] * 4
    # Longer, longer, shorter, as long: the baseline is 2.5 of 4; ties of what is left, 2 of 4.
    written = [(900, 300), (301, 300), (40, 70), (12, 12)]
    told = [dataclasses.replace(p, written=w) for p, w in zip(cut, written, strict=True)]
    scores = score_pairs(policy, told, loss=None, reference=reference, batch_size=3)
    assert [s.longer for s in scores] == [600, 1, -30, 0]
    assert [s.cut_even for s in scores] == [True, True, True, False]
    found = summarise_pairs(scores)["all"]
    assert found["length_baseline"] == 2.5 / 4 and found["cut_even"] == 3
    assert summarise_pairs(tokens)["all"]["length_baseline"] == 0.5
    # Where tokens are left to differ, lengths as written count all the same.
    uncut = [
        dataclasses.replace(pairs[0], responses=(Tokens((3,)), Tokens((6, 7, 8))), written=(9, 4))
    ]
    (score,) = score_pairs(policy, uncut, loss=None, reference=reference)
    assert (score.longer, score.cut_even) == (5, False)


def test_summary_by_hand():
    rows = [("a", 1.0, 3), ("a", -2.0, 1), ("a", 0.0, 0), ("b", 4.0, -2)]
    scores = [
        PairScore(id=str(i), source=s, margin=m, log_ratio_margin=2 * m, longer=n)
        for i, (s, m, n) in enumerate(rows)
    ]
    found = summarise_pairs(scores)
    assert list(found) == ["a", "b", "all"]
    assert found["a"]["accuracy"] == 0.5 and found["a"]["ties"] == 1
    assert found["a"]["length_baseline"] == pytest.approx(2.5 / 3)
    assert found["b"]["accuracy"] == 1.0 and found["b"]["length_baseline"] == 0.0
    assert found["all"]["n"] == 4 and found["all"]["accuracy"] == 2.5 / 4
    assert found["all"]["accuracy_ci"] == wilson(2.5, 4)
    # Pair by pair: right less longer is 0, -1, 0 and 1; scipy has the t interval.
    expected = stats.ttest_1samp([0.0, -1.0, 0.0, 1.0], 0).confidence_interval(0.95)
    assert found["all"]["over_length"] == 0.0
    assert found["all"]["over_length_ci"] == pytest.approx(tuple(expected))
    assert found["all"]["margin"] == 0.75 and found["all"]["log_ratio_margin"] == 1.5


def test_pairs_of_one_prompt_widen_every_interval():
    """Six prompts of four pairs that agree are as good as six pairs, by log-ratios too."""
    margins = [1.5, -0.5, 2.0, 0.25, -1.0, 0.75]
    once = [
        PairScore(id=str(i), source="s", margin=m, log_ratio_margin=2 * m, longer=int(8 * m))
        for i, m in enumerate(margins)
    ]
    four = [score for score in once for _ in range(4)]
    prompts = [i for i in range(6) for _ in range(4)]
    alone, grouped = summarise_pairs(once)["all"], summarise_pairs(four, prompts=prompts)["all"]
    for name in ("margin", "log_ratio_margin", "over_length"):
        assert grouped[name] == pytest.approx(alone[name])
        assert grouped[f"{name}_ci"] == pytest.approx(alone[f"{name}_ci"])
    assert grouped["prompts"] == 6 and grouped["n"] == 24
    independent = summarise_pairs(four)["all"]
    for name in ("accuracy", "log_ratio_accuracy", "length_baseline"):
        narrow, wide = (np.ptp(entry[f"{name}_ci"]) for entry in (independent, grouped))
        assert wide > 1.5 * narrow, name
