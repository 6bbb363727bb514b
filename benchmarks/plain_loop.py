"""What a careful user writes without a library: the strongest opponent that costs forty lines.

One concatenated batch of chosen and rejected, transformers' own model with sdpa attention (which
drops a mask that hides nothing), the vocabulary head at response positions alone, and torch's
cross-entropy on logits in the model's dtype. Where a step is several micro-batches, pairs of like
length share one, so that little is padded. AdamW, fused, and clipping at 1 as in TRL. Compiled, it
is the same loop with `torch.compile` around model and head, which fuses what stands between the
products; that takes a minute or more before the first step, which is not counted against it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Measures = dict[str, list[float]]


def dpo(
    model: str,
    data: Path,
    *,
    dtype: str,
    steps: int,
    rate: float,
    beta: float = 0.1,
    compiled: bool = False,
    lora: int = 0,
    micro: int = 0,
) -> Measures:
    """Seconds and losses of DPO steps on all pairs, against a separate frozen reference.

    Args:
        lora: rank of adapters on all linear layers; then the reference is the policy without them.
        micro: pairs of a micro-batch, of which there is a whole number; 0: all.
    """
    policy: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    if lora:
        policy = get_peft_model(policy, adapters(lora))
        reference = None
    else:
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    losses = [
        dpo_loss(policy, reference, *batch, beta=beta, compiled=compiled)
        for batch in _batches(model, data, micro)
    ]
    return timed_steps(policy, losses, steps, rate)


def dpo_loss(
    policy: Any,
    reference: Any,
    batch: dict[str, Tensor],
    scored: Tensor,
    sides: Tensor,
    *,
    beta: float = 0.1,
    compiled: bool = False,
    seen: Callable[[], dict[str, Any]] = dict,
) -> Callable[[], Tensor]:
    """The loss of a batch, anew at each call.

    Args:
        reference: a frozen model; None: the policy without its adapters.
        batch, scored, sides: as `rows_of` makes them.
        seen: gives, once a call, what both models take besides: of images what a frozen tower makes
            of them.
    """
    targets = batch["input_ids"][:, 1:][scored]
    places = _places(scored)
    without = policy.disable_adapter if reference is None else nullcontext
    reference = policy if reference is None else reference

    def token_losses(lm: Any, more: dict[str, Any]) -> Tensor:
        trunk = (lm.get_base_model() if isinstance(lm, PeftModel) else lm).base_model
        hidden = trunk(**batch, **more, use_cache=False).last_hidden_state.flatten(0, 1)[places]
        logits = F.linear(hidden, lm.get_output_embeddings().weight)
        return F.cross_entropy(logits, targets, reduction="none").float()

    if compiled:
        token_losses = torch.compile(token_losses)

    def log_probs(lm: Any, more: dict[str, Any]) -> Tensor:
        zeros = torch.zeros(len(scored), device=scored.device)
        return zeros.index_add(0, sides, -token_losses(lm, more))

    def loss() -> Tensor:
        with torch.no_grad(), without():
            more = seen()
            base = log_probs(reference, more)
        chosen, rejected = (log_probs(policy, more) - base).chunk(2)
        return -F.logsigmoid(beta * (chosen - rejected)).mean()

    return loss


def adapters(
    rank: int, *, exclude: str | None = None, task: str | None = "CAUSAL_LM"
) -> LoraConfig:
    """As `palate tune` has them.

    Args:
        exclude: a pattern of the names of modules that get none.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=exclude,
        task_type=task,
    )


def reward(
    model: str, data: Path, *, dtype: str, steps: int, rate: float, compiled: bool = False
) -> Measures:
    """Seconds and losses of Bradley-Terry steps on all pairs."""
    scorer = AutoModelForSequenceClassification.from_pretrained(model, dtype=getattr(torch, dtype))
    ((batch, _, _),) = _batches(model, data, 0)

    def scores() -> Tensor:
        return scorer(**batch, use_cache=False).logits[:, 0].float()

    if compiled:
        scores = torch.compile(scores)

    def loss() -> Tensor:
        chosen, rejected = scores().chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()

    return timed_steps(scorer, [loss], steps, rate)


Batch = tuple[dict[str, Tensor], Tensor, Tensor]
"""Model inputs, chosen rows first; [R, T-1] positions that predict a response token; their row."""


def _batches(model: str, data: Path, micro: int) -> list[Batch]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in data.read_text().splitlines()]

    def ids(row: dict[str, str], side: str) -> list[int]:
        return [*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]

    sides = "chosen", "rejected"
    size = micro or len(rows)
    if size < len(rows):
        rows.sort(key=lambda row: max(len(ids(row, side)) for side in sides))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    batches = []
    for part in (rows[i : i + size] for i in range(0, len(rows), size)):
        starts = [len(tokenizer(row["prompt"])["input_ids"]) for row in part] * 2
        batches.append(rows_of([ids(row, side) for side in sides for row in part], starts, pad))
    return batches


def rows_of(ids: list[list[int]], starts: list[int], pad: int) -> Batch:
    """A batch of token ids and of where each row's response begins; padding is on the right."""
    width = max(map(len, ids))
    place = torch.arange(width)
    ends, begins = torch.tensor([len(row) for row in ids]), torch.tensor(starts)
    scored = (place >= begins[:, None] - 1) & (place < ends[:, None] - 1)
    batch = {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        "attention_mask": (place < ends[:, None]).long(),
    }
    scored = scored[:, :-1]
    return batch, scored, scored.nonzero()[:, 0]


def _places(scored: Tensor) -> Tensor:
    """Places in the flattened rows of what is scored: the last column is not in `scored`."""
    return F.pad(scored, (0, 1)).flatten().nonzero()[:, 0]


def step_of(
    model: torch.nn.Module, losses: Sequence[Callable[[], Tensor]], rate: float
) -> Callable[[], Tensor]:
    """An optimizer step on the mean of losses, of a micro-batch each, which it gives back."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    model.train()

    def step() -> Tensor:
        total = torch.zeros(())
        for loss in losses:
            value = loss() / len(losses)
            value.backward()
            total = total.to(value.device) + value.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def timed_steps(
    model: torch.nn.Module, losses: Sequence[Callable[[], Tensor]], steps: int, rate: float
) -> Measures:
    """Seconds and losses of optimizer steps on the mean of losses."""
    step = step_of(model, losses, rate)
    measures: Measures = {"seconds": [], "losses": []}
    for _ in range(steps):
        start = time.perf_counter()
        value = step()
        measures["seconds"].append(time.perf_counter() - start)
        measures["losses"].append(value.item())
    return measures
