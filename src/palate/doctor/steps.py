"""What an optimizer step of a recipe takes, from a few of them."""

from __future__ import annotations

from collections.abc import Iterator

from palate.doctor.check import Check
from palate.doctor.machine import GIB, machine_memory
from palate.errors import PalateError
from palate.recipes.reward import RewardRecipe
from palate.recipes.schema import SftRecipe, TuneRecipe
from palate.report.words import number
from palate.store.records import Foresight


def step_checks(
    recipe: TuneRecipe | SftRecipe | RewardRecipe, reason: str | None = None
) -> Iterator[Check]:
    """The prediction, or a note why there is none.

    Args:
        reason: not to make one.
    """
    from palate.train.foresight import predict

    if reason is None:
        try:
            foresight = predict(recipe)
        except PalateError as error:
            reason = str(error)
    if reason is not None:
        yield Check("step", "note", f"not predicted: {reason}")
        return
    yield Check("step", "ok", f"about {number(foresight.seconds)} s: {batch_words(foresight)}")
    yield _memory_check(foresight.memory_bytes)


def batch_words(foresight: Foresight) -> str:
    """What a mean step consists of, in the layout that the run will use."""
    words = f"{_mean(foresight.items, 'item')} in {_mean(foresight.micro_batches, 'micro-batch')}"
    if foresight.tokens:
        words += (
            f", each of {foresight.tokens:,.0f} tokens (the largest {foresight.most_tokens:,}), "
            f"{foresight.layout} layout"
        )
    else:
        words += ", of cached states"
    if foresight.rows is not None:
        words += f"; from {foresight.rows:,} rows of each source"
    return words


def _mean(value: float, noun: str) -> str:
    """`1 item`, `2.5 items`, `3 micro-batches`."""
    plural = "" if value == 1 else "es" if noun.endswith("ch") else "s"
    return f"{round(value, 1):,g} {noun}{plural}"


def _memory_check(peak: int) -> Check:
    import torch

    text = f"at most about {peak / GIB:.2f} GiB"
    if torch.cuda.is_available():
        room: int | None = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = machine_memory()
        room = None if memory is None else memory[1]
    if room is None or peak <= room:
        return Check("step memory", "ok", text)
    return Check("step memory", "note", f"{text}, and {room / GIB:.1f} GiB are there")
