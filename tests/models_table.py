"""The table of model families in docs/models.md, measured.

    python -m models_table              # prints it
    python -m models_table --write      # puts it into the page
    python -m models_table llama lfm2   # some rows

Every cell is compared with transformers itself: full logits of one sequence at a time, by the
model's own forward pass and torch's kernels.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from model_families import FAMILIES, family_model
from palate.data.items import Item
from palate.data.layouts import Layout, collate
from palate.errors import ModelError
from palate.kernels import shares_frozen_head
from palate.models.check import check_pairs, layout_check, start_check
from palate.models.limits import masked_id
from palate.models.loading import load_policy
from palate.models.model import Ask, Model
from palate.models.reference import AdapterOff
from palate.models.structure import _layer_kinds
from palate.recipes.schema import LoraRecipe, ModelRecipe

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- the table: make models-table -->\n", "<!-- end of the table -->\n"
HEADING = "| family | its layers | plain | shared | LoRA | exact KL with LoRA |\n"
RULE = "|---|---|---|---|---|---|\n"
CLOSE = 2e-4
"""Nats, in float32."""


@dataclass(frozen=True)
class Row:
    """A line of the table: what holds of a family, in words."""

    family: str
    layers: str
    plain: str
    shared: str
    lora: str
    kl: str

    def __str__(self) -> str:
        cells = (f"`{self.family}`", self.layers, self.plain, self.shared, self.lora, self.kl)
        return f"| {' | '.join(cells)} |\n"


def measured(family: str) -> Row:
    """The row of a family, from a tiny random model in float32."""
    layers = kinds_of(FAMILIES[family]())
    with tempfile.TemporaryDirectory() as folder:
        whole = family_model(family)
        whole.save_pretrained(folder)
        recipe = ModelRecipe(path=folder, dtype="float32")
        try:
            policy = load_policy(recipe).eval()
            start_check(policy)
        except ModelError as error:
            return Row(family, layers, f"refused: {error}".replace(folder, ""), "", "", "")
        pairs = sequences_of(policy)
        logits = [full_logits(whole, pair, side) for pair in pairs for side in (0, 1)]
        wanted = torch.cat([picked(rows, ids) for rows, ids in logits])
        plain = agreement(policy, pairs, "plain", wanted)
        check = layout_check(policy)
        if check.ok:
            shared = agreement(policy, pairs, "shared", wanted)
        else:
            shared = f"runs plain: {check.reason}"
        try:
            adapted = load_policy(recipe.model_copy(update={"lora": LoraRecipe(r=2)})).eval()
            start_check(adapted)
        except ModelError as error:
            return Row(family, layers, plain, shared, f"refused: {first_clause(error)}", "")
        lora = adapters(adapted, pairs, wanted)
        return Row(family, layers, plain, shared, lora, divergence(adapted, pairs, logits))


def first_clause(error: ModelError) -> str:
    """What a library says after it, as the names of all modules, is in no fixed order."""
    return (
        str(error).removeprefix("model.lora.target_modules: [PEFT:PeftType.LORA] ").split(". ")[0]
    )


def kinds_of(config: Any) -> str:
    """Kinds of layers, as the configuration names them."""
    text = config.get_text_config()
    named = list(_layer_kinds(text))
    # Some families keep an older key beside this one.
    named = [pair for pair in named if pair[0] == "layer_types"] or named
    kinds = sorted({kind for _, kind in named})
    if not kinds:
        return "not named, with a window" if getattr(text, "sliding_window", None) else "not named"
    return ", ".join(kinds)


def sequences_of(policy: Model) -> list[Item]:
    """Two pairs: one of them reaches past every window of the families."""
    return check_pairs(policy.vocabulary, 96, seed=3)


def full_logits(model: Any, pair: Item, side: int) -> tuple[Tensor, Tensor]:
    """[n, vocabulary] log-probs that predict a response, and its [n] ids."""
    prompt, response = pair.sequences[side]
    ids = torch.tensor([[*prompt.ids, *response.ids]])
    with torch.no_grad():
        rows = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return rows.double().log_softmax(-1), torch.tensor(response.ids)


def picked(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.gather(1, ids[:, None])[:, 0]


def agreement(policy: Model, pairs: Sequence[Item], layout: Layout, wanted: Tensor) -> str:
    batch = collate(pairs, layout=layout, pad_id=masked_id(policy.base, 0))
    with torch.no_grad():
        gap = float((policy(batch, Ask()).token_stats.logp - wanted).abs().max())
    return "exact" if gap <= CLOSE else f"WRONG by {gap:.2g} nats"


def adapters(policy: Model, pairs: Sequence[Item], wanted: Tensor) -> str:
    """Whether new adapters change nothing, and learn."""
    batch = collate(pairs, layout="plain", pad_id=masked_id(policy.base, 0))
    tokens = policy(batch, Ask()).token_stats
    if not float((tokens.logp - wanted).detach().abs().max()) <= CLOSE:
        return "WRONG: new adapters move log-probs"
    tokens.logp.sum().backward()
    halves = [p.grad for name, p in policy.named_parameters() if "lora_B" in name]
    learn = sum(grad is not None and bool(grad.any()) for grad in halves)
    if any(grad is not None and not grad.isfinite().all() for grad in halves):
        return "WRONG: gradients are not finite"
    if learn < len(halves) / 2:
        return f"WRONG: {learn} of {len(halves)} adapters learn"
    return "works"


def divergence(
    policy: Model, pairs: Sequence[Item], reference: Sequence[tuple[Tensor, Tensor]]
) -> str:
    """Which operator gives the exact KL of moved adapters to none, against full logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
        batch = collate(pairs, layout="plain", pad_id=masked_id(policy.base, 0))
        reference_inputs = AdapterOff(policy, digest="").inputs(batch, kl=True)
        got = policy(batch, Ask(kl=True), reference=reference_inputs).token_stats
        moved = [full_logits(policy.base, pair, side)[0] for pair in pairs for side in (0, 1)]
        exact = torch.cat(
            [
                (before.exp() * (before - after)).sum(-1)
                for (before, _), after in zip(reference, moved, strict=True)
            ]
        )
        gap = float((got.kl - exact).abs().max())
    if not exact.mean() > 1e-6 or not gap <= CLOSE:
        return f"WRONG by {gap:.2g} nats of {float(exact.mean()):.2g}"
    if shares_frozen_head(policy.vocabulary_head()):
        return "frozen head"
    return "general: its logits are soft-capped" if policy.vocabulary_head().softcap else "general"


def written(text: str) -> dict[str, str]:
    """The rows of a page, by family."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    lines = table.splitlines(keepends=True)[2:]
    return {line.split("`")[1]: line for line in lines}


def page_with(rows: Sequence[Row], text: str) -> str:
    """The page with another table."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{HEADING}{RULE}{''.join(map(str, rows))}{END}{after}"


def main(arguments: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    families = [name for name in arguments if name != "--write"] or sorted(FAMILIES)
    rows = []
    for family in families:
        rows.append(measured(family))
        print(rows[-1], end="", flush=True)
    if "--write" in arguments:
        PAGE.write_text(page_with(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
