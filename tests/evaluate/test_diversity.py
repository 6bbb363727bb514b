"""Diversity by hand."""

from __future__ import annotations

import pytest

from palate.evaluate.diversity import distinct, diversity, self_bleu


def test_distinct_by_hand():
    texts = ["The film was good.", "the film was bad"]
    # the film was good . the film was bad: 9 unigrams, 6 of them different
    assert distinct(texts, 1) == pytest.approx(6 / 9)
    # the-film film-was was-good good-. | the-film film-was was-bad
    assert distinct(texts, 2) == pytest.approx(5 / 7)
    assert distinct([" ", ""], 1) == 0.0


def test_self_bleu_is_one_for_copies_and_falls_with_difference():
    text = "the room was small but the bed was good"
    assert self_bleu([[text, text, text]]) == pytest.approx(1.0)
    other = "quiet streets lead from our hotel to a market"
    near = "the room was small but the bed was hard"
    assert self_bleu([[text, other]]) < self_bleu([[text, near]]) < 1.0
    assert self_bleu([[text], ["", text]]) is None


def test_groups_are_the_prompts_where_they_have_several_samples():
    texts = ["a good film", "a good film", "no plot", "no plot"]
    within = diversity([0, 0, 1, 1], texts, [1.0, 2.0, 3.0, 4.0], [1, 1, 1, 3])
    assert within["self_bleu_of"] == "prompt" and within["self_bleu"] == pytest.approx(1.0)
    assert within["entropy"] == pytest.approx((1 + 2 + 3 + 12) / 6)
    across = diversity(
        [0, 1, 2, 3], ["a good film", "no plot", "late", "we left"], [1] * 4, [3] * 4
    )
    assert across["self_bleu_of"] == "all" and across["self_bleu"] < 0.5
