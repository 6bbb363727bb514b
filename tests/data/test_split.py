"""One rule for which prompts are held out, in training, in `data build` and of judges."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build_cases import built, rows_of
from palate.data.build import build
from palate.data.content import prompt_key
from palate.data.encode import Encoder
from palate.data.items import Tokens
from palate.data.split import joined_keys, split_by_prompt
from palate.errors import RecipeError
from palate.recipes.judge import JudgeRecipe
from palate.recipes.schema import DataRecipe, DataSource
from palate.train.judge.rows import read_rows
from tiny_chat import byte_tokenizer


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


TURN = [{"role": "user", "content": "chat"}]
PROMPTS = [*(f"question {i}" for i in range(30)), TURN]
# Ids as after truncation: three texts each have become one prompt.
IDS = [(i // 3,) for i in range(len(PROMPTS))]


def digest(prompt: Any, seed: int) -> str:
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    return hashlib.blake2b(f"{seed}|text|{text}".encode(), digest_size=8).hexdigest()


def keys_of(prompts: list[Any], seed: int = 0) -> Any:
    return np.array([prompt_key(prompt, seed) for prompt in prompts], dtype=np.uint64)


def test_training_building_and_judges_hold_out_the_same_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i % 20}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    data = DataRecipe(train=(DataSource(path=path),), eval_fraction=0.3)
    trained = build(data, Encoder(byte_tokenizer(), length=data.length), kind="pair", seed=0)
    held = {row.prompt for row in trained.eval_rows}
    assert len(held) == 6 and len(trained.eval) == 12
    built(tmp_path / "out", [{"path": path}], output={"eval_fraction": 0.3})
    assert {row["prompt"] for row in rows_of(tmp_path / "out", "eval")} == held
    judge = {
        "output_dir": "out",
        "data": {"train": [{"path": path}], "eval_fraction": 0.3},
        "judge": {"type": "pairwise"},
        "model": {"path": "none"},
    }
    asked = read_rows(JudgeRecipe.model_validate(judge))
    assert {item.prompt for item in asked.eval} == held


def test_a_text_and_a_chat_that_say_the_same_are_one_prompt() -> None:
    chat = [{"role": "user", "content": "q"}]
    assert prompt_key("q", 0) == prompt_key(chat, 0) != prompt_key("q", 1)
    longer = [*chat, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]
    assert prompt_key(longer, 0) != prompt_key("q", 0)


def test_which_prompts_others_are_decides_nothing() -> None:
    prompts = [f"q{i}" for i in range(50)]
    held = split_by_prompt(keys_of(prompts * 2), 0.2, where="here")
    assert held.sum() == 20 and (held[:50] == held[50:]).all()
    fewer = [p for p, out in zip(prompts, held[:50].tolist(), strict=True) if out][:5] + prompts
    again = split_by_prompt(keys_of(fewer), 0.2, where="here")
    assert (again[5:] == held[:50]).all()
    with pytest.raises(RecipeError, match=r"`here`: 0\.9 of 1 prompts leaves none"):
        split_by_prompt(keys_of(["q"] * 3), 0.9, where="here")


def test_prompts_joined_by_truncation_in_turn_have_one_key() -> None:
    # Each shares its prompt or its tokens with the next; the last with none.
    keys = np.array([50, 40, 40, 30, 30, 20, 99], dtype=np.uint64)
    tokens = [(1,), (1,), (2,), (2,), (3,), (3,), (4,)]
    assert joined_keys(keys, list(map(Tokens, tokens))).tolist() == [20] * 6 + [99]
    assert keys[0] == 50
    apart = np.arange(7, dtype=np.uint64)
    assert joined_keys(apart, [Tokens((i,)) for i in range(7)]).tolist() == apart.tolist()


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
        held = split_by_prompt(joined_keys(keys_of(prompts, seed), ids), 0.35, where="here")
        assert {i for i, out in zip(ids, held, strict=True) if out} == expected
        # A prompt is in one split alone.
        assert not expected & {i for i, out in zip(ids, held, strict=True) if not out}


def test_at_least_one_prompt_is_held_out() -> None:
    assert split_by_prompt(keys_of(["a", "b", "c"]), 0.01, where="here").sum() == 1
