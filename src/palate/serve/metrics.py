"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from palate.data.scorer import Score

MOST_REASONS = 50
"""Reasons that are counted by name."""
OTHER = "other"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "palate_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "palate_request_seconds", "From first byte to answer.", ["route"], registry=registry
        )
        self.scored = Counter("palate_responses_scored", "Responses scored.", registry=registry)
        self.unscored = Counter(
            "palate_responses_unscored", "Responses without a score.", ["reason"], registry=registry
        )
        self._reasons: set[str] = set()
        self.queued = Gauge("palate_queued_responses", "Responses that wait.", registry=registry)
        self.sizes = Histogram(
            "palate_batch_responses", "Responses a batch.", buckets=SIZES, registry=registry
        )
        self.batches = Histogram("palate_batch_seconds", "Seconds a batch.", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def batch(self, responses: int, seconds: float) -> None:
        """Counts a batch."""
        self.sizes.observe(responses)
        self.batches.observe(seconds)

    def responses(self, scored: Sequence[Sequence[Score]]) -> None:
        """Counts what became of responses."""
        for scores in scored:
            for score in scores:
                if score.reason is None:
                    self.scored.inc()
                else:
                    self.unscored.labels(self._named(score.reason)).inc()

    def _named(self, reason: str) -> str:
        # Details may quote what was sent: a template says what it does not take.
        reason = reason.partition(": ")[0]
        if reason not in self._reasons and len(self._reasons) >= MOST_REASONS:
            return OTHER
        self._reasons.add(reason)
        return reason

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
