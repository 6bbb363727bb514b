"""VADER: a rule-based sentiment lexicon, small enough to ship with a demonstration."""

from __future__ import annotations

from palate.errors import PalateError
from palate.rewards.base import check_lengths


class Lexicon:
    """Compound VADER score of the response alone, in -1 (negative) .. 1 (positive).

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
    Media Text", ICWSM 2014. A response without a word of the lexicon scores 0.

    Raises:
        PalateError: the `demo` extra is not installed.
    """

    name = "VADER compound"
    reads_images = independent = True

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise PalateError(
                "the lexicon reward needs vaderSentiment: pip install 'palate[demo]'"
            ) from None
        self._analyser = SentimentIntensityAnalyzer()

    def score(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Scores each response; the prompts are not looked at."""
        check_lengths(prompts, responses)
        return [float(self._analyser.polarity_scores(text)["compound"]) for text in responses]
