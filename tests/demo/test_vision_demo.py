"""The whole demonstration that sees on a tiny random model: its files, its stages, its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from lite_tower import lite_weights, width
from palate.demo import demo
from palate.demo.model import DemoModel
from palate.demo.vision import model as model_module
from palate.demo.vision import run as run_module
from palate.demo.vision.model import assembled, image_processor
from palate.demo.vision.presets import BLIND, METHODS, Preset
from palate.demo.vision.tower import tower_config
from palate.recipes import load_recipe
from palate.recipes.schema import DemoRecipe, TuneRecipe
from palate.store.files import read_json, read_jsonl
from tiny_vision import IMAGE, WORDS, tiny_vision_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("easy_vqa") is None, reason="easy-vqa is missing"),
]

TINY = Preset(captions=4, pairs=8, scene_pairs=4, policy_pairs=8, held_out=12)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("model") / "base"
    small = tower_config(width_coefficient=0.5, hidden_dim=width(1280, 0.5))
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    tokenizer = tiny_vision_tokenizer("llava")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "tower_config", lambda: small)
        assembled(language, lite_weights(0.5), IMAGE).save_pretrained(base)
        image_processor(tokenizer).save_pretrained(base)
        made = DemoModel(path=str(base), name="tiny", terms=None)
        patch.setattr(run_module, "packaged_vision_model", lambda say: made)
        patch.setattr(run_module, "QUICK", TINY)
        out = tmp_path_factory.mktemp("demo")
        run(out)
        yield out / "vision-quick"


def run(out: Path) -> Path:
    recipe = DemoRecipe(output_dir=out, quick=True, vision=True)
    return demo(recipe, console=Console(quiet=True))


def test_all_files_are_there_and_the_numbers_are_of_the_held_out_pairs(done: Path) -> None:
    report = (done / "report.html").read_text()
    lines = read_json(done / "conclusion.json")["lines"]
    assert len(lines) == 4 and all(line[:30] in report for line in lines)
    numbers = read_json(done / "measures.json")
    # Whoever sees no image is right about one of two twins, exactly.
    assert numbers["reward_model"]["blind"]["value"] == 0.5
    assert numbers["baselines"]["length"]["heldout"]["value"] == 0.5
    assert set(numbers["policies"]) == {"start", *METHODS, *(m + BLIND for m in METHODS)}
    evaluation = read_json(done / "reward" / "evaluation.json")["policies"][0]["preference"]
    assert evaluation["held-out images"]["n"] == len(list(read_jsonl(done / "data/heldout.jsonl")))
    for method in METHODS:
        seeing, blind = (
            load_recipe(TuneRecipe, done / name / "recipe.yaml")
            for name in (method, method + BLIND)
        )
        assert seeing.loss == blind.loss == METHODS[method][1]
        told = {"output_dir", "data"}
        assert seeing.model_dump(exclude=told) == blind.model_dump(exclude=told)


def test_a_second_run_does_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")}
    run(done.parent)
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*.safetensors")} == before
    lines = read_json(done / "conclusion.json")["lines"]
    assert capsys.readouterr().out.splitlines() == lines
