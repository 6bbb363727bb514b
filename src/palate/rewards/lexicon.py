"""VADER: a rule-based sentiment lexicon, small enough to ship with a demonstration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from palate.data.schema import Content
from palate.data.scorer import TEXT_AND_IMAGES, Group, Score, Traits
from palate.errors import PalateError
from palate.rewards.texts import response_text


class Lexicon:
    """Compound VADER score of the response alone, in -1 (negative) .. 1 (positive).

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
    Media Text", ICWSM 2014. A response without a word of the lexicon scores 0.

    Raises:
        PalateError: the `demo` extra is not installed.
    """

    traits = Traits(independent=True, modalities=TEXT_AND_IMAGES, reads_prompt=False)

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise PalateError(
                "the lexicon reward needs vaderSentiment: pip install 'palate[demo]'"
            ) from None
        self.name = "VADER compound"
        self.counts: Counter[str] = Counter()
        self._analyser = SentimentIntensityAnalyzer()

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """The prompts are not looked at."""
        return [[Score(self._compound(r)) for r in group.responses] for group in groups]

    def _compound(self, response: Content) -> float:
        return float(self._analyser.polarity_scores(response_text(response))["compound"])
