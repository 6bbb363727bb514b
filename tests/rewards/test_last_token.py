"""Where classifiers of others read their score: as transformers does of one row by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    XLNetConfig,
)

from palate.data.scorer import Scorer
from palate.recipes import scorers as recipes
from palate.rewards import make_scorer
from palate.rewards.groups import score_groups
from scored import flat_values, groups_of
from tiny_text import tiny_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role[0] + ': ' + m.content + eos_token }}{% endfor %}"
ANSWERS = ("blue", "a longer answer, which pads all others", "x", "no", "so")
PROMPT = "Name a colour."
COMMON = {"vocab_size": 300, "num_labels": 1}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
EOS = 2
PADS = {"none": None, "pad is eos": EOS, "its own": 0, "outside the vocabulary": -1}


def save(folder: Path, config: Any, *, side: str = "right", pad: str | None = None) -> str:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.padding_side, tokenizer.pad_token = TEMPLATE, side, pad
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def alone(path: str, prompt: Any = PROMPT) -> list[float]:
    """transformers' score of each answer, in a pass of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    turns = [{"role": "user", "content": prompt}]
    scores = []
    for answer in ANSWERS:
        ids = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        scores.append(model(input_ids=ids["input_ids"]).logits[0, 0].item())
    return scores


def values(scorer: Scorer) -> list[float | None]:
    return flat_values(scorer, [PROMPT] * len(ANSWERS), ANSWERS)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_score_is_read_where_transformers_reads_it(
    family: str, pad: str, side: str, tmp_path: Path
) -> None:
    ids = {"pad_token_id": PADS[pad], "eos_token_id": EOS, "bos_token_id": None}
    config: Any = GPT2Config(**COMMON | GPT2 | ids)
    if family == "llama":
        config = LlamaConfig(**COMMON | LLAMA | ids)
    path = save(tmp_path, config, side=side, pad=None if pad == "none" else "<eos>")
    expected = alone(path)
    assert max(expected) - min(expected) > 0.1
    for recipe in (recipes.ClassifierScorer(path=path), recipes.ModelScorer(path=path)):
        scorer = make_scorer(recipe)
        assert values(scorer) == pytest.approx(expected, abs=1e-4)
        (scores,) = score_groups(scorer, groups_of([PROMPT], [list(ANSWERS)]), exact=True)
        assert [score.value for score in scores] == pytest.approx(expected, abs=1e-4)


def test_a_classifier_that_reads_the_last_of_all_tokens_is_asked_row_by_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, XLNetConfig(**COMMON | XLNET | {"pad_token_id": 0}), pad="<pad>")
    scorer = make_scorer(recipes.ClassifierScorer(path=path))
    assert values(scorer) == pytest.approx(alone(path), abs=1e-4)
    assert "scored one by one" in caplog.text


def test_rows_that_a_classifier_refuses_together_are_asked_row_by_row(tmp_path: Path) -> None:
    ids = {"pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": 1, "max_position_embeddings": 99}
    path = save(tmp_path, BartConfig(**COMMON | BART | ids), pad="<pad>")
    scorer = make_scorer(recipes.ClassifierScorer(path=path))
    prompts: list[Any] = [PROMPT, [{"role": "user", "content": "Hm."}] * 3]
    together = flat_values(scorer, prompts, ["blue"] * 2)
    assert together == [flat_values(scorer, [prompt], ["blue"])[0] for prompt in prompts]
    assert together[0] == pytest.approx(alone(path)[0], abs=1e-5)
