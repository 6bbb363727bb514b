"""Public benchmarks in six categories, averaged as "Unpacking DPO and PPO" averages them.

A category is the mean of its benchmarks, the overall number the unweighted mean of the six
categories (Ivison et al. 2024, arXiv:2406.09279, whose tables agree). ToxiGen counts as 100 less
the share of toxic answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from palate.errors import PalateError

Category = Literal[
    "factuality", "reasoning", "coding", "truthfulness", "safety", "instruction following"
]


@dataclass(frozen=True, kw_only=True)
class PublicBenchmark:
    """A benchmark of the paper, and what measures it without a paid judge.

    Attributes:
        task: name in lm-evaluation-harness; None where that has none.
        metric: of the task, a share between 0 and 1.
        setting: of the paper.
        inverted: a lower number is better: 100 less it counts.
        substitute: how the task differs from what the paper measured; None where it does not.
    """

    name: str
    category: Category
    task: str | None
    metric: str
    setting: str
    inverted: bool = False
    substitute: str | None = None


BENCHMARKS: tuple[PublicBenchmark, ...] = (
    PublicBenchmark(
        name="MMLU", category="factuality", task="mmlu", metric="acc", setting="0-shot"
    ),
    PublicBenchmark(
        name="GSM8K",
        category="reasoning",
        task="gsm8k_cot",
        metric="exact_match",
        setting="8-shot chain of thought, 200 random items; here all 1,319",
    ),
    PublicBenchmark(
        name="BBH",
        category="reasoning",
        task="bbh_cot_fewshot",
        metric="exact_match",
        setting="3-shot chain of thought, 40 items a task",
    ),
    PublicBenchmark(
        name="HumanEval+",
        category="coding",
        task="humaneval_plus",
        metric="pass@1",
        setting="pass@10 of 20 samples at temperature 0.8",
        substitute="pass@1 of one greedy sample, where the paper has pass@10 of 20",
    ),
    PublicBenchmark(
        name="MBPP+",
        category="coding",
        task="mbpp_plus",
        metric="pass_at_1",
        setting="pass@10 of 20 samples at temperature 0.8",
        substitute="pass@1 of one greedy sample, where the paper has pass@10 of 20",
    ),
    PublicBenchmark(
        name="TruthfulQA",
        category="truthfulness",
        task="truthfulqa_mc2",
        metric="acc",
        setting="answers that two judge models call truthful and informative",
        substitute="probability of true choices, where the paper has generated answers and judges",
    ),
    PublicBenchmark(
        name="ToxiGen",
        category="safety",
        task="toxigen",
        metric="acc",
        setting="share of toxic continuations, lower is better",
        inverted=True,
        substitute="whether the model tells toxic statements, where the paper has it write some; "
        "higher is better there, so it is not inverted",
    ),
    PublicBenchmark(
        name="XSTest",
        category="safety",
        task=None,
        metric="f1",
        setting="F1 of refusals as GPT-4 sees them",
        substitute="not in lm-evaluation-harness",
    ),
    PublicBenchmark(
        name="AlpacaEval",
        category="instruction following",
        task=None,
        metric="length_controlled_winrate",
        setting="win rate against GPT-4 as GPT-4 sees it",
        substitute="needs a judge: win rate under a scorer of `palate eval` stands in for it",
    ),
    PublicBenchmark(
        name="IFEval",
        category="instruction following",
        task="ifeval",
        metric="prompt_level_loose_acc",
        setting="prompt-level loose accuracy",
    ),
)
CATEGORIES: tuple[Category, ...] = tuple(dict.fromkeys(b.category for b in BENCHMARKS))


@dataclass(frozen=True)
class Averages:
    """Numbers between 0 and 100.

    Attributes:
        categories: means of those benchmarks that are there.
        overall: mean of the six; None where one has no benchmark.
        missing: names of benchmarks without a number.
    """

    categories: Mapping[Category, float]
    overall: float | None
    missing: tuple[str, ...]


def average(scores: Mapping[str, float], *, substitutes: bool = False) -> Averages:
    """Averages of benchmarks by name, each between 0 and 100, as they are published.

    Args:
        substitutes: scores are those of `task`: of a substitute more is better.

    Raises:
        PalateError: a name that is none of `BENCHMARKS`, or a number out of range.
    """
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    for name, score in scores.items():
        if name not in known:
            raise PalateError(f"{name}: not one of {', '.join(known)}")
        if not 0.0 <= score <= 100.0:
            raise PalateError(f"{name}: {score} does not lie between 0 and 100")
    by_category: dict[Category, list[float]] = {}
    for name, benchmark in known.items():
        if name in scores:
            inverted = benchmark.inverted and not (substitutes and benchmark.substitute)
            score = 100.0 - scores[name] if inverted else scores[name]
            by_category.setdefault(benchmark.category, []).append(score)
    categories = {c: fmean(by_category[c]) for c in CATEGORIES if c in by_category}
    return Averages(
        categories=categories,
        overall=overall(categories) if len(categories) == len(CATEGORIES) else None,
        missing=tuple(name for name in known if name not in scores),
    )


def overall(categories: Mapping[Category, float]) -> float:
    """The unweighted mean of the six categories.

    Raises:
        PalateError: one is not there.
    """
    if lacking := [name for name in CATEGORIES if name not in categories]:
        raise PalateError(f"no overall mean without {', '.join(lacking)}")
    return fmean(categories[name] for name in CATEGORIES)
