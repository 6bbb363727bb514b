"""The scorer of reward models: as trained, whatever the batch; public ones as others run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from palate.errors import ModelError
from palate.models.reward_files import load_reward_model
from palate.models.reward_tokens import classifier_template, padding_token
from palate.recipes.reward import RewardRecipe
from palate.rewards.model import ModelScorer
from palate.train import reward
from scored import flat_values, groups_of, values
from tiny import CONFIGS
from tiny_chat import CHATML, NO_END, STRICT, byte_tokenizer
from tiny_runs import WORDS, write_rows

PLACES = {"abs": 1e-5}


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def save_base(
    folder: Path, template: str | None, family: str = "gemma3", *, labels: int = 0
) -> Path:
    torch.manual_seed(0)
    config = CONFIGS[family]()
    tokenizer = byte_tokenizer(adds_bos=template is None, template=template)
    config.vocab_size = len(tokenizer)
    from transformers import AutoModelForCausalLM

    if labels:
        config.num_labels = labels
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder: Path, template: str | None = CHATML, **more: Any) -> Path:
    """A run on chats (or, without a template, on texts)."""
    save_base(folder / "base", template)
    rows = []
    for i in range(10):
        good, bad = WORDS[i % 6], WORDS[6 + i % 6]
        if template is None:
            rows.append({"prompt": f"{i}: ", "chosen": good * (1 + i % 3), "rejected": bad})
        else:
            rows.append(
                {
                    "prompt": chat(f"say {i}"),
                    "chosen": [{"role": "assistant", "content": good * (1 + i % 3)}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
            )
    write_rows(folder / "rows.jsonl", rows)
    recipe = RewardRecipe.model_validate(
        {
            "output_dir": folder / "run",
            "model": {"path": str(folder / "base"), "dtype": "float32"},
            "data": {
                "train": [{"path": str(folder / "rows.jsonl")}],
                "eval": [{"path": str(folder / "rows.jsonl")}],
            },
            "train": {"batch_size_pairs": 4, "learning_rate": 1e-3},
        }
        | more
    )
    return reward(recipe, quiet=True).path


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")


@pytest.mark.parametrize(
    "template", [CHATML, STRICT, NO_END, None], ids=["ml", "strict", "no", "text"]
)
def test_training_evaluation_and_scoring_agree(template: str | None, tmp_path: Path) -> None:
    run = trained(tmp_path, template)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    scorer = ModelScorer(run / "model")
    assert scorer.name == "run"
    sides = [
        flat_values(scorer, [row["prompt"] for row in rows], [row[side] for row in rows])
        for side in ("chosen", "rejected")
    ]
    (entry,) = json.loads((run / "evaluation.json").read_text())["policies"]
    flat = sides[0] + sides[1]
    assert sum(flat) / 20 == pytest.approx(entry["rewards"]["mean"], **PLACES)
    assert (min(flat), max(flat)) == pytest.approx(
        (entry["rewards"]["min"], entry["rewards"]["max"]), **PLACES
    )
    scale = load_reward_model(run / "model").spec.scale
    assert scale is not None
    assert sum(flat) / 20 == pytest.approx(scale.mean, **PLACES)
    normal = ModelScorer(run / "model", normalised=True)
    z = flat_values(normal, [row["prompt"] for row in rows], [row["chosen"] for row in rows])
    assert z == pytest.approx([(r - scale.mean) / scale.deviation for r in sides[0]], abs=1e-4)
    # A checkpoint, whose tokenizer is the base model's.
    (step,) = (run / "checkpoints").iterdir()
    again = ModelScorer(step / "model")
    assert flat_values(again, [rows[0]["prompt"]], [rows[0]["chosen"]]) == pytest.approx(
        sides[0][:1], **PLACES
    )


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    run = trained(tmp_path)
    prompts = [chat("a" * (1 + 7 * (i % 4))) for i in range(9)]
    responses = ["word " * (1 + (5 * i) % 7) for i in range(9)]
    whole = flat_values(ModelScorer(run / "model"), prompts, responses)
    assert len(set(whole)) > 6
    for budget in (1, 64, 200):
        small = ModelScorer(run / "model", batch_tokens=budget)
        assert flat_values(small, prompts, responses) == pytest.approx(whole, **PLACES)
    order = [4, 8, 0, 2, 6, 1, 7, 3, 5]
    mixed = flat_values(
        ModelScorer(run / "model"), [prompts[i] for i in order], [responses[i] for i in order]
    )
    assert mixed == pytest.approx([whole[i] for i in order], **PLACES)
    alone = [
        flat_values(ModelScorer(run / "model"), [p], [r])[0]
        for p, r in zip(prompts[:2], responses, strict=False)
    ]
    assert alone == pytest.approx(whole[:2], **PLACES)


def test_several_responses_share_their_prompt(tmp_path: Path) -> None:
    scorer = ModelScorer(trained(tmp_path) / "model")
    groups = [["one", "two words", "three"], ["x"], ["yes", "no no no"]]
    prompts = [chat("first"), chat("second"), chat("third one")]
    together = values(scorer, prompts, groups)
    assert scorer._layout == "shared"
    for prompt, group, found in zip(prompts, groups, together, strict=True):
        assert found == pytest.approx(flat_values(scorer, [prompt] * len(group), group), **PLACES)


def test_texts_and_chats(tmp_path: Path) -> None:
    chats = ModelScorer(trained(tmp_path / "chats") / "model")
    assert flat_values(chats, ["hello"], ["you"]) == pytest.approx(
        flat_values(chats, [chat("hello")], ["you"])
    )
    assert chats.model.spec.end_tokens == {4: "<end>"}
    texts = ModelScorer(trained(tmp_path / "texts", None) / "model")
    assert texts.model.spec.end_tokens == {2: "<eos>"}
    with pytest.raises(ModelError, match="plain text"):
        flat_values(texts, [chat("hello")], ["you"])


def test_what_cannot_be_scored_has_a_reason(tmp_path: Path) -> None:
    scorer = ModelScorer(trained(tmp_path) / "model")
    (found,) = scorer.score(groups_of([chat("hi")], [["fine", "x" * 400, "<end>"]]))
    assert [score.value is None for score in found] == [False, True, True]
    assert "longer than" in found[1].reason and found[2].reason and not found[0].reason


def test_transformers_reads_a_rendered_chat_where_we_do(tmp_path: Path) -> None:
    """Template and tokenizer as saved: the line break after the end of the turn is gone."""
    folder = trained(tmp_path) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [chat("hi", "yes"), chat("a longer one", "no no no")]
    ours = flat_values(ModelScorer(folder), [c[:1] for c in chats], [c[1:] for c in chats])
    for side in ("right", "left"):
        tokenizer.padding_side = side
        inputs = tokenizer.apply_chat_template(
            chats, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            theirs = model(**inputs).logits[:, 0].tolist()
        assert theirs == pytest.approx(ours, **PLACES)


def test_models_that_others_trained(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "public", CHATML, "llama", labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = chat("hi", "yes", "really", "no")
    ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=True, return_tensors="pt")
    assert tokenizer.decode(ids["input_ids"][0, -1]) == "\n"
    with torch.no_grad():
        theirs = model(**ids).logits[0, 0].item()
    scorer = ModelScorer(folder)
    assert flat_values(scorer, [whole[:3]], [whole[3:]]) == pytest.approx([theirs], **PLACES)
    with pytest.raises(ModelError, match="no mean and deviation"):
        ModelScorer(folder, normalised=True)
    assert AutoConfig.from_pretrained(folder).num_labels == 1


@pytest.mark.parametrize("template", [CHATML, STRICT, NO_END])
def test_the_saved_template_ends_where_the_reward_is_read(template: str) -> None:
    tokenizer = byte_tokenizer(template=template)
    for turns in (chat("hi", " yes "), chat("a", "b", "c", "d\n")):
        for opened in (False, True):
            asked = turns[:-1] if opened else turns
            settings = {"tokenize": False, "add_generation_prompt": opened}
            plain = tokenizer.apply_chat_template(asked, **settings)
            saved = tokenizer.apply_chat_template(
                asked,
                chat_template=classifier_template(template, closes=template != NO_END),
                **settings,
            )
            end = plain + "<eos>" if template == NO_END else plain.rstrip()
            assert saved == (plain if opened else end)
    assert classifier_template(None, closes=True) is None


def test_padding_is_never_the_end() -> None:
    tokenizer = byte_tokenizer()
    assert padding_token(tokenizer, {2}) == "<pad>"
    assert padding_token(tokenizer, {0}) not in (None, "<pad>")
    assert padding_token(tokenizer, set(range(5))) is None


def rows_run(scorer: ModelScorer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the passes from here on."""
    found: list[tuple[int, int]] = []
    forward = scorer.model.forward

    def counted(batch: Any, ask: Any) -> Any:
        found.append(tuple(batch.inputs["input_ids"].shape))
        return forward(batch, ask)

    monkeypatch.setattr(scorer.model, "forward", counted)
    return found


@pytest.mark.parametrize("public", [False, True])
def test_many_responses_stay_within_the_budget(
    public: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was rendered whole shares the prompt that it begins with."""
    folder = (
        save_base(tmp_path / "public", CHATML, "llama", labels=1)
        if public
        else trained(tmp_path) / "model"
    )
    group = [f"{'word ' * (k % 5)}{k}" for k in range(30)]
    prompt = chat("a question of some length")
    alone = flat_values(ModelScorer(folder), [prompt] * len(group), group)
    scorer = ModelScorer(folder, batch_tokens=200)
    assert values(scorer, [prompt], [["a", "b"]]) and scorer._layout == "shared"
    passes = rows_run(scorer, monkeypatch)
    (found,) = values(scorer, [prompt], [group])
    assert found == pytest.approx(alone, **PLACES)
    assert all(rows * width <= 200 for rows, width in passes)
    # The prompt of 40 tokens and more is run once a pass, not once a response.
    assert sum(rows * width for rows, width in passes) < 30 * 45
