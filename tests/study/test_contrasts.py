"""Comparisons, ratings and footnotes of studies whose evaluations were written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.store.stages import run_stages
from palate.study import analysis as module
from palate.study.commands import as_stage
from palate.study.graph import ordered
from palate.study.plan import Plan
from palate.study.study import Study
from study_cases import algorithm, evaluation_step, policy_step, recipe, study_of

Row = dict[str, Any]
PROMPTS = 12


def analyse(study: Study) -> dict[str, Any]:
    """The record, which must be what JSON can hold."""
    record = module.analyse(study)
    json.dumps(record)
    return record


def sampled(value: str, **changes: Any) -> Study:
    """Two losses, two seeds; samples scored by their length."""
    options = {"sampling": {"prompts": PROMPTS}, "reward": {"type": "length"}} | changes
    return study_of(
        recipe(
            steps=[policy_step(), evaluation_step(**options)],
            aspects=[algorithm()],
            measures=[{"name": "m", "step": "evaluation", "value": value, "better": "higher"}],
        )
    )


def finish(study: Study, rows: Callable[[str, int], Iterable[Row]], name: str) -> Plan:
    """Finishes all stages, evaluations with `rows` of the loss and the seed."""
    plan = study.plan()
    made = {run.stages["evaluation"]: list(rows(run.cell.name, run.seed)) for run in plan.compared}
    for stage in ordered(plan.stages):
        planted = as_stage(stage)

        def work(folder: Path, _: Any, key: str = stage.key) -> dict[str, Any]:
            if key in made:
                folder.mkdir(parents=True)
                text = "".join(json.dumps(row) + "\n" for row in made[key])
                (folder / name).write_text(text)
            return {}

        object.__setattr__(planted, "run", work)
        run_stages([planted], study.root)
    return plan


def sample(prompt: int, policy: str, checkpoint: int | None, **numbers: Any) -> Row:
    row = {"prompt_id": str(prompt), "index": 0, "policy": policy, "checkpoint": checkpoint}
    row |= {"prompt": f"prompt {prompt}", "response": "text", "tokens": 3, "won": None}
    return row | {"kl": 0.0, "reward": 0.0} | numbers


def test_pairs_of_one_prompt_are_one_unit() -> None:
    study = study_of(recipe(aspects=[algorithm()]))

    def pairs(cell: str, seed: int) -> Iterable[Row]:
        rng = np.random.default_rng([seed, cell == "dpo"])
        for prompt in range(20):
            margin = float(rng.normal(0.4 if cell == "tdpo2" else 0.0))
            for k in range(5):
                row = {"policy": "p", "checkpoint": 1, "source": "s", "id": f"{prompt}.{k}"}
                yield row | {
                    "prompt_id": str(prompt),
                    "margin": margin,
                    "log_ratio_margin": margin,
                }

    finish(study, pairs, "pairs.jsonl")
    (comparison,) = analyse(study)["comparisons"]
    estimate = comparison["estimands"]["new_items"]
    assert estimate["items"] == 20 and estimate["clustered"]
    assert "20 prompts" in estimate["verdict"]


def line(slope: float, kls: Iterable[float]) -> Callable[[float, int], Iterable[Row]]:
    """Checkpoints whose reward is `slope` a nat, the prompts' own level added."""

    def rows(shift: float, seed: int) -> Iterable[Row]:
        for prompt in range(PROMPTS):
            yield sample(prompt, "reference", None, reward=float(prompt))
        for number, kl in enumerate(kls, 1):
            for prompt in range(PROMPTS):
                reward = prompt + slope * kl + shift + 0.01 * prompt * (-1) ** seed
                yield sample(prompt, "p", 10 * number, reward=reward, kl=kl)

    return rows


def test_at_matched_kl_the_steeper_one_wins_whatever_their_ends() -> None:
    study = sampled("reward", checkpoints="all")
    of = {"dpo": line(1.5, [1.0, 2.0]), "tdpo2": line(1.0, [0.5, 2.0, 4.0])}
    finish(study, lambda cell, seed: of[cell](0.0, seed), "samples.jsonl")
    analysis = analyse(study)
    (at_end,) = analysis["comparisons"]
    assert at_end["estimands"]["new_items"]["difference"] == pytest.approx(4.0 - 3.0)
    assert "span" not in at_end
    (matched,) = analysis["matched_kl"]
    # Both are read from the reference at 0 to 2 nats, where their means are at 1.
    assert matched["span"] == [0.0, 2.0] and matched["seeds"] == [0, 1]
    estimate = matched["estimands"]["new_items"]
    assert estimate["difference"] == pytest.approx(1.0 - 1.5, abs=1e-6)
    assert estimate["names"] == ("tdpo2", "dpo") and estimate["items"] == PROMPTS


@pytest.mark.parametrize(("value", "checkpoints"), [("reward", "last"), ("kl", "all")])
def test_nothing_is_compared_at_matched_kl_without_checkpoints_or_gain(
    value: str, checkpoints: str
) -> None:
    study = sampled(value, checkpoints=checkpoints)
    finish(study, lambda cell, seed: line(1.0, [1.0, 2.0])(0.0, seed), "samples.jsonl")
    assert analyse(study)["matched_kl"] == []


def test_runs_that_never_left_the_reference_say_so() -> None:
    study = sampled("reward", checkpoints="all")
    of = {"dpo": line(1.0, [1.0]), "tdpo2": line(1.0, [0.0])}
    finish(study, lambda cell, seed: of[cell](0.1, seed), "samples.jsonl")
    (matched,) = analyse(study)["matched_kl"]
    assert matched["estimands"] == {}
    assert matched["why"].startswith("at matched KL nothing can be compared")


def test_cells_are_rated_by_the_rewards_of_their_samples() -> None:
    study = sampled("reward")
    shift = {"dpo": 0.3, "tdpo2": -0.3}

    def rows(cell: str, seed: int) -> Iterable[Row]:
        rng = np.random.default_rng(7)
        noise = rng.normal(size=PROMPTS)
        for prompt in range(PROMPTS):
            yield sample(prompt, "reference", None, reward=float(noise[prompt]))
        own = np.random.default_rng([seed, cell == "dpo"]).normal(size=PROMPTS)
        for prompt in range(PROMPTS):
            yield sample(prompt, "p", 1, reward=float(own[prompt] + shift[cell]))

    finish(study, rows, "samples.jsonl")
    (ratings,) = analyse(study)["ratings"]
    assert ratings["by"] == "reward" and ratings["prompts"] == PROMPTS
    # Two policies and the reference, of which every two meet on each prompt with each seed.
    assert ratings["outcomes"] == 3 * PROMPTS * 2 and ratings["ties"] == 0
    assert [row["cell"]["algorithm"] for row in ratings["rows"]] == ["dpo", "tdpo2"]
    for row in ratings["rows"]:
        assert row["interval"][0] < row["points"] < row["interval"][1]


def test_by_a_judge_each_meets_the_reference() -> None:
    study = sampled("win_rate", judge={"type": "length"})

    def rows(cell: str, seed: int) -> Iterable[Row]:
        for prompt in range(PROMPTS):
            yield sample(prompt, "reference", None)
            won = 0.8 if prompt % 3 else 0.5 if prompt else 0.2
            yield sample(prompt, "p", 1, won=1 - won if cell == "dpo" else won)

    finish(study, rows, "samples.jsonl")
    analysis = analyse(study)
    (ratings,) = analysis["ratings"]
    assert ratings["by"] == "judge" and ratings["outcomes"] == 2 * PROMPTS * 2
    assert ratings["ties"] == 2 * 3 * 2
    first, second = ratings["rows"]
    assert first["cell"]["algorithm"] == "tdpo2" and first["points"] > 0 > second["points"]
    assert first["points"] == pytest.approx(-second["points"])
    assert analysis["comparisons"][0]["estimands"]["new_items"]["difference"] > 0


def test_too_few_prompts_for_ratings_are_told() -> None:
    study = sampled("reward")
    rows = [sample(p, who, None, reward=float(p)) for p in range(3) for who in ("reference", "p")]
    finish(study, lambda cell, seed: rows, "samples.jsonl")
    (ratings,) = analyse(study)["ratings"]
    assert "3 different" in ratings["why"] and "rows" not in ratings


def test_a_number_that_a_run_cannot_have_is_a_footnote() -> None:
    study = sampled("length_controlled_win_rate")

    def rows(cell: str, seed: int) -> Iterable[Row]:
        rng = np.random.default_rng(seed)
        for prompt in range(PROMPTS):
            yield sample(prompt, "reference", None, response="r" * int(rng.integers(5, 50)))
            won = 1.0 if cell == "tdpo2" else float(prompt % 2)
            yield sample(prompt, "p", 1, response="p" * int(rng.integers(5, 50)), won=won)

    finish(study, rows, "samples.jsonl")
    analysis = analyse(study)
    values = {run["cell"]["algorithm"]: run["values"]["m"] for run in analysis["runs"]}
    assert values["tdpo2"] is None and 0 < values["dpo"] < 1
    notes = [note for note in analysis["footnotes"] if note.startswith("m of tdpo2")]
    assert len(notes) == 2 and "no length-controlled win rate" in notes[0]
    assert analysis["comparisons"][0]["estimands"] == {}


def test_tokens_are_those_trained_on_and_those_sampled() -> None:
    study = sampled("reward", checkpoints="all")
    rows = line(1.0, [1.0, 2.0])
    plan = finish(study, lambda cell, seed: rows(0.0, seed), "samples.jsonl")
    for stage in plan.stages.values():
        if stage.step == "policy":
            folder = study.root / stage.key
            folder.mkdir()
            train = {"pairs": 4, "tokens": {"prompt": 10, "chosen": 20, "rejected": 30}}
            (folder / "data.json").write_text(json.dumps({"train": train}))
            lines = [{"examples": 2}, {"examples": 6}, {"eval_loss": 1.0}]
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (folder / "metrics.jsonl").write_text(text + '{"examples": 9')
    analysis = analyse(study)
    # One and a half times through the pairs; three tokens a prompt of the last checkpoint.
    assert {run["tokens"]["policy"] for run in analysis["runs"]} == {90}
    assert {run["tokens"]["evaluation"] for run in analysis["runs"]} == {3 * PROMPTS}
    assert analysis["cost"]["tokens"] == {"policy": 4 * 90, "evaluation": 4 * 3 * PROMPTS}


def test_samples_of_the_last_checkpoint_are_shown_once() -> None:
    study = sampled("reward", checkpoints="all")
    finish(study, lambda cell, seed: line(1.0, [1.0, 2.0])(0.0, seed), "samples.jsonl")
    shown = analyse(study)["samples"]
    assert len(shown) == 6
    for entry in shown:
        assert entry["reference"] == "text"
        assert [cell["cell"]["algorithm"] for cell in entry["cells"]] == ["dpo", "tdpo2"]
        assert {cell["kl"] for cell in entry["cells"]} == {2.0}
