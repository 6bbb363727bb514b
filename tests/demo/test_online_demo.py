"""The demonstration of online learning on a tiny random model: its files, numbers and words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from palate.data.scorer import Score
from palate.demo import demo
from palate.demo import presets as offline_presets
from palate.demo.conclusion import Curve
from palate.demo.online import run as run_module
from palate.demo.online.best_of_n import best_of_n_curve, sizes
from palate.demo.online.conclusion import Collapse, conclude
from palate.demo.online.presets import ALGORITHMS, COLLAPSE, Preset
from palate.evaluate.reward import kl_bound
from palate.recipes import load_recipe
from palate.recipes.rl import RlRecipe
from palate.recipes.schema import DemoRecipe
from palate.report import html
from palate.rewards import Lexicon
from palate.store.files import read_json, read_jsonl
from palate.train.meter import Statistics
from palate.train.sources.rollout import RolloutSource
from palate.train.training_run import Frame
from tiny_text import save_tiny

TINY = Preset(
    train_openings=6,
    heldout_openings=5,
    samples=3,
    best_of=4,
    new_tokens=4,
    rollouts=4,
    prompts=2,
    group=3,
    learning_rate=0.02,
    checkpoints=2,
    collapse_rollouts=3,
    offline=("dpo",),
    eval_samples=2,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny sizes, and a score that a random model's bytes differ in."""

    def score(self, groups):
        def one(text):
            return Score(sum(ord(c) % 7 for c in text) / max(1, len(text)))

        return [[one(response) for response in group.responses] for group in groups]

    out = tmp_path_factory.mktemp("demo")
    model = save_tiny(tmp_path_factory.mktemp("model") / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "QUICK", TINY)
        patch.setattr(offline_presets, "LEARNING_RATE", 0.02)
        patch.setattr(Lexicon, "score", score)
        # Each run has a report of its own, which the one of all of them does not read.
        patch.setattr(Frame, "_report", lambda self, folder: None)
        run(out, model)
        yield out / "online-quick"


def run(out: Path, model: Path) -> Path:
    recipe = DemoRecipe(output_dir=out, model=str(model), quick=True, online=True)
    return demo(recipe, console=Console(quiet=True))


def test_all_files_are_there_and_the_report_has_the_lines(done: Path) -> None:
    report = (done / "report.html").read_text()
    lines = read_json(done / "conclusion.json")["lines"]
    assert len(lines) == 6 and all(line[:30] in report for line in lines)
    for run_name in (*ALGORITHMS, COLLAPSE):
        recipe = load_recipe(RlRecipe, done / run_name / "recipe.yaml")
        assert recipe.algorithm.type == {"online-dpo": "online_dpo", COLLAPSE: "grpo"}.get(
            run_name, run_name
        )
        assert (done / run_name / "model" / "adapter_config.json").exists()
    assert load_recipe(RlRecipe, done / COLLAPSE / "recipe.yaml").effective_kl is None
    # All learn from the same prompts, of which offline methods have the rated continuations.
    prompts = {row["prompt"] for row in read_jsonl(done / "data/train.jsonl")}
    assert len(prompts) <= TINY.train_openings
    evaluation = read_json(done / "evaluation/evaluation.json")
    kinds = [policy["loss"] for policy in evaluation["policies"]]
    assert kinds == [*(2 * ["ppo"]), "grpo", "grpo", "rloo", "rloo", *(2 * ["online_dpo"]), "dpo"]


def test_the_numbers_are_those_of_the_samples(done: Path) -> None:
    numbers = read_json(done / "measures.json")
    rows = list(read_jsonl(done / "evaluation/samples.jsonl"))
    heldout = {row["prompt"]: row["completions"] for row in read_jsonl(done / "data/heldout.jsonl")}
    asked = {row["prompt"] for row in rows}
    assert asked <= set(heldout) and all(len(c) == TINY.best_of for c in heldout.values())
    base = np.mean([c["rating"] for prompt in asked for c in heldout[prompt]])
    assert numbers["base_reward"] == pytest.approx(base)
    last = [row for row in rows if row["policy"] == "ppo" and row["checkpoint"] == 8]
    gain = np.mean([row["reward"] for row in last]) - base
    assert numbers["gain"]["PPO"]["value"] == pytest.approx(gain)
    best = read_json(done / "best-of-n/evaluation.json")["policies"]
    assert [policy["samples"]["kl"] for policy in best] == [kl_bound(2), kl_bound(4)]
    top = np.mean([max(c["rating"] for c in heldout[prompt]) for prompt in asked])
    assert best[1]["samples"]["reward"] == pytest.approx(top)


def test_a_second_run_does_nothing(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "panel_svg", lambda panel: "")
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")}
    model = (
        read_json(done / "stages/data.json")
        and load_recipe(RlRecipe, done / "ppo/recipe.yaml").model.path
    )
    run(done.parent, Path(model))
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")} == before
    assert capsys.readouterr().out.splitlines() == read_json(done / "conclusion.json")["lines"]


@pytest.mark.slow
def test_a_demonstration_interrupted_in_an_algorithm_goes_on(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(load_recipe(RlRecipe, done / "ppo/recipe.yaml").model.path)
    after_step = RolloutSource.after_step
    with monkeypatch.context() as patch:

        def interrupted(self: RolloutSource) -> Statistics:
            if self.step == 6:
                raise KeyboardInterrupt
            return after_step(self)

        patch.setattr(RolloutSource, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, model)
    checkpoints = tmp_path / "online-quick/ppo/checkpoints"
    assert [checkpoint.name for checkpoint in checkpoints.iterdir()] == ["step-000004"]
    run(tmp_path, model)
    again = read_json(tmp_path / "online-quick/measures.json")
    assert again == read_json(done / "measures.json")


def test_two_demonstrations_at_once_are_refused() -> None:
    with pytest.raises(Exception, match="only without `vision`"):
        DemoRecipe(online=True, vision=True)


def curve(name: str, base: np.ndarray, ends: tuple[float, ...], slope: float, seed: int) -> Curve:
    rng = np.random.default_rng(seed)
    kl = np.stack([np.full(len(base), end) + rng.normal(0, 0.1, len(base)) for end in ends])
    reward = base + slope * kl + rng.normal(0, 0.05, kl.shape)
    return Curve(name=name, kl=kl, reward=reward, entropy=np.full(len(ends), 2.5))


def concluded(alarms: list[tuple[int, str]]) -> dict[str, object]:
    base = np.random.default_rng(9).normal(0.1, 0.3, 60)
    return conclude(
        base,
        3.3,
        [curve("A", base, (0.5, 1.5), 0.2, 1), curve("B", base, (5.0, 9.0), 0.1, 2)],
        [curve("DPO", base, (0.6, 1.4), 0.1, 3)],
        curve("best of n", base, (0.2, 0.6, 1.2), 0.25, 4),
        Collapse(
            reward=(0.1, 0.9),
            entropy=(3.2, 0.2),
            kl=(0.0, 40.0),
            commonest=0.75,
            steps=9,
            alarms=alarms,
        ),
        {"A": [], "B": [(4, "The KL explodes")] if alarms else []},
        scale="points",
        confidence=0.95,
        seed=0,
    )


def test_only_what_the_numbers_show_is_said() -> None:
    found = concluded([(6, "One answer")])
    gain, distance, best, offline, collapse, alarms = found["lines"]
    assert "every method raised it" in gain and "Each was trained once" in distance
    # 0.2 a nat beside 0.25, from 0.5 to 1.2 nats.
    assert found["minus_best_of_n"]["A"]["value"] == pytest.approx(-0.05 * 0.85, abs=0.02)
    assert found["minus_best_of_n"]["A"]["share"] == pytest.approx(0.8, abs=0.08)
    assert "worse" in best and "B has no KL in common with it" in best
    assert "A +0." in offline and "better" in offline
    assert "“One answer” at step 6" in collapse and "75%" in collapse
    assert "B: “The KL explodes” at step 4" in alarms
    json.dumps(found, allow_nan=False)


def test_a_collapse_without_an_alarm_is_called_a_failure() -> None:
    *_, collapse, alarms = concluded([])["lines"]
    assert "none, which is a failure" in collapse and "no alarm began" in alarms


def test_best_of_n_is_a_frontier() -> None:
    assert sizes(16) == [2, 4, 8, 16] and sizes(20) == [2, 4, 8, 16]
    ratings = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    found = best_of_n_curve(ratings)
    # Best of 2 of four: (1 + 2 * 2 + 3 * 3) / 6.
    assert found.reward.tolist() == [pytest.approx([14 / 6, 1.0]), pytest.approx([3.0, 1.0])]
    assert found.kl[:, 0] == pytest.approx([np.log(2) - 0.5, np.log(4) - 0.75])
