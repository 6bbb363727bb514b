"""What a reader must know before believing the figures of a reward evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from palate.intervals import difference_of_shares
from palate.report.length_notes import over_length
from palate.report.points import interval
from palate.report.words import count, fixed, listed, percent
from palate.store.reward_records import Benchmark, ByLength, Choice, RewardEvaluation

TIE_RATE = 0.02
LARGEST = 64
"""No evaluation looks at a larger n."""
LENGTH_GAP = 0.2
"""Of the accuracies where the better response is longer and where it is shorter."""
PLACES = ("verdicts for the first place", "verdicts for the second place")
"""What a judge that compares counts."""
FEW_VERDICTS, ONE_PLACE = 20, 0.75


def reward_notes(evaluation: RewardEvaluation) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    for model in evaluation.models:
        scores = model.scores
        if scores.unscored:
            share = percent(scores.unscored / scores.n if scores.n else None)
            yield (
                f"{model.name} gives no score to {count(scores.unscored, 'response')} ({share}): "
                "their pairs count as wrong"
            )
        if model.members is not None and model.members.warning is not None:
            yield f"{model.name}: {model.members.warning}"
        places = [model.account.get(name, 0) for name in PLACES]
        if sum(places) >= FEW_VERDICTS and max(places) > ONE_PLACE * sum(places):
            yield (
                f"{model.name} prefers the {'first' if places[0] == max(places) else 'second'} "
                f"place in {percent(max(places) / sum(places), 0)} of its verdicts: it judges by "
                "order more than by what it reads"
            )
    for benchmark in evaluation.benchmarks:
        lacking = dict.fromkeys(
            note for r in benchmark.results.values() for note in r.official.notes
        )
        if lacking:
            yield f"{benchmark.name} is not the set as published: {_first(lacking)}"
    for model in evaluation.models:
        # Length is what the others are measured against.
        if model.type != "length":
            yield from _about(model.name, evaluation.benchmarks)
    for benchmark in evaluation.benchmarks:
        for name, result in benchmark.results.items():
            if lost := max((change.lost for change in result.robustness), default=0):
                yield (
                    f"{name} gives no score to up to {count(lost, 'pair')} of {benchmark.name} "
                    "once their text is changed: they are left out of what turns"
                )
    if evaluation.best_of_n is not None:
        yield from _about_choices(evaluation.best_of_n.models)


def _about_choices(choices: Mapping[str, Choice]) -> Iterator[str]:
    for name, choice in choices.items():
        if choice.left_out or choice.prompts_left_out:
            yield (
                f"best of n by {name} leaves out {count(choice.left_out, 'candidate')} without a "
                f"score or a gold score, and {count(choice.prompts_left_out, 'list')} with fewer "
                f"than {choice.smallest} left"
            )
        fewest, most = choice.fewest or 0, choice.most or 0
        if choice.largest == fewest and 2 * fewest <= min(most, LARGEST):
            yield (
                f"best of n by {name} ends at n = {fewest}, the fewest candidates of a prompt; "
                f"others have up to {most} (`best_of_n.min_candidates` leaves such prompts out)"
            )
        if choice.over_optimised and choice.peak is not None:
            falls = (
                f"the gold score falls by {fixed(-(choice.fall or 0.0), 3)} from "
                f"n = {choice.peak} to n = {choice.largest}"
            )
            if choice.peak == 1:
                yield f"choosing by {name} is worse than choosing blindly: {falls}"
            else:
                yield f"choosing by {name} over-optimises: {falls}"


def _about(name: str, benchmarks: Sequence[Benchmark]) -> Iterator[str]:
    below, chance, length, ties, gaps, blind = [], [], [], [], [], []
    for benchmark in benchmarks:
        result = benchmark.results.get(name)
        whole = None if result is None else result.accuracy.get("all")
        if result is None or whole is None or not whole.n or whole.accuracy_ci is None:
            continue
        if result.look is not None and result.look.as_good_without:
            blind.append(f"{benchmark.name} ({result.look.sentence.partition(': ')[2]})")
        low, high = whole.accuracy_ci
        if low is None or high is None:
            continue
        if high < 0.5:
            below.append(f"{benchmark.name} ({percent(whole.accuracy)})")
        if low <= 0.5 <= high:
            chance.append(f"{benchmark.name} ({percent(low)} to {percent(high)})")
        sides = (whole.length_baseline or 0.0, whole.shorter_baseline or 0.0)
        word = "longer" if sides[0] >= sides[1] else "shorter"
        over = over_length(whole)
        if over is not None and max(sides) > 0.5:
            length.append(
                f"{benchmark.name} ({percent(max(sides))} for the {word} response of the same "
                f"pairs, a difference of {over})"
            )
        if whole.ties > TIE_RATE * whole.n:
            ties.append(f"{percent(whole.ties / whole.n)} of {benchmark.name}")
        gap, ends = result.by_length.gap, gap_interval(result.by_length)
        if gap is not None and abs(gap) > LENGTH_GAP and ends is not None and ends[0] * ends[1] > 0:
            longer, shorter = result.by_length.longer, result.by_length.shorter
            gaps.append(
                f"{percent(longer.accuracy, 0)} of {longer.n:,} against "
                f"{percent(shorter.accuracy, 0)} of {shorter.n:,} on {benchmark.name}"
            )
    if below:
        yield f"{name} is right less often than chance on {listed(below)}"
    if chance:
        yield f"{name} is not clear of chance on {listed(chance)}"
    if blind:
        yield f"{name} is as good without the images on {listed(blind)}"
    if length:
        yield f"{name} is not clear of what length alone gives on {listed(length)}"
    if gaps:
        yield (
            f"{name} reads length: it is right more or less often where the better response is the "
            f"longer one than where it is the shorter one, {listed(gaps)}"
        )
    if ties:
        yield f"{name} gives equal scores, which count as wrong, to the pairs of {listed(ties)}"


def gap_interval(by_length: ByLength) -> tuple[float, float] | None:
    """Interval of the accuracy where the better response is longer less that where it is shorter.

    None where a part of what it takes is missing.
    """
    longer, shorter = by_length.longer, by_length.shorter
    of_longer, of_shorter = interval(longer.accuracy_ci), interval(shorter.accuracy_ci)
    a, b = longer.accuracy, shorter.accuracy
    if a is None or b is None or of_longer is None or of_shorter is None:
        return None
    return difference_of_shares(a, of_longer, b, of_shorter)


def _first(notes: dict[str, None]) -> str:
    items = list(notes)
    shown = items[:3] + ([count(len(items) - 3, "more difference")] if len(items) > 3 else [])
    return listed(shown)
