"""Reward functions get from us what TRL's GRPOTrainer gives them, `trainer_state` apart."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

from palate.data.scorer import Group
from palate.rewards import FunctionScorer

pytest.importorskip("trl", reason="TRL is not installed")


def by_trl(function: Any, inputs: list[Any], completions: list[Any], ids: list[Any]) -> list[float]:
    from accelerate import PartialState
    from trl import GRPOTrainer

    PartialState(cpu=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        reward_funcs=[function],
        reward_processing_classes=[None],
        reward_func_names=["f"],
        state=SimpleNamespace(global_step=0),
        environments=None,
        async_loop=loop,
        _pending_extra_logs=defaultdict(list),
        _pending_metrics=defaultdict(list),
    )
    trainer._log_completion_extra = lambda *a: GRPOTrainer._log_completion_extra(trainer, *a)
    trainer._log_metric = lambda *a: GRPOTrainer._log_metric(trainer, *a)
    prompts = [row["prompt"] for row in inputs]
    rewards = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, ids)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return [float(x) for x in rewards[:, 0]]


def rewarding(calls: list[dict[str, Any]]) -> Any:
    def f(prompts: Any, completions: Any, completion_ids: Any, answer: Any, **more: Any) -> Any:
        calls.append(
            {
                "prompts": prompts,
                "completions": completions,
                "completion_ids": completion_ids,
                "answer": answer,
                **more,
            }
        )
        more["log_extra"]("length", [len(ids) for ids in completion_ids])
        more["log_metric"]("n", len(prompts))
        pairs = zip(answer, completions, strict=True)
        return [None if a == "none" else float(len(str(c))) for a, c in pairs]

    return f


def in_async(function: Any) -> Any:
    async def f(**given: Any) -> Any:
        await asyncio.sleep(0)
        return function(**given)

    return f


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_same_arguments_and_rewards(conversational: bool, is_async: bool) -> None:
    def prompt(text: str) -> Any:
        return [{"role": "user", "content": text}] if conversational else text

    def completion(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if conversational else text

    rows = [
        {"prompt": prompt("p"), "answer": "a", "level": 1},
        {"prompt": prompt("q"), "answer": "none", "level": None},
    ]
    texts, ids = [["x", "yy"], ["zzz", ""]], [[[1], [2, 3]], [[4], [5]]]
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    functions = [rewarding(theirs), rewarding(ours)]
    if is_async:
        functions = list(map(in_async, functions))
    inputs = [row for row in rows for _ in range(2)]
    completions = [completion(text) for of_row in texts for text in of_row]
    flat_ids = [of_text for of_row in ids for of_text in of_row]
    expected = by_trl(functions[0], inputs, completions, flat_ids)
    groups = [
        Group(
            row["prompt"],
            tuple(of_row),
            columns={name: value for name, value in row.items() if name != "prompt"},
            response_ids=tuple(map(tuple, of_ids)),
        )
        for row, of_row, of_ids in zip(rows, texts, ids, strict=True)
    ]
    scored = FunctionScorer(functions[1]).score(groups)
    for call in (*theirs, *ours):
        assert callable(call.pop("log_extra")) and callable(call.pop("log_metric"))
    assert theirs[0].pop("trainer_state").global_step == 0
    assert ours == theirs
    values = [score.value for scores in scored for score in scores]
    # TRL writes NaN where a function gives None.
    assert values == [value if value == value else None for value in expected]
    assert scored[0][1].parts["length"].value == 2.0 and scored[0][1].parts["n"].value == 4.0
