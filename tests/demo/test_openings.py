"""The openings: many, readable, cut before a verdict, and split by template."""

from __future__ import annotations

from collections import Counter

from palate.demo.openings import openings


def test_numbers_and_lengths():
    train, heldout = openings("train"), openings("heldout")
    texts = [o.text for o in [*train, *heldout]]
    assert len(train) == 300 and len(heldout) == 100
    assert len(set(texts)) == 400 and len({o.id for o in [*train, *heldout]}) == 400
    for text in texts:
        assert 6 <= len(text.split()) <= 17, text
        assert text == text.strip() and "{" not in text and "|" not in text
        assert text[-1].isalpha() or text[-1] == ",", text


def test_no_heldout_opening_is_near_a_training_one():
    def grams(text):
        words = text.lower().replace(",", "").split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    trained = [grams(o.text) for o in openings("train")]
    for opening in openings("heldout"):
        own = grams(opening.text)
        assert max(len(own & other) / len(own) for other in trained) < 0.4, opening.text


def test_a_prefix_is_mixed_and_stable():
    part = openings("train", 60)
    assert part == openings("train")[:60]
    assert Counter(o.domain for o in part) == dict.fromkeys(
        ("film", "restaurant", "book", "hotel", "product"), 12
    )
    assert len({o.id.rsplit(".", 1)[0] for o in part}) == 60
