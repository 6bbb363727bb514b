"""The plain loops of preference tuning and reward training with images (see plain_loop.py).

What a careful user writes: one batch of chosen and rejected, positions computed once, pixels of an
image once a batch and through the frozen tower once a step, for policy and reference; the head at
response positions alone. With `kept` the features are computed before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from PIL import Image
from plain_loop import Batch, Measures, adapters, dpo_loss, rows_of, timed_steps
from torch import Tensor
from vision_model import TOWER, load_model, load_processor, read_pairs

Seen = Callable[[], dict[str, Any]]


def dpo(
    model: str, data: Path, *, dtype: str, steps: int, rate: float, lora: int, kept: bool
) -> Measures:
    """Seconds and losses of DPO steps on all pairs; without adapters the reference is a copy.

    Args:
        lora: rank of adapters on the language model; 0: all its weights are trained.
        kept: whether features are computed once in place of once a step.
    """
    policy: Any = load_model(model, dtype)
    (batch, scored, sides), seen = inputs(policy.base_model, model, data, kept=kept)
    reference = None if lora else load_model(model, dtype)
    if lora:
        policy = get_peft_model(policy, adapters(lora, exclude=TOWER))
    loss = dpo_loss(policy, reference, batch, scored, sides, seen=seen)
    return timed_steps(policy, [loss], steps, rate)


def reward(
    model: str, data: Path, *, dtype: str, steps: int, rate: float, lora: int, kept: bool
) -> Measures:
    """Seconds and losses of Bradley-Terry steps; a linear head in float32 at the last token."""
    backbone: Any = load_model(model, dtype).base_model
    (batch, _, _), seen = inputs(backbone, model, data, kept=kept)
    head = torch.nn.Linear(backbone.config.text_config.hidden_size, 1, bias=False)
    head.weight.data = starting_head(head.in_features)
    trunk: Any = backbone
    if lora:
        trunk = get_peft_model(backbone, adapters(lora, exclude=TOWER, task=None))
    last = batch["attention_mask"].sum(1) - 1
    rows = torch.arange(len(last))

    def loss() -> Tensor:
        with torch.no_grad():
            more = seen()
        states = trunk(**batch, **more, use_cache=False).last_hidden_state
        chosen, rejected = head(states[rows, last].float())[:, 0].chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    return timed_steps(torch.nn.ModuleList([trunk, head]), [loss], steps, rate)


def starting_head(width: int) -> Tensor:
    """[1, width] the head from which all sides begin."""
    drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    return drawn * (width + 1) ** -0.5


def inputs(backbone: Any, model: str, data: Path, *, kept: bool) -> tuple[Batch, Seen]:
    """A batch of all pairs, and what the model takes of their images.

    Args:
        kept: whether the tower runs now, or in each call.
    """
    processor = load_processor(model)
    prompts, responses, pixels = [], [], []
    for row in read_pairs(data):
        (name,) = row["images"]
        text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
        image = Image.open(data.parent / name)
        given = processor(images=[image], text=[text], return_tensors="pt")
        prompts.append(given["input_ids"][0].tolist())
        pixels.append((given["pixel_values"], given["image_grid_thw"]))
        whole = [processor.apply_chat_template(row["prompt"] + row[s]) for s in SIDES]
        texts = [side.removeprefix(text) for side in whole]
        responses.append(
            [processor.tokenizer(t, add_special_tokens=False).input_ids for t in texts]
        )
    ids = [p + r[side] for side in (0, 1) for p, r in zip(prompts, responses, strict=True)]
    batch, scored, sides = rows_of(
        ids, [len(p) for p in prompts] * 2, processor.tokenizer.pad_token_id
    )
    values, grids = (torch.cat(parts) for parts in zip(*pixels, strict=True))
    is_image = (batch["input_ids"] == backbone.config.image_token_id).long()
    batch["position_ids"], _ = backbone.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=is_image,
        image_grid_thw=grids.repeat(2, 1),
        attention_mask=batch["attention_mask"],
    )
    values = values.to(backbone.dtype)

    @torch.no_grad()
    def seen() -> dict[str, Any]:
        output = backbone.get_image_features(values, grids, return_dict=True)
        # Rows of the chosen sides come first, then those of the rejected ones, of the same images.
        output.pooler_output = [*output.pooler_output] * 2
        return {"mm_encoder_outputs": {"image": output}}

    if not kept:
        return (batch, scored, sides), seen
    features = seen()
    return (batch, scored, sides), lambda: features


SIDES = "chosen", "rejected"
