"""The six-category mean, on the published table of the paper that it is from."""

from __future__ import annotations

import pytest

from palate.errors import PalateError
from palate.evaluate.categories import BENCHMARKS, CATEGORIES, average, overall

# Table 1 of arXiv:2406.09279: six categories and their published mean.
PUBLISHED = {
    "Tulu 2 13B SFT": (55.4, 47.8, 45.1, 56.6, 91.8, 44.2, 56.8),
    "SHP-2": (55.4, 47.7, 40.3, 62.2, 90.4, 45.6, 56.9),
    "StackExchange": (55.7, 46.8, 39.6, 67.4, 92.6, 44.6, 57.8),
    "PRM800k": (55.3, 49.7, 46.6, 54.7, 91.9, 43.4, 56.9),
    "Chatbot Arena 2023": (55.4, 50.2, 45.9, 58.5, 67.3, 50.8, 54.7),
    "Chatbot Arena 2024": (55.7, 50.4, 37.7, 56.7, 58.1, 50.7, 51.5),
    "AlpacaFarm human": (55.3, 47.6, 43.3, 56.1, 90.7, 44.5, 56.2),
    "Capybara 7k": (55.2, 46.4, 46.4, 57.5, 91.5, 46.1, 57.2),
    "HH-RLHF": (54.7, 46.0, 43.6, 65.6, 93.1, 45.4, 58.1),
    "HelpSteer": (55.2, 48.2, 46.5, 60.3, 92.5, 45.2, 58.0),
    "AlpacaFarm GPT-4": (55.3, 49.1, 43.4, 57.7, 89.5, 46.3, 56.9),
    "Orca pairs": (55.5, 46.8, 46.0, 57.9, 90.5, 46.2, 57.2),
    "Nectar": (55.3, 47.8, 43.2, 68.2, 93.1, 47.8, 59.2),
    "UltraFeedback overall": (55.6, 48.8, 46.5, 67.6, 92.1, 51.1, 60.3),
    "UltraFeedback fine-grained": (55.3, 50.9, 45.9, 69.3, 91.9, 52.8, 61.0),
    "UltraFeedback fine-grained, PPO": (56.0, 52.0, 47.7, 71.5, 91.8, 54.4, 62.2),
}


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_mean_is_the_published_one(row: str) -> None:
    *values, published = PUBLISHED[row]
    # Published numbers are rounded to 0.1, and so are the six.
    assert overall(dict(zip(CATEGORIES, values, strict=True))) == pytest.approx(published, abs=0.1)


def test_a_category_is_the_mean_of_its_benchmarks_and_less_toxic_is_better() -> None:
    scores = {benchmark.name: 50.0 for benchmark in BENCHMARKS}
    scores |= {"GSM8K": 60.0, "BBH": 40.0, "ToxiGen": 1.0, "XSTest": 89.0}
    averages = average(scores)
    assert averages.categories["reasoning"] == 50.0
    assert averages.categories["safety"] == (99.0 + 89.0) / 2
    assert averages.overall == pytest.approx((5 * 50.0 + 94.0) / 6)
    assert averages.missing == ()


def test_what_is_missing_is_told_and_leaves_no_overall_mean() -> None:
    averages = average({"MMLU": 50.0, "IFEval": 20.0})
    assert dict(averages.categories) == {"factuality": 50.0, "instruction following": 20.0}
    assert averages.overall is None
    assert "GSM8K" in averages.missing and "MMLU" not in averages.missing


def test_mistakes_are_one_line() -> None:
    with pytest.raises(PalateError, match="HellaSwag: not one of"):
        average({"HellaSwag": 50.0})
    with pytest.raises(PalateError, match="does not lie between 0 and 100"):
        average({"MMLU": 101.0})
    with pytest.raises(PalateError, match="no overall mean without reasoning"):
        overall({name: 1.0 for name in CATEGORIES if name != "reasoning"})
