"""Curation of the published files, where they are present: what is found there is really there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from curating import curate
from palate.data.curation.text import as_text, words_of
from palate.data.schema import Preference
from palate.data.stream import read_source
from palate.recipes.schema import DataSource

DATA = Path(
    os.environ.get("PALATE_DATA") or Path(__file__).resolve().parents[3].parent / "shared" / "data"
)
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no public data at {DATA}: set PALATE_DATA to its folder"
)
HH = DATA / "hh_rlhf" / "harmless-base"


def rows_of(path: Path) -> list[Preference]:
    return read_source(DataSource(path=str(path)), seed=0).rows


@pytest.fixture(scope="module")
def harmless() -> list[Preference]:
    return rows_of(HH / "train.jsonl.gz")


@pytest.mark.parametrize(
    ("recipe", "dropped"),
    [
        ({"step": "exact_duplicates"}, 0),
        ({"step": "near_duplicates"}, 0),
        ({"step": "contradictions"}, 0),
        ({"step": "empty"}, 0),
        ({"step": "templates"}, 0),
        ({"step": "exact_duplicates", "of": "prompt"}, 2),
    ],
    ids=lambda value: str(value)[:60],
)
def test_nothing_is_invented(harmless: list[Preference], recipe: Any, dropped: int) -> None:
    assert len(curate(harmless, recipe).dropped) == dropped


def test_english_passes_for_english(harmless: list[Preference]) -> None:
    found = curate(harmless[:600], {"step": "language", "keep": ["en"]})
    assert len(found.dropped) <= 3
    assert len(curate(harmless[:600], {"step": "language", "keep": ["de", "fr"]}).dropped) > 590


def test_training_pairs_that_hold_a_test_prompt(harmless: list[Preference]) -> None:
    """Splits are by whole prompt: what is left in common are first turns of longer dialogues."""
    against = [{"path": str(HH / "test.jsonl.gz")}]
    found = curate(harmless, {"step": "decontaminate", "against": against})
    asked = {" ".join(words_of(as_text(row.prompt))) for row in rows_of(HH / "test.jsonl.gz")}
    expected = set()
    for place, row in enumerate(harmless):
        assert not isinstance(row.prompt, str)
        turns = [t["content"] for t in row.prompt if t["role"] == "user"]
        if any(" ".join(words_of(str(turn))) in asked for turn in turns):
            expected.add(place)
    assert len(expected) == 5
    assert {k for k, reason in found.dropped.items() if reason.endswith("same prompt")} == expected
    assert set(found.dropped) == expected


@pytest.mark.parametrize(
    ("file", "prompts"),
    [
        ("rm_bench/chat_filtered.json", 129),
        ("alpaca_eval_annotations/annotations.json", 581),
        ("vision_reward_benches/vl_rewardbench_sample.jsonl.gz", 120),
        ("vision_reward_benches/mm_rlhf_rewardbench_sample.jsonl.gz", 120),
    ],
)
def test_every_evaluation_set_gives_all_its_prompts(file: str, prompts: int) -> None:
    against = [{"path": str(DATA / file), "name": "set"}]
    recipe = {"step": "decontaminate", "against": against, "missing_images": "text"}
    row = Preference(id="a", source="s", kind="pair", prompt="-", responses=())
    found = curate([row], recipe)
    entry = found.account["sets"]["set"]
    assert (entry["prompts"], entry["without_prompt"]) == (prompts, 0)
    assert entry["images_not_read"] == (prompts if "vision" in file else 0)


def test_rm_bench_is_in_the_alpaca_instructions() -> None:
    """RM-Bench's chat part is made of AlpacaEval's instructions."""
    rated = rows_of(DATA / "alpaca_eval_ratings" / "train.jsonl.gz")
    against = [{"path": str(DATA / "rm_bench" / "chat_filtered.json"), "name": "rm_bench"}]
    found = curate(rated, {"step": "decontaminate", "against": against})
    entry = found.account["sets"]["rm_bench"]
    assert entry["prompts_found"] > 80
    assert entry["pairs"]["same prompt"] > 80
