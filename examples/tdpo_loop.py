"""TDPO2 in one flat loop: what `palate tune` does, without trainer, recipe or run folder.

    python examples/tdpo_loop.py MODEL PAIRS.jsonl [--steps 20]

PAIRS.jsonl has text fields prompt, chosen, rejected. Read it from top to bottom: the parts are
encoding, layout, reference, token statistics, sequence sums, loss.
"""

from __future__ import annotations

import argparse
import random

import torch

from palate.data.build import build
from palate.data.encode import Encoder
from palate.data.layouts import collate
from palate.kernels import token_stats
from palate.losses import SequenceStats, tdpo2
from palate.models.loading import load_policy, load_tokenizer
from palate.models.reference import build_live_reference
from palate.recipes.schema import (
    DataRecipe,
    DataSource,
    LengthRecipe,
    LoraRecipe,
    ModelRecipe,
    ReferenceRecipe,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = parser.parse_args()

    torch.manual_seed(0)
    recipe = ModelRecipe(path=args.model, dtype=args.dtype, lora=LoraRecipe(r=16))
    tokenizer, policy = load_tokenizer(recipe), load_policy(recipe)

    # 1. rows -> pairs of token ids; what was dropped or cut is in `data.report`
    encoder = Encoder(tokenizer, recipe.chat_template, LengthRecipe())
    data = build(DataRecipe(train=(DataSource(path=args.pairs),)), encoder, kind="pair", seed=0)

    # 2. the reference: the same weights, adapters off
    reference = build_live_reference(ReferenceRecipe(), recipe, policy)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate)

    order = random.Random(0)
    for step in range(args.steps):
        # 3. prefix trees: the prompt is run once for both responses
        pairs = order.sample(data.train, min(args.batch, len(data.train)))
        batch = collate(pairs, layout="shared", pad_id=tokenizer.pad_token_id)

        # 4. token statistics: log-probs and exact KL(reference || policy), no full logits
        stats = token_stats(
            hidden=policy.hidden(batch),
            head=policy.vocabulary_head(),
            targets=batch.targets,
            reference=reference.inputs(batch, kl=True),
            kl=True,
        )

        # 5. sums over each response, then the loss of the paper, Eq. 17-18
        sums = SequenceStats.from_tokens(
            logp=stats.logp,
            ref_logp=stats.ref_logp,
            kl=stats.kl,
            segment=batch.segment,
            n_sequences=batch.n_sequences,
        )
        sides = batch.of_pairs()
        out = tdpo2(sums[sides.chosen], sums[sides.rejected], beta=0.1, alpha=0.5)
        loss = out.terms[0].losses.mean()

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        margin = (out.chosen_rewards - out.rejected_rewards).mean()
        kl = sums.kl.detach()
        print(
            f"step {step + 1:3d}  loss {loss.item():.4f}  margin {margin.item():+.3f}  "
            f"KL chosen {kl[sides.chosen].mean().item():.2f}  "
            f"rejected {kl[sides.rejected].mean().item():.2f}"
        )


if __name__ == "__main__":
    main()
