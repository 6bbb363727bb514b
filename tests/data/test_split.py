"""Which prompts are held out, computed here once more from the definition."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from palate.data.split import held_out

TURN = [{"role": "user", "content": "chat"}]
PROMPTS = [*(f"question {i}" for i in range(30)), TURN]
# Ids as after truncation: three texts each have become one prompt.
IDS = [(i // 3,) for i in range(len(PROMPTS))]


def digest(prompt: object, seed: int) -> str:
    text = f"{seed}|held out|{json.dumps(prompt, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("seed", range(4))
def test_prompts_of_the_least_digests_are_held_out_whatever_the_order_of_rows(seed: int) -> None:
    least = {
        ids: min(digest(p, seed) for p, i in zip(PROMPTS, IDS, strict=True) if i == ids)
        for ids in IDS
    }
    expected = set(sorted(least, key=least.__getitem__)[:4])  # 0.35 of 11 prompts
    order = list(range(len(PROMPTS)))
    for _ in range(3):
        random.Random(seed).shuffle(order)
        prompts, ids = [PROMPTS[i] for i in order], [IDS[i] for i in order]
        held = held_out(prompts, ids, 0.35, seed)
        assert {i for i, out in zip(ids, held, strict=True) if out} == expected
        # A prompt is in one split alone.
        assert not expected & {i for i, out in zip(ids, held, strict=True) if not out}


def test_at_least_one_prompt_is_held_out() -> None:
    assert sum(held_out(["a", "b", "c"], [(1,), (2,), (3,)], 0.01, 0)) == 1
