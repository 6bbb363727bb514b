"""Reward models that see, as scorers: of rows with images, and as plain transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.train.test_vision_run import recipe, write_rows
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from palate.data.schema import ImageRef, Message
from palate.data.scorer import HAS_IMAGES, Group, ask
from palate.evaluate.reward.score import score_files
from palate.models import vision
from palate.models.processor import images_only
from palate.recipes.reward import RewardRecipe
from palate.recipes.scorers import RuleScorer
from palate.recipes.serving import ScoreRecipe
from palate.rewards import FunctionScorer, WeightedSum, make_scorer
from palate.rewards.api import load_scorer
from palate.rewards.combined import Member
from palate.rewards.length import Length
from palate.rewards.model import ModelScorer
from palate.train import reward
from scored import Alike
from tiny_vision import save_tiny_vision


@pytest.fixture(scope="module", params=["qwen2_5_vl-full", "gemma3-full", "qwen2_5_vl-lora"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, kind = request.param.split("-")
    folder = tmp_path_factory.mktemp("seeing")
    save_tiny_vision(folder / "base", family)
    write_rows(folder)
    values = recipe(folder, "reward", head={"layers": 1 if family == "gemma3" else 2})
    if kind == "full":
        values["model"] = values["model"] | {"lora": None, "vision": {"projector": "trained"}}
        values["train"] = values["train"] | {"learning_rate": 1e-3}
    reward(RewardRecipe.model_validate(values), quiet=True)
    (folder / "kind").write_text(request.param)
    return folder


def content(*parts: Any) -> list[Message]:
    """A user's turn of texts and images (given by path)."""
    made: list[Any] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": ImageRef(path=part.name, root=part.parent)}
        for part in parts
    ]
    return [Message(role="user", content=made)]


def by_transformers(root: Path, texts: list[str], images: list[Path], response: str) -> float:
    """The reward as documented for those who do without Palate."""
    folder = root / "reward" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = root.joinpath("kind").read_text().startswith("gemma3")
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModel
    model = auto.from_pretrained(folder, dtype=torch.float32)
    kind = images_only(PROCESSOR_MAPPING[type(model.config)])
    processor: Any = kind.from_pretrained(folder, backend="pil")
    parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": t} for t in texts]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": response},
    ]
    text = processor.tokenizer.apply_chat_template(chat, tokenize=False)
    pictures = [Image.open(file) for file in images]
    inputs = processor(text=text, images=pictures or None, return_tensors="pt")
    del tokenizer
    with torch.no_grad():
        if classifier:
            return float(model(**inputs).logits)
        state = model(**inputs).last_hidden_state[0, -1].float()
        head = load_file(folder / "reward_head.safetensors")
        hidden = torch.nn.functional.silu(
            state @ head["head.layers.0.weight"].T + head["head.layers.0.bias"]
        )
        return float(hidden @ head["head.layers.1.weight"].T + head["head.layers.1.bias"])


def test_scores_are_those_of_plain_transformers(root: Path) -> None:
    if "lora" in root.joinpath("kind").read_text():
        pytest.skip("adapters are merged first")
    scorer = ModelScorer(root / "reward" / "model")
    assert "image" in scorer.traits.modalities
    a, b = root / "a.png", root / "b.png"
    for images, words in (([a], "one"), ([a, b], "two"), ([], "none")):
        prompt = content(*images, f"What is here, {words}?")
        answers = [" squares", " nothing at all"]
        (scores,) = scorer.score([Group(prompt, tuple(answers))])
        for answer, score in zip(answers, scores, strict=True):
            own = by_transformers(root, [f"What is here, {words}?"], images, answer)
            assert score.value == pytest.approx(own, abs=1e-5)


def test_the_image_decides_and_is_run_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(root / "reward" / "model")
    a, b = root / "a.png", root / "b.png"

    def score(*parts: Any) -> float:
        (made,) = scorer.score(content(*parts, "What?"), [" squares"])
        assert made.value is not None
        return made.value

    first = score(a)
    assert abs(first - score(b)) > 1e-6 and abs(first - score()) > 1e-6
    assert score(a) == first
    # A path from the working directory, and the file's bytes, are the same image.
    monkeypatch.chdir(root)
    given: Any = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    given[0]["content"].append({"type": "text", "text": "What?"})
    assert scorer.score(given, [" squares"])[0].value == first
    given[0]["content"][0] = {"type": "image", "image": a.read_bytes()}
    assert scorer.score(given, [" squares"])[0].value == first
    ran: list[int] = []
    whole = vision.image_features

    def counting(model: Any, pixels: Any, lengths: Any) -> Any:
        ran.append(len(pixels))
        return whole(model, pixels, lengths)

    monkeypatch.setattr("palate.models.image_cache.image_features", counting)
    monkeypatch.setattr("palate.models.vision.image_features", counting)
    prompts = [content(a, f"What, {i}?") for i in range(5)]
    scorer.score_many(prompts, [[" squares", " none"]] * 5)
    assert sum(ran) == 0, "its features were there already"


def test_scores_do_not_depend_on_the_call(root: Path) -> None:
    """Nor on what else is in it, nor on order, to rounding."""
    scorer = ModelScorer(root / "reward" / "model")
    a, b = root / "a.png", root / "b.png"
    prompts = [content(a, "x?"), content(a, b, "longer than it?"), content("text?"), content(b)]
    groups = [Group(prompt, (" yes", " no, it is not")) for prompt in prompts]
    together = [[s.value for s in scores] for scores in scorer.score(groups)]
    alone = [[s.value for s in scorer.score([group])[0]] for group in groups]
    backwards = [[s.value for s in scores] for scores in scorer.score(groups[::-1])][::-1]
    for other in (alone, backwards):
        assert torch.allclose(values(together), values(other), atol=2e-5)


def values(scores: Any) -> Tensor:
    return torch.tensor(scores, dtype=torch.float64)


def test_files_with_images_are_scored(root: Path, tmp_path: Path) -> None:
    scorer = {"type": "model", "path": str(root / "reward" / "model")}
    data = [{"path": str(root / "pairs.jsonl")}]
    given = {"output_dir": tmp_path / "scores", "scorer": scorer, "data": data}
    result = score_files(ScoreRecipe.model_validate(given))
    lines = [json.loads(line) for line in result.scores.read_text().splitlines()]
    assert len(lines) == 14 and sum(line["score"] is not None for line in lines) == 12
    assert {line["reason"] for line in lines if line["score"] is None} == {"no such file"}


def test_a_blind_score_is_that_of_the_text(root: Path, tmp_path: Path) -> None:
    scorer = {"type": "model", "path": str(root / "reward" / "model")}
    data = [{"path": str(root / "pairs.jsonl")}]
    given = {"output_dir": tmp_path / "blind", "scorer": scorer, "data": data, "images": "removed"}
    result = score_files(ScoreRecipe.model_validate(given))
    lines = [json.loads(line) for line in result.scores.read_text().splitlines()]
    asked = content("What is here, 0?")
    (scores,) = ModelScorer(root / "reward" / "model").score([Group(asked, (" squares 0",))])
    # The last row, whose picture is missing, is no worse than the others here.
    assert all(line["score"] is not None for line in lines)
    assert lines[0]["score"] == pytest.approx(scores[0].value, abs=2e-5)


def test_what_reads_texts_gets_no_image() -> None:
    image = content(Path("a.png"), "What?")
    from palate.data.scorer import ask

    class Blind(Length):
        @property
        def traits(self) -> Any:
            from palate.data.scorer import Traits

            return Traits()

    (scores,) = ask(Blind("longer"), [Group("What?", (image,))])
    assert scores[0].reason == HAS_IMAGES


def test_an_ensemble_sends_texts_to_one_model_and_images_to_another(root: Path) -> None:
    """By modality: text rows are no business of a member for images, and the other way round."""
    seeing = {"type": "model", "path": str(root / "reward" / "model")}
    ensemble = {
        "type": "ensemble",
        "members": [
            {"scorer": seeing, "modality": "image"},
            {"scorer": {"type": "length"}, "modality": "text"},
        ],
    }
    scorer = load_scorer(ensemble)
    alone = load_scorer(root / "reward" / "model")
    shown, asked = content(root / "a.png", "What?"), content("What?")
    answers = [" squares", " nothing at all"]
    pictured, text = scorer.score(shown, answers), scorer.score(asked, answers)
    values = [score.value for score in alone.score(shown, answers)]
    assert [score.value for score in pictured] == pytest.approx(values, abs=1e-5)
    assert [score.value for score in text] == [len(answer) for answer in answers]


def test_images_reach_the_members_that_read_them(root: Path) -> None:
    """A reward of a model that sees, a rule and a function: each gets of a prompt what it reads."""
    seen: list[Any] = []

    def sized(prompts: Any, completions: Any, **_: Any) -> list[float]:
        seen.extend(part["image"].size for turn in prompts[0] for part in turn["content"][:1])
        return [0.0] * len(completions)

    model = ModelScorer(root / "reward" / "model")
    rule = make_scorer(RuleScorer(answer_column="answer"))
    weights = {model: 1.0, rule: 10.0, FunctionScorer(sized): 1.0}
    members = [Member(scorer=scorer, weight=weight) for scorer, weight in weights.items()]
    mixture = WeightedSum(members)
    assert "image" in mixture.traits.modalities
    responses, columns = (" squares", " nothing"), {"answer": "squares"}
    groups = [
        Group(content(root / name, "What?"), responses, columns=columns)
        for name in ("a.png", "b.png")
    ]
    mixed = ask(mixture, groups)
    for group, scores, alone in zip(groups, mixed, model.score(groups), strict=True):
        assert scores[0].value == pytest.approx(alone[0].value + 10)  # type: ignore[operator]
        assert scores[1].value == pytest.approx(alone[1].value)
        assert len(group.responses) == len(scores)
    assert abs(mixed[0][0].value - mixed[1][0].value) > 1e-6  # type: ignore[operator]
    assert seen and all(len(size) == 2 for size in seen)
    blind = WeightedSum([members[1], Member(scorer=Alike(), weight=1.0)])
    assert ask(blind, groups)[0][0].reason == HAS_IMAGES
