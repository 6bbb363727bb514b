"""The whole demonstration on a tiny random model: its files, its resumption, its numbers."""

from __future__ import annotations

import json
import shutil

import pytest
from rich.console import Console

from palate.data.scorer import Score
from palate.demo import demo, presets
from palate.demo import feedback as feedback_module
from palate.demo import run as run_module
from palate.demo.presets import METHODS, Preset
from palate.errors import RunError
from palate.recipes import load_recipe
from palate.recipes.evaluation import EvalRecipe
from palate.recipes.schema import DemoRecipe, TuneRecipe
from palate.rewards import Lexicon
from palate.store.files import read_json
from tiny_text import save_tiny

TINY = Preset(
    train_openings=8,
    heldout_openings=10,
    samples=3,
    new_tokens=5,
    epochs=2,
    checkpoints=2,
    eval_prompts=4,
    eval_samples=2,
)


@pytest.fixture(scope="module", autouse=True)
def tiny_demo():
    """Tiny sizes, and a score that a random model's bytes differ in."""

    def score(self, groups):
        def one(text):
            return Score(sum(ord(c) % 7 for c in text) / max(1, len(text)))

        return [[one(response) for response in group.responses] for group in groups]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "QUICK", TINY)
        patch.setattr(feedback_module, "OPENINGS_PER_SHARD", 4)
        patch.setattr(presets, "LEARNING_RATE", 0.02)
        patch.setattr(Lexicon, "score", score)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "base", "gemma3"))


def quiet():
    return Console(quiet=True)


def run(out, model, **changes):
    recipe = DemoRecipe(output_dir=out, model=model, quick=True, **changes)
    return demo(recipe, console=quiet())


@pytest.fixture(scope="module")
def done(tmp_path_factory, model, tiny_demo):
    out = tmp_path_factory.mktemp("demo")
    run(out, model)
    return out / "quick"


def test_all_files_are_there_and_the_recipes_run_again(done):
    assert (done / "report.html").stat().st_size > 1000
    conclusion = read_json(done / "conclusion.json")
    assert len(conclusion["lines"]) == 3 and conclusion["prompts"] == 4
    for method in METHODS:
        recipe = load_recipe(TuneRecipe, done / method / "recipe.yaml")
        assert recipe.loss.type == method
        assert (done / method / "model" / "adapter_config.json").exists()
    losses = [load_recipe(TuneRecipe, done / m / "recipe.yaml") for m in METHODS]
    shared = [r.model_dump(exclude={"loss", "output_dir"}) for r in losses]
    assert shared[0] == shared[1] == shared[2]
    assert load_recipe(EvalRecipe, done / "evaluation" / "recipe.yaml").checkpoints == "all"
    digests = [read_json(done / m / "data.json")["sources"][0]["sha256"] for m in METHODS]
    assert len(set(digests)) == 1


def test_continuations_are_rated_rows(done):
    rows = [json.loads(line) for line in (done / "data/train.jsonl").read_text().splitlines()]
    assert 0 < len(rows) <= 8
    for row in rows:
        assert 2 <= len(row["completions"]) <= 3
        assert len({c["text"] for c in row["completions"]}) == len(row["completions"])


def test_a_second_run_does_nothing_and_a_fresh_one_gives_the_same(done, model, tmp_path, capsys):
    lines = read_json(done / "conclusion.json")["lines"]
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")}
    run(done.parent, model)
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")} == before
    assert capsys.readouterr().out.splitlines() == lines
    run(tmp_path / "fresh", model)
    assert read_json(tmp_path / "fresh/quick/conclusion.json") == read_json(
        done / "conclusion.json"
    )


@pytest.mark.parametrize("stop", ["sampling", "tuning", "evaluating"])
def test_an_interrupted_demonstration_goes_on(done, model, tmp_path, monkeypatch, stop):
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        if stop == "sampling":
            whole = feedback_module._rated
            calls = []

            def rated(*args, **kwargs):
                calls.append(1)
                if len(calls) > 1:
                    raise KeyboardInterrupt
                return whole(*args, **kwargs)

            patch.setattr(feedback_module, "_rated", rated)
        elif stop == "tuning":
            tuned = run_module._tune

            def tune_two(root, method, *args):
                if method == "tdpo2":
                    raise KeyboardInterrupt
                tuned(root, method, *args)

            patch.setattr(run_module, "_tune", tune_two)
        else:
            patch.setattr(run_module, "_conclude", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises((KeyboardInterrupt, OSError)):
            run(out, model)
    if stop == "sampling":
        assert len(list((out / "quick/data/shards").iterdir())) == 1
    run(out, model)
    assert read_json(out / "quick/conclusion.json") == read_json(done / "conclusion.json")


def test_another_demonstration_in_the_folder_is_refused(done, model):
    with pytest.raises(RunError, match=r"another recipe \(seed: 0 then, 7 now"):
        run(done.parent, model, seed=7)
    with pytest.raises(RunError, match="holds a run already"):
        run(done.parent, model, resume=False)


def test_a_moved_folder_is_still_read(done, tmp_path):
    shutil.copytree(done, tmp_path / "moved")
    base, entropy, curves = run_module.read_curves(tmp_path / "moved/evaluation")
    assert base.shape == (4,) and entropy > 0
    assert [c.name for c in curves] == ["DPO", "TDPO1", "TDPO2"]
    assert all(c.kl.shape == c.reward.shape == (2, 4) for c in curves)
