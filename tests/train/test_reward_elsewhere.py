"""What a run saves, read by plain transformers and PEFT with the tokenizer that it saves, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from palate.errors import ModelError, RecipeError
from palate.recipes.reward import RewardRecipe
from palate.rewards.model import ModelScorer
from palate.train import reward
from scored import flat_values
from tiny import CONFIGS
from tiny_chat import CHATML, DOUBLE_END, NO_END, byte_tokenizer
from tiny_runs import WORDS, write_rows

CLOSE = {"abs": 1e-5}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")


def eos_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """EOS is BOS, padding and all else, as GPT-2 has it; `more` are further special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *more, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict.fromkeys(("eos_token", "bos_token", "unk_token", "pad_token"), "<eos>")
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.add_special_tokens({"additional_special_tokens": list(more)})
    return found


def trained(
    folder: Path,
    tokenizer: Any,
    rows: list[Any],
    *,
    config: PreTrainedConfig | None = None,
    lacking: int = 0,
    **more: Any,
) -> Path:
    """The model's folder of a run; its base knows all tokens but the last `lacking`."""
    config = config or CONFIGS["llama"]()
    config.vocab_size = len(tokenizer) - lacking
    for name in ("pad", "bos", "eos"):
        token = getattr(tokenizer, f"{name}_token_id")
        setattr(config, f"{name}_token_id", token if token < config.vocab_size else None)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_rows(folder / "rows.jsonl", rows)
    recipe = {
        "output_dir": folder / "run",
        "model": {"path": str(folder / "base"), "dtype": "float32"} | more,
        "data": {"train": [{"path": str(folder / "rows.jsonl")}]},
        "train": {"batch_size_pairs": 4, "learning_rate": 1e-2},
    }
    return reward(RewardRecipe.model_validate(recipe), quiet=True).path / "model"


def texts() -> list[Any]:
    return [
        {"prompt": f"{i}: ", "chosen": WORDS[i % 6], "rejected": WORDS[6 + i % 6]} for i in range(8)
    ]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chats() -> list[Any]:
    """Of one turn and of several, with a system prompt and without."""
    found = []
    for i in range(6):
        prompt = [turn("user", f"say {i}")]
        if i % 2:
            prompt += [turn("assistant", "why?"), turn("user", "because")]
        if i % 3 == 0:
            prompt.insert(0, turn("system", "be kind"))
        sides = {"chosen": "good " * (1 + i % 2), "rejected": "bad\n"}
        said = {name: [turn("assistant", text)] for name, text in sides.items()}
        found.append({"prompt": prompt} | said)
    return found


@torch.no_grad()
def logits(model: Any, inputs: Any) -> list[float]:
    found: list[float] = model.eval()(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).logits[:, 0]
    return found.tolist()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", [CHATML, DOUBLE_END, NO_END], ids=["ml", "eos", "open"])
def test_chats_and_texts_in_one_run(template: str, adds_bos: bool, tmp_path: Path) -> None:
    """Chats end as their template closes them, texts with EOS, here and in transformers; all begin
    with BOS where the tokenizer adds it."""
    tokenizer = byte_tokenizer(adds_bos=adds_bos, template=template)
    folder = trained(tmp_path, tokenizer, texts() + chats())
    document = json.loads((folder / "reward_config.json").read_text())
    ends = {"<eos>"} if template == NO_END else {"<eos>", "<end>"}
    assert {own["text"] for own in document["end_tokens"]} == ends
    assert document["forms"] == ["chat", "text"]
    scorer = ModelScorer(folder)
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.padding_side == "right"
    names = json.loads((folder / "tokenizer_config.json").read_text())
    assert names["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert names["additional_special_tokens"] == ["<start>", "<end>"]
    assert names["add_bos_token"] is adds_bos
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rows = chats()
    for side in ("chosen", "rejected"):
        whole = [row["prompt"] + row[side] for row in rows]
        inputs = saved.apply_chat_template(
            whole, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
        )
        ours = flat_values(scorer, [row["prompt"] for row in rows], [row[side] for row in rows])
        assert logits(model, inputs) == pytest.approx(ours, **CLOSE)
    plain = saved([f"{row['prompt']}{row['chosen']}<eos>" for row in texts()], padding=True)
    inputs = {name: torch.tensor(value) for name, value in plain.items()}
    ours = flat_values(scorer, [r["prompt"] for r in texts()], [r["chosen"] for r in texts()])
    assert logits(model, inputs) == pytest.approx(ours, **CLOSE)


def test_adapters_on_a_base_that_pads_with_the_end(tmp_path: Path) -> None:
    """Padding is another token, which PEFT must be told: adapters have no configuration for it."""
    folder = trained(tmp_path, eos_tokenizer("<spare>"), texts(), lora={"r": 2})
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.pad_token == "<spare>"
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=saved.pad_token_id, dtype=torch.float32
    )
    inputs = saved(["a: red<eos>", "b: blue fast<eos>"], padding=True, return_tensors="pt")
    ours = flat_values(ModelScorer(folder), ["a: ", "b: "], ["red", "blue fast"])
    assert logits(model, inputs) == pytest.approx(ours, **CLOSE)


def test_without_another_token_batches_are_refused_and_not_misread(tmp_path: Path) -> None:
    folder = trained(tmp_path, eos_tokenizer(), texts())
    saved = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert saved.pad_token is None and model.config.pad_token_id is None
    scorer = ModelScorer(folder)
    ours = flat_values(scorer, ["a: ", "b: "], ["red", "blue fast"])
    alone = [
        logits(model, saved([text], return_tensors="pt"))[0]
        for text in ("a: red<eos>", "b: blue fast<eos>")
    ]
    assert alone == pytest.approx(ours, **CLOSE)
    with pytest.raises(ValueError, match="padding token"):
        saved(["a: red<eos>", "b: blue fast<eos>"], padding=True)


def test_padding_that_the_model_lacks_is_replaced(tmp_path: Path) -> None:
    """As where `[PAD]` was added to a tokenizer and no row to the embeddings."""
    tokenizer = byte_tokenizer(template=CHATML)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    folder = trained(tmp_path, tokenizer, texts(), lacking=1)
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.pad_token_id < len(tokenizer) - 1
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    inputs = saved(["a: red<eos>", "b: blue fast<eos>"], padding=True, return_tensors="pt")
    ours = flat_values(ModelScorer(folder), ["a: ", "b: "], ["red", "blue fast"])
    assert logits(model, inputs) == pytest.approx(ours, **CLOSE)


def test_a_token_that_the_model_lacks_is_one_line(tmp_path: Path) -> None:
    template = CHATML.replace("<end>", "<close>")
    tokenizer = byte_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<close>"]})
    with pytest.raises(ModelError, match=r"tokenizer has '<close>' as token 261, .* end at 260"):
        trained(tmp_path, tokenizer, chats(), lacking=1)


def test_a_sequence_beyond_the_positions_of_the_model_is_one_line(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40}
    rows = [*texts(), {"prompt": "long: ", "chosen": "x" * 40, "rejected": "y"}]
    line = r"`data.length.max_tokens`: a sequence has 48 tokens, and .* has places for 40"
    with pytest.raises(RecipeError, match=line):
        trained(tmp_path, tokenizer, rows, config=GPT2Config(**size))
