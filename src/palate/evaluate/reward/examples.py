"""The pairs of an evaluation's benchmarks that its models get wrong by most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palate.evaluate.reward.items import Scores
from palate.evaluate.reward.reading import ReadBenchmark
from palate.evaluate.worst_pairs import Judged, worst_pairs


def examples(
    benchmarks: Sequence[ReadBenchmark],
    scores: Mapping[str, Mapping[str, Scores]],
    types: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The lines of examples.jsonl; see `worst_pairs`.

    Args:
        scores: by model and benchmark. types: of scorers, by model.
    """
    judged: dict[str | None, list[Judged]] = {}
    for benchmark in benchmarks:
        judged[benchmark.name] = [
            Judged(
                id=item.id,
                source=item.source,
                prompt=item.prompt,
                responses=item.responses,
                scores={name: values[benchmark.name][i] for name, values in scores.items()},
                correct=item.correct,
            )
            for i, item in enumerate(benchmark.items)
            if not item.tie
        ]
    # Length is what the others are measured against: its errors say nothing of a model.
    models = [name for name in scores if types[name] != "length"] or list(scores)
    return worst_pairs(judged, models)
