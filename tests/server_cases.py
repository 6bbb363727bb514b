"""Prompts, policies and true log-probs for tests with servers that write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from palate.data.items import Tokens
from palate.models.generation.engine import Completion, Prompt, Sampling
from palate.models.generation.server import ServerEngine
from palate.models.model import Model
from tiny_text import tiny_tokenizer

STOP = 2
Make = Callable[..., ServerEngine]


def policy(folder: Path) -> Model:
    return Model.policy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def prompt(text: str) -> Prompt:
    return Prompt(tokens=Tokens(tuple(tiny_tokenizer()(text)["input_ids"])), content=text)


PROMPTS = [prompt("Once upon"), prompt("1 + 1"), prompt("é")]


def true_logps(model: Model, found: Completion, sampling: Sampling) -> list[float]:
    """By one pass over prompt and response: logits over the temperature, and after top-k."""
    ids = torch.tensor([[*found.prompt_ids, *found.response_ids]])
    with torch.no_grad():
        logits = model.base(input_ids=ids).logits[0].double() / sampling.temperature
    logps = []
    for k, token in enumerate(found.response_ids):
        row = logits[len(found.prompt_ids) - 1 + k]
        if k < sampling.min_new_tokens:
            row[STOP] = -math.inf
        if sampling.top_k:
            row[row < row.topk(sampling.top_k).values[-1]] = -math.inf
        logps.append(float(row.log_softmax(-1)[token]))
    return logps
