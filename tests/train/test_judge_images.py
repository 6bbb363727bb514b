"""Judges and critics of rows with images: what is asked, kept, trained on and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.images import ImageStore, image_root
from palate.data.schema import images_in, map_images
from palate.data.scorer import Group, ask
from palate.data.stream import read_source
from palate.data.videos import located
from palate.models.loading import load_tokenizer
from palate.models.pictures import pictures_of
from palate.recipes import RewardRecipe, SftRecipe, load_recipe
from palate.recipes.images import ImagesRecipe
from palate.recipes.judge import JudgeRecipe
from palate.recipes.schema import DataSource
from palate.recipes.scorers import CriticScorer
from palate.recipes.serving import ServeRecipe
from palate.rewards.build import make_scorer
from palate.rewards.given import NOT_GIVEN
from palate.rewards.questions import critique_question
from palate.train.judge import train_judge
from palate.train.judge.prepare import QuestionWriter
from palate.train.judge.rows import HAS_IMAGES, read_rows
from tiny_judge import FakeWriter, judge_document
from tiny_runs import read, write_rows
from tiny_vision import save_tiny_vision

SHOWN = (["a"], ["a", "b"], [])
LOOP = {"batch_size_pairs": 3, "max_steps": 1, "learning_rate": 0.01, "layout": "plain"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    save_tiny_vision(folder / "base", "qwen2_5_vl")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        squares = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(squares).resize((64, 48), Image.Resampling.NEAREST)
        image.save(folder / f"{name}.png")
    rows: list[dict[str, Any]] = []
    for i, shown in enumerate((*SHOWN, ["missing"])):
        parts: list[Any] = [{"type": "image"} for _ in shown]
        parts.append({"type": "text", "text": f"What {i}?"})
        rows.append(
            {
                "prompt": [{"role": "user", "content": parts if shown else f"What {i}?"}],
                "chosen": [{"role": "assistant", "content": f"sq {i}"}],
                "rejected": [{"role": "assistant", "content": "no"}],
                "images": [f"{name}.png" for name in shown],
                "for": "right",
                "against": "wrong",
            }
        )
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "good.jsonl", rows[:-1])
    write_rows(folder / "held.jsonl", rows[1:2])
    return folder


def document(root: Path, out: str, **more: Any) -> JudgeRecipe:
    base = {
        "output_dir": str(root / out),
        "model": {"path": str(root / "base"), "dtype": "float32"},
        "data": {
            "train": [{"path": str(root / "pairs.jsonl")}],
            "eval": [{"path": str(root / "held.jsonl")}],
            "length": {"max_answer_tokens": 20},
        },
        "sft": LOOP,
        "evaluate_after": "last",
    }
    return JudgeRecipe.model_validate(base | more)


def trained_items(stage: Path, recipe: Any) -> list[Any]:
    loaded = load_recipe(recipe, stage / "recipe.yaml")
    tokenizer = load_tokenizer(loaded.model)
    pictures = pictures_of(loaded.model, tokenizer)
    encoder = Encoder(tokenizer, loaded.model.chat_template, loaded.data.length, pictures)
    kind = "demonstration" if recipe is SftRecipe else "pair"
    return list(build(loaded.data, encoder, kind=kind, seed=0).train)


def test_a_pairwise_judge_of_images(root: Path) -> None:
    own = document(root, "pairwise", judge={"type": "pairwise", "orders": "both"})
    result = train_judge(own, quiet=True)
    source = read(result.path / "data.json")["sources"][0]
    assert (source["kept"], source["dropped"]) == (3, {"no such file": 1})
    # Each image is one file of the run, under another name beside the questions.
    beside = result.path / "questions/1-sft/images"
    names = sorted(file.name for file in beside.iterdir())
    assert len(names) == 2
    assert all((beside / name).samefile(result.path / "images" / name) for name in names)
    # Both orders show the same images, and training takes them in.
    items = {item.id: item for item in trained_items(result.path / "1-sft", SftRecipe)}
    assert len(items) == 6
    for i, shown in enumerate(SHOWN):
        there, back = (items[f"1-sft:pairs:{i + 1}/{order}"] for order in ("12", "21"))
        images = [image.digest for image in there.prompts[0].images]
        assert images == [image.digest for image in back.prompts[0].images]
        assert len(images) == len(shown) and {f"{digest}.png" for digest in images} <= set(names)
        assert there.prompts[0].ids != back.prompts[0].ids
    (entry,) = result.evaluation
    assert (entry["verdicts"]["unasked"], entry["verdicts"]["n"]) == (0, 2)
    # What comes out is a scorer that sees.
    scorer = make_scorer(load_recipe(ServeRecipe, result.scorer).scorer)
    assert "image" in scorer.traits.modalities


def test_preferences_on_verdicts_name_their_images(root: Path, tmp_path: Path) -> None:
    own = document(root, "preferences", judge={"type": "pairwise"}, sft=None, preference={})
    rows = read_rows(own, ImageStore(tmp_path / "images"))
    writer = QuestionWriter(own, rows, tmp_path / "questions")
    (source,) = writer.preference("p", 1, lambda: FakeWriter(None)).train
    found = read_source(source, seed=0).rows
    assert [len(row.images) for row in found] == [len(shown) for shown in SHOWN]
    for row, item in zip(found, rows.train, strict=True):
        seen = located(row, image_root(source.path), ImagesRecipe())
        told = [image.digest for image in images_in(item.prompt)]
        assert [image.digest for image in seen.images] == told


def test_a_critic_of_images_and_its_reward_model(root: Path) -> None:
    own = document(
        root,
        "critic",
        judge={"type": "critic"},
        evaluate_after="each",
        sft=None,
        texts={"type": "column", "chosen": "for", "rejected": "against"},
        reward={"critiques": "gold", "train": LOOP},
    )
    result = train_judge(own, quiet=True)
    (entry,) = result.evaluation
    assert entry["pairs"]["n"] == entry["pairs_given"]["n"] == 1
    assert entry["critiques"]["unasked"] == 0
    items = trained_items(result.path / "1-reward", RewardRecipe)
    assert [len(i.prompts[0].images) for i in items] == [len(shown) for shown in SHOWN]
    for item in items:
        first, second = ([image.digest for image in prompt.images] for prompt in item.prompts)
        assert first == second
    # Critiques of the data in the place of written ones: the scores that were measured.
    data = str(root / "good.jsonl")
    columns = {"data": [{"path": data}], "chosen": "for", "rejected": "against"}
    model = {"type": "model", "path": str(result.path / "1-reward" / "model")}
    recipe = {"type": "critic", "given": columns, "scorer": model}
    scorer: Any = make_scorer(CriticScorer.model_validate(recipe))
    assert "image" in scorer.traits.modalities
    for row in read_source(DataSource(path=data), seed=0).rows:
        seen = located(row, root, ImagesRecipe())
        sides = tuple(side.content for side in seen.responses)
        found = ask(scorer, [Group(seen.prompt, sides)])[0]
        asked = [
            Group(critique_question(seen.prompt, side), (critique,))
            for side, critique in zip(sides, ("right", "wrong"), strict=True)
        ]
        for score, (expected,) in zip(found, ask(scorer.scorer, asked), strict=True):
            assert score.value == pytest.approx(expected.value, abs=1e-5)
        assert [score.text for score in found] == ["right", "wrong"]
        second = images_in(seen.prompt)[1:]
        if second:
            # The same words about other images have no critique.
            turned = map_images(seen.prompt, lambda _, other=second[0]: other)  # type: ignore[misc]
            (score, _) = ask(scorer, [Group(turned, sides)])[0]
            assert score.reason == NOT_GIVEN


def test_rows_with_images_and_a_model_of_text_alone(tmp_path: Path, root: Path) -> None:
    words = {"for": lambda i: "right praise", "against": lambda i: "wrong blame"}
    base = judge_document(tmp_path, out="run", n=8, answer_tokens=12, columns=words)
    base["data"] |= {"train": [*base["data"]["train"], {"path": str(root / "pairs.jsonl")}]}
    own = JudgeRecipe.model_validate(base | {"judge": {"type": "pairwise"}, "sft": LOOP})
    result = train_judge(own, quiet=True)
    sources = read(result.path / "data.json")["sources"]
    assert sources[1]["dropped"] == {HAS_IMAGES: 3} and sources[1]["kept"] == 1
    assert not (result.path / "images").exists()
