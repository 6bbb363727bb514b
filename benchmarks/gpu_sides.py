"""The sides of gpu.py: one training step each, on the same weights and token ids.

Every side lays its batch out once, before its steps are timed; nothing is tokenised. AdamW, fused,
in the model's dtype, clipping at 1, a separate frozen reference, no checkpointing of activations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import plain_loop
import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, a chosen and a rejected response."""
Step = Callable[[], Tensor]
"""One optimizer step; its loss."""

PLAIN, TRL, TREE = "plain loop", "TRL", "TRL tree"
DPO, TDPO2 = "palate", "palate TDPO2"
BETA = 0.1


@dataclass(frozen=True)
class Case:
    """What all sides train: a shape of model, its starting weights, and the pairs of a step.

    Attributes:
        weights: on the CPU.
    """

    config: Any
    weights: dict[str, Tensor]
    pairs: Sequence[Pair]
    device: torch.device
    dtype: torch.dtype
    rate: float

    def model(self, attention: str, *, trained: bool) -> Any:
        """A model of its own with the starting weights."""
        from transformers import AutoModelForCausalLM

        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                self.config, attn_implementation=attention, dtype=self.dtype
            )
        model.load_state_dict(self.weights)
        return model.train(trained).requires_grad_(trained)

    def models(self, attention: str) -> tuple[Any, Any]:
        """Policy and reference."""
        return self.model(attention, trained=True), self.model(attention, trained=False)


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def flash_attention(device: str, dtype: torch.dtype) -> tuple[str, str]:
    """The name of the best attention that transformers has here, and in words which, or why not."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if device == "cuda" and dtype != torch.float32:
        for name, is_there in (
            ("flash_attention_3", is_flash_attn_3_available),
            ("flash_attention_2", is_flash_attn_2_available),
        ):
            if is_there():
                return name, name
    missing = "" if installed("flash_attn") else "; flash_attn is not installed"
    return "sdpa", f"sdpa (torch's flash kernel: rows without padding){missing}"


def tree_obstacle(device: str) -> str | None:
    """Why TRL's tree packing cannot run here; None where it can, as far as can be told."""
    if device == "cpu":
        return "its kernel, flash-attn3, is for GPUs"
    if installed("kernels") is None:
        return "package kernels is not installed, which brings its kernel, flash-attn3"
    if torch.cuda.is_available():
        from trl.experimental.async_grpo import packing

        try:
            packing._flash_attn()
        except Exception as error:
            return f"its kernel cannot be had: {str(error).splitlines()[0][:90]}"
    return None


def plain(case: Case) -> Step:
    """The loop of plain_loop.py; rows without padding get no mask, and sdpa its flash kernel."""
    policy, reference = case.models("sdpa")
    rows = [p + c for p, c, _ in case.pairs] + [p + r for p, _, r in case.pairs]
    batch, scored, sides = plain_loop.rows_of(rows, [len(p) for p, _, _ in case.pairs] * 2, 0)
    if bool(batch["attention_mask"].all()):
        del batch["attention_mask"]
    moved = {name: value.to(case.device) for name, value in batch.items()}
    loss = plain_loop.dpo_loss(
        policy, reference, moved, scored.to(case.device), sides.to(case.device), beta=BETA
    )
    return plain_loop.step_of(policy, [loss], case.rate)


def _trl_models(case: Case, attention: str) -> tuple[Any, Any]:
    """With the head that DPOTrainer adds, log-probs alone; and with Liger's layers if installed."""
    import trl.trainer.utils
    from trl.trainer.utils import add_fused_lm_head

    if case.device.type == "cpu":
        # Its compact path, as on GPUs: response positions alone.
        trl.trainer.utils._use_triton = lambda device: True
    models = case.models(attention)
    for model in models:
        if installed("liger_kernel") and case.device.type == "cuda":
            from liger_kernel.transformers import _apply_liger_kernel_to_instance

            _apply_liger_kernel_to_instance(model, fused_linear_cross_entropy=False)
        add_fused_lm_head(model)
    return models


def _dpo(
    case: Case, policy: Any, reference: Any, response_logps: Callable[[Any], tuple[Tensor, Tensor]]
) -> Step:
    """DPOTrainer's sigmoid loss.

    Args:
        response_logps: of a model those of chosen and of rejected responses.
    """

    def loss() -> Tensor:
        with torch.no_grad():
            before = response_logps(reference)
        now = response_logps(policy)
        chosen, rejected = (a - b for a, b in zip(now, before, strict=True))
        return -F.logsigmoid(BETA * (chosen - rejected)).mean()

    return plain_loop.step_of(policy, [loss], case.rate)


def trl_dpo(case: Case) -> Step:
    """DPOTrainer's step: its collator, its head, its loss; without its metrics and its loop."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    attention, _ = flash_attention(case.device.type, case.dtype)
    policy, reference = _trl_models(case, attention)
    examples = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in case.pairs]
    batch = DataCollatorForPreference(pad_token_id=0)(examples)
    moved = {name: value.to(case.device) for name, value in batch.items()}
    mask = moved.pop("completion_mask")
    labels = moved["input_ids"].masked_fill(mask == 0, -100)

    def response_logps(model: Any) -> tuple[Tensor, Tensor]:
        out = model(**moved, labels=labels, use_cache=False, fused_lm_head=True)
        chosen, rejected = out.log_probs.sum(1).chunk(2)
        return chosen, rejected

    return _dpo(case, policy, reference, response_logps)


def trl_tree(case: Case) -> Step:
    """DPO on what TRL has for GRPO alone: prefix trees in one row, attention by paths."""
    from trl.experimental.async_grpo import packing

    if case.device.type == "cpu":
        packing._flash_attn = lambda: _PathsOnCpu
    packing.register_tree_attention()
    policy, reference = _trl_models(case, packing.TREE_ATTENTION)
    row = packing.TreeRow()
    for i, (prompt, *responses) in enumerate(case.pairs):
        for response in responses:
            row.add(
                {
                    "input_ids": torch.tensor(prompt + response),
                    "completion_mask": torch.tensor([0] * len(prompt) + [1] * len(response)),
                    "old_log_probs": torch.zeros(len(prompt) + len(response)),
                    "advantage": 0.0,
                    "group_id": i,
                }
            )
    packed = {name: value.to(case.device) for name, value in row.pack().items()}
    most_q, most_k = packed["tree_max_seqlens"].tolist()
    given = {
        name: packed[name].unsqueeze(0) for name in ("input_ids", "position_ids", "shift_labels")
    } | {name: packed[name] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")}
    given |= {"tree_max_seqlen_q": most_q, "tree_max_seqlen_k": most_k}
    places, owner = packed["token_index"], packed["segment_id"]

    def response_logps(model: Any) -> tuple[Tensor, Tensor]:
        logps = model(**given, use_cache=False, fused_lm_head=True).log_probs[0]
        sums = logps.new_zeros(2 * len(case.pairs)).index_add(0, owner, logps[places])
        return sums[::2], sums[1::2]

    return _dpo(case, policy, reference, response_logps)


class _PathsOnCpu:
    """What the tree's kernel computes, path by path, to run the code where there is no GPU."""

    @staticmethod
    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *_: Any, **options: Any
    ) -> Tensor:
        out = []
        for i in range(len(ends_q) - 1):
            part_q = q[ends_q[i] : ends_q[i + 1]].transpose(0, 1)
            part_k, part_v = (x[ends_k[i] : ends_k[i + 1]].transpose(0, 1) for x in (k, v))
            n, m = part_q.shape[1], part_k.shape[1]
            mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
            out.append(
                F.scaled_dot_product_attention(
                    part_q,
                    part_k,
                    part_v,
                    attn_mask=mask,
                    scale=options["softmax_scale"],
                    enable_gqa=True,
                ).transpose(0, 1)
            )
        return torch.cat(out)


def palate_step(case: Case, loss: str) -> Step:
    """Palate's own loop, objective, layout and reference, on a model made here."""
    from palate.data.items import Item, PairLabel
    from palate.data.layouts import collate
    from palate.models.attention import use_rows
    from palate.models.model import Model
    from palate.models.reference import FrozenCopy
    from palate.recipes.schema import TuneRecipe
    from palate.store.folder import RunFolder
    from palate.train.loop import Job, Loop
    from palate.train.meter import Meter
    from palate.train.objectives import objective_of
    from palate.train.sources.offline import BatchPlan, OfflineSource, micro_batch

    items = [
        Item.of(tuple(p), tuple(c), tuple(r), label=PairLabel(), id=str(i))
        for i, (p, c, r) in enumerate(case.pairs)
    ]
    lay_out = partial(collate, layout="shared", pad_id=0)
    policy, reference = case.models("sdpa")
    for model in (policy, reference):
        use_rows(model)
    folder = Path(tempfile.gettempdir()) / "palate-benchmark-without-files"
    recipe = TuneRecipe.model_validate(
        {
            "output_dir": str(folder),
            "model": {"path": "none"},
            "data": {"train": [{"path": "none"}]},
            "loss": {"type": loss, "beta": BETA},
            "train": {
                "batch_size_pairs": len(items),
                "micro_batch_size_pairs": len(items),
                "learning_rate": case.rate,
                "scheduler": "constant",
                "optimizer_precision": "model",
            },
        }
    )
    plan = BatchPlan(batch_size=len(items), micro_batch_size=len(items))
    job = Job(
        model=Model.policy(policy),
        model_recipe=recipe.model,
        objective=objective_of(recipe.loss),
        reference=FrozenCopy(Model.policy(reference), digest=""),
        source=OfflineSource(items, plan, lay_out, seed=0, total=10**6),
        eval=(),
        collate=lay_out,
        layout="shared",
        pad_id=0,
        eval_plan=plan,
        folder=RunFolder(recipe, writes=False),
        identity={},
    )
    loop = Loop(job, recipe.train, seed=0)
    micro = micro_batch(items, lay_out)

    def step() -> Tensor:
        loop.meter = Meter()
        loop.train_step([micro])
        return torch.tensor(loop.meter.means()["loss"])

    return step


SIDES: dict[str, Callable[[Case], Step]] = {
    PLAIN: plain,
    TRL: trl_dpo,
    TREE: trl_tree,
    DPO: partial(palate_step, loss="dpo"),
    TDPO2: partial(palate_step, loss="tdpo2"),
}
"""In the order of their turns."""
