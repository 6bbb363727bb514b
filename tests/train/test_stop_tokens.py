"""What training teaches to end an answer with is what sampling, and everybody else, stops at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from palate.data.encode import Encoder
from palate.evaluate.loading import PolicyLoader
from palate.evaluate.sample import sample
from palate.evaluate.targets import Target
from palate.models.loading import load_model, load_policy, load_tokenizer, load_trained
from palate.models.stop_tokens import stop_tokens
from palate.recipes.schema import ModelRecipe, SftRecipe
from palate.train import sft
from palate.train.merge import merge_adapters
from tiny import CONFIGS
from tiny_chat import CHATML, byte_tokenizer
from tiny_runs import write_rows

EOS, END = 2, 4


def chat_recipe(folder: Path, *, lora: bool = False, chat: bool = True, **train: Any) -> SftRecipe:
    """Fine-tuning on one short answer, of a model whose end token is no chat's."""
    tokenizer = byte_tokenizer(adds_bos=False, template=CHATML)
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    row: dict[str, Any] = {"messages": turns} if chat else {"prompt": "hi", "completion": "yes"}
    rows = write_rows(folder / "rows.jsonl", [row] * 8)
    return SftRecipe.model_validate(
        {
            "output_dir": folder / "run",
            "model": {
                "path": str(folder / "base"),
                "dtype": "float32",
                "lora": {"r": 8} if lora else None,
            },
            "data": {"train": [{"path": str(rows)}]},
            "train": {"batch_size_pairs": 8, "micro_batch_size_pairs": 8} | train,
        }
    )


def saved_stops(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_samples_of_a_trained_model_end_where_training_ended(tmp_path: Path) -> None:
    run = sft(chat_recipe(tmp_path, max_steps=60, learning_rate=5e-3), quiet=True).path
    recipe = ModelRecipe(path=str(run / "model"), dtype="float32")
    assert saved_stops(run / "model") == [EOS, END]
    tokenizer = load_tokenizer(recipe)
    ids = Encoder(tokenizer).encode_prompt([{"role": "user", "content": "hi"}]).ids
    policy = load_policy(recipe)
    (written,) = sample(policy, tokenizer, [ids], max_new_tokens=24, temperature=0.01)
    assert tokenizer.decode(written.response_ids) == "yes<end>" and written.finished
    # As transformers, and servers with it, read the file.
    hf = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    out = hf.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(out[0, len(ids) :]) == "yes<end>"


def test_adapters_bring_their_stop_tokens_wherever_they_are_read(tmp_path: Path) -> None:
    recipe = chat_recipe(tmp_path, lora=True, max_steps=1, save_every_steps=1)
    run = sft(recipe, quiet=True).path
    for folder in (run / "model", run / "checkpoints/step-000001/model"):
        assert saved_stops(folder) == [EOS, END]
        assert stop_tokens(load_trained(folder, recipe.model).base) == {EOS, END}
    whole = merge_adapters(run, tmp_path / "whole")
    assert stop_tokens(load_model(ModelRecipe(path=str(whole)))) == {EOS, END}
    target = Target(
        name="run",
        label="run",
        run=run,
        checkpoint=1,
        folder=run / "model",
        model=recipe.model,
        loss=None,
        reference=recipe.model.path,
    )
    loader = PolicyLoader(recipe.model, recipe.model.path)
    for _, policy, _ in loader.policies([target]):
        assert stop_tokens(policy.base) == {EOS, END}
    # The base itself learnt nothing of it.
    assert stop_tokens(loader.base()) == {EOS}


def test_texts_end_with_the_tokenizers_end_token_alone(tmp_path: Path) -> None:
    run = sft(chat_recipe(tmp_path, chat=False, max_steps=1), quiet=True).path
    assert saved_stops(run / "model") == EOS


@pytest.mark.parametrize(
    ("closing", "taught"),
    [
        ("<end><done>", ["<end>", "<done>"]),
        ("<end><done>\\n", ["<end>", "<done>"]),
        ("<end>\\n<done>", ["<end>"]),
        ("<end><bos>", ["<end>"]),
        ("", ["<eos>"]),
    ],
)
def test_all_tokens_that_close_a_turn_are_taught(closing: str, taught: list[str]) -> None:
    template = CHATML.replace("<end>\\n", closing)
    tokenizer = byte_tokenizer(adds_bos=False, template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<end>", "<done>"]})
    encoder = Encoder(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(taught)
    rendered = encoder.template.render(
        [{"role": "user", "content": "hi"}], [[{"role": "assistant", "content": "yes"}]]
    )
    (text,) = rendered.responses
    response = encoder.tokens.ended(encoder.tokens.continuations([text])[text])
    assert list(response) == [*encoder.tokens.continuations(["yes"])["yes"], *ids]
    # Sampling stops at the last of them, after which nothing was taught.
    assert encoder.stop_ids(chats=True) == {tokenizer.eos_token_id, ids[-1]}
