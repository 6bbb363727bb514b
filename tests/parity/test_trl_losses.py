"""Loss values and parameter gradients against TRL's own trainers, wherever TRL has the loss.

Each case gives TRL's trainer a tiny Llama, a reference that differs from it, and text pairs; takes
TRL's batch; and compares TRL's `compute_loss` and its gradients with ours on float64 log-probs of
the same tokens from full logits.
"""

from __future__ import annotations

import copy
import os
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from palate.losses import (
    LOSSES,
    LossOutput,
    Member,
    SequenceStats,
    TokenContext,
    compute,
    kto,
    ld,
)
from tiny import VOCABULARY, tiny_model

# TRL's own.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

# CPO and ORPO are in trl.experimental, which warns on import.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", minversion="1.16")

B = 4
COMMON = {
    "per_device_train_batch_size": B,
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "remove_unused_columns": False,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>"]
    words = {w: i for i, w in enumerate([*special, *(f"t{i}" for i in range(3, VOCABULARY))])}
    core = Tokenizer(models.WordLevel(words, unk_token="t3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def rows() -> dict[str, list]:
    g = torch.Generator().manual_seed(0)

    def words(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=g))
        return " ".join(f"t{i}" for i in torch.randint(3, VOCABULARY, (n,), generator=g).tolist())

    return {
        "prompt": [words(2, 6) for _ in range(B)],
        "chosen": [f" {words(1, 9)} " for _ in range(B)],
        "rejected": [f" {words(1, 9)} " for _ in range(B)],
    }


def policy_and_reference() -> tuple[nn.Module, nn.Module]:
    reference = tiny_model("llama", spread=2.0)
    policy = copy.deepcopy(reference)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    return policy, reference


class Ours:
    """Float64 statistics of the sequences of a TRL batch, by full logits."""

    def __init__(self, policy: nn.Module, reference: nn.Module) -> None:
        self.policy, self.reference = (
            copy.deepcopy(m).double().requires_grad_(m is policy) for m in (policy, reference)
        )

    def tokens(self, model: nn.Module, ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        return logp[mask[:, 1:].bool()]

    def stats(self, ids: Tensor, attention: Tensor, mask: Tensor, weigh=None) -> SequenceStats:
        logp = self.tokens(self.policy, ids, attention, mask)
        with torch.no_grad():
            ref_logp = self.tokens(self.reference, ids, attention, mask)
        lengths = mask.sum(-1)
        segment = torch.repeat_interleave(torch.arange(len(ids)), lengths)
        weights = None
        if weigh is not None:
            position = torch.cat([torch.arange(n) for n in lengths.tolist()])
            weights = weigh(
                TokenContext.of_pairs(
                    position=position,
                    segment=segment,
                    lengths=lengths,
                    chosen=torch.arange(len(ids) // 2),
                    rejected=torch.arange(len(ids) // 2, len(ids)),
                    logp=logp,
                )
            )
        return SequenceStats.from_tokens(
            logp=logp,
            ref_logp=ref_logp,
            segment=segment,
            n_sequences=len(ids),
            weight=None if weights is None else weights.policy,
            ref_weight=None if weights is None else weights.reference,
        )


def compare(value: Tensor, model: nn.Module, expected: Tensor, ours: Ours) -> None:
    """Values to 1e-5, gradients of all parameters to 2e-5 of their norm (TRL's are float32)."""
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    got = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    want = torch.autograd.grad(expected, list(ours.policy.parameters()))
    flat_got = torch.cat([g.double().flatten() for g in got])
    flat_want = torch.cat([g.flatten() for g in want])
    assert flat_want.norm() > 1e-4, "nothing to compare"
    assert (flat_got - flat_want).norm() < 2e-5 * flat_want.norm()


def counts(chosen: SequenceStats) -> dict[str, float]:
    return {"pair": float(B), "sequence": float(B), "chosen_token": float(chosen.length.sum())}


# --- DPOTrainer --------------------------------------------------------------------------------


def dpo_trainer(rows, tokenizer, tmp_path, policy, reference, **config):
    from datasets import Dataset

    args = trl.DPOConfig(output_dir=str(tmp_path), max_length=None, **COMMON, **config)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    return trainer, trainer.data_collator(list(trainer.train_dataset))


DPO_CASES = {
    "dpo": ({"loss_type": "sigmoid"}, [Member(type="dpo")]),
    "rdpo": (
        {"loss_type": "robust", "label_smoothing": 0.2, "beta": 0.3},
        [Member(type="rdpo", options={"label_smoothing": 0.2, "beta": 0.3})],
    ),
    "ipo_mean": ({"loss_type": "ipo"}, [Member(type="ipo_mean")]),
    "hinge": ({"loss_type": "hinge", "beta": 0.4}, [Member(type="hinge", options={"beta": 0.4})]),
    "dpo_norm": ({"loss_type": "sigmoid_norm", "beta": 5.0}, [Member(type="dpo_norm")]),
    "sft": ({"loss_type": "sft"}, [Member(type="sft")]),
    "fdpo-forward": (
        {"loss_type": "sigmoid", "f_divergence_type": "forward_kl"},
        [Member(type="fdpo", options={"divergence": "forward_kl"})],
    ),
    "fdpo-js": (
        {"loss_type": "sigmoid", "f_divergence_type": "js_divergence"},
        [Member(type="fdpo", options={"divergence": "js"})],
    ),
    # TRL's coefficient is 1 - alpha of the paper: its score is (t ** (coefficient - 1) - 1) / ...
    "fdpo-alpha": (
        {
            "loss_type": "sigmoid",
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
        },
        [Member(type="fdpo", options={"divergence": "alpha", "alpha": 0.3})],
    ),
    "mixture": (
        {"loss_type": ["sigmoid", "ipo", "sft"], "loss_weights": [0.8, 0.1, 1.0]},
        [
            Member(type="dpo", weight=0.8),
            Member(type="ipo_mean", weight=0.1),
            Member(type="sft"),
        ],
    ),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_trainer(case, rows, tokenizer, tmp_path):
    config, members = DPO_CASES[case]
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = dpo_trainer(rows, tokenizer, tmp_path, policy, reference, **config)
    value = trainer.compute_loss(trainer.model, batch)
    stats = ours.stats(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    chosen, rejected = stats[:B], stats[B:]
    output = compute(members, chosen, rejected)
    compare(value, trainer.model, output.value(counts(chosen)), ours)


def test_dpo_trainer_rewards(rows, tokenizer, tmp_path):
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = dpo_trainer(rows, tokenizer, tmp_path, policy, reference)
    trainer.compute_loss(trainer.model, batch)
    stats = ours.stats(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    output = compute([Member(type="dpo")], stats[:B], stats[B:])
    logged = {
        k: v[0] for k, v in trainer._metrics["eval"].items() or trainer._metrics["train"].items()
    }
    assert logged["rewards/chosen"] == pytest.approx(output.chosen_rewards.mean().item(), abs=1e-5)
    margin = (output.chosen_rewards - output.rejected_rewards).mean().item()
    assert logged["rewards/margins"] == pytest.approx(margin, abs=1e-5)
    accuracy = output.statistics["accuracies/logits"].mean().item()
    assert logged["rewards/accuracies"] == pytest.approx(accuracy)


def test_ld_dpo_weights(rows, tokenizer, tmp_path):
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = dpo_trainer(rows, tokenizer, tmp_path, policy, reference, ld_alpha=0.3)
    value = trainer.compute_loss(trainer.model, batch)
    stats = ours.stats(
        batch["input_ids"],
        batch["attention_mask"],
        batch["completion_mask"],
        weigh=lambda ctx: ld(ctx, alpha=0.3),
    )
    output = compute([Member(type="dpo")], stats[:B], stats[B:])
    compare(value, trainer.model, output.value(counts(stats[:B])), ours)


def test_trl_ignores_label_smoothing_of_sigmoid(rows, tokenizer, tmp_path):
    """cDPO: TRL accepts label_smoothing with `sigmoid` and trains plain DPO; ours smooths."""
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = dpo_trainer(
        rows, tokenizer, tmp_path, policy, reference, loss_type="sigmoid", label_smoothing=0.2
    )
    value = trainer.compute_loss(trainer.model, batch).item()
    stats = ours.stats(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    chosen, rejected = stats[:B], stats[B:]
    plain, smooth = (
        LOSSES["dpo"].function(chosen, rejected, label_smoothing=e).value(counts(chosen)).item()
        for e in (0.0, 0.2)
    )
    assert value == pytest.approx(plain, rel=1e-5)
    assert abs(smooth - plain) > 1e-3


class Given(nn.Module):
    """Stands for a model in TRL's loss: returns the log-probs that it was given, one a response."""

    def __init__(self, logps: list[float]) -> None:
        super().__init__()
        self.logps = nn.Parameter(torch.tensor(logps))

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        per_token = torch.zeros(len(input_ids), input_ids.shape[1] - 1)
        per_token = torch.cat([per_token[:, :-1], self.logps[:, None]], dim=1)
        zero = torch.zeros_like(per_token)
        return SimpleNamespace(
            log_probs=per_token, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )


def given_batch() -> dict[str, Tensor]:
    """Two pairs with one-token prompts and responses."""
    ids = torch.full((4, 2), 5)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": torch.tensor([[0, 1]] * 4),
    }


def on_given(trainer, logps: list[float]) -> tuple[Tensor, Tensor]:
    """TRL's loss and its gradient for given log-ratios (the reference's log-probs are 0)."""
    policy = Given(logps)
    trainer.ref_model = Given([0.0] * 4)
    value = trainer._compute_loss(policy, given_batch(), False)
    (g,) = torch.autograd.grad(value, policy.logps)
    return value, g


def ours_on_given(member: Member, logps: list[float]) -> tuple[Tensor, Tensor]:
    logp = torch.tensor(logps, requires_grad=True)
    stats = SequenceStats(logp=logp, ref_logp=torch.zeros(4), length=torch.ones(4))
    value = compute([member], stats[:2], stats[2:]).value({"pair": 2.0})
    (g,) = torch.autograd.grad(value, logp)
    return value, g


def test_forward_kl_where_trl_overflows(rows, tokenizer, tmp_path):
    """Both responses 88 nats or more below the reference: TRL gives nan, ours does not.

    That is a response of 200 tokens at half a nat a token. Within exp's range the two agree.
    """
    policy, reference = policy_and_reference()
    trainer, _ = dpo_trainer(
        rows, tokenizer, tmp_path, policy, reference, f_divergence_type="forward_kl"
    )
    member = Member(type="fdpo", options={"divergence": "forward_kl"})
    near = [-2.0, 1.0, 0.5, -3.0]
    torch.testing.assert_close(ours_on_given(member, near), on_given(trainer, near))
    far = [-100.0, -200.0, -120.0, -110.0]
    value, g = on_given(trainer, far)
    assert value.isnan() and g.isnan().any()
    value, g = ours_on_given(member, far)
    assert value.isfinite() and g.isfinite().all()
    # The second pair is in the wrong order, so it is the one that learns.
    assert g[1] < 0 < g[3]
    assert g[0] == 0.0 == g[2]


def test_alpha_divergence_where_trl_stops_learning(rows, tokenizer, tmp_path):
    """TRL clamps the exponent, so pairs far below the reference have no gradient there."""
    policy, reference = policy_and_reference()
    trainer, _ = dpo_trainer(
        rows, tokenizer, tmp_path, policy, reference, f_divergence_type="alpha_divergence"
    )
    member = Member(type="fdpo", options={"divergence": "alpha"})
    near = [-2.0, 1.0, 0.5, -3.0]
    torch.testing.assert_close(ours_on_given(member, near), on_given(trainer, near))
    far = [-180.0, -220.0, -170.0, -180.0]
    assert not on_given(trainer, far)[1].any()
    g = ours_on_given(member, far)[1]
    assert g[1] < 0 < g[3]


# --- KTOTrainer --------------------------------------------------------------------------------


def test_kto_trainer(rows, tokenizer, tmp_path):
    from datasets import Dataset

    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    labels = [True, False, False, True]
    args = trl.KTOConfig(
        output_dir=str(tmp_path),
        max_length=None,
        train_sampling_strategy="sequential",
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        **COMMON,
    )
    trainer = trl.KTOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_dict(
            {"prompt": rows["prompt"], "completion": rows["chosen"], "label": labels}
        ),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    value = trainer.compute_loss(trainer.model, batch)
    stats = ours.stats(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    with torch.no_grad():
        other = ours.stats(
            batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_completion_mask"]
        )
    output = kto(
        stats,
        desirable=batch["label"].bool(),
        kl_baseline=(other.logp - other.ref_logp).mean(),
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    compare(value, trainer.model, output.value({"sequence": float(B)}), ours)


# --- CPO and ORPO ------------------------------------------------------------------------------


def likelihood_trainer(kind, rows, tokenizer, tmp_path, policy, **config):
    """TRL's experimental CPOTrainer or ORPOTrainer, and its batch."""
    from datasets import Dataset

    if kind == "cpo":
        from trl.experimental.cpo import CPOConfig as Config
        from trl.experimental.cpo import CPOTrainer as Trainer
    else:
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    trainer = Trainer(
        model=policy,
        args=Config(output_dir=str(tmp_path), max_length=64, **COMMON, **config),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    return trainer, trainer.data_collator(list(trainer.train_dataset))


def likelihood_stats(ours: Ours, trainer, batch) -> tuple[SequenceStats, SequenceStats]:
    joined = trainer.concatenated_inputs(batch, padding_value=0)
    mask = (joined["concatenated_labels"] != -100).long()
    stats = ours.stats(
        joined["concatenated_input_ids"], joined["concatenated_attention_mask"], mask
    )
    return stats[:B], stats[B:]


CPO_CASES = {
    "cpo": (
        {"loss_type": "sigmoid", "cpo_alpha": 0.7, "label_smoothing": 0.1},
        Member(type="cpo", options={"nll_weight": 0.7, "label_smoothing": 0.1}),
    ),
    "simpo": (
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.5},
        Member(type="simpo", options={"beta": 2.0, "gamma": 0.5}),
    ),
}


@pytest.mark.parametrize("case", CPO_CASES)
def test_cpo_trainer(case, rows, tokenizer, tmp_path):
    config, member = CPO_CASES[case]
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = likelihood_trainer("cpo", rows, tokenizer, tmp_path, policy, **config)
    value, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    chosen, rejected = likelihood_stats(ours, trainer, batch)
    output = compute([member], chosen, rejected)
    compare(value, trainer.model, output.value(counts(chosen)), ours)


def only(output: LossOutput, name: str) -> Tensor:
    return next(t for t in output.terms if t.name == name).losses


def test_orpo_trainer(rows, tokenizer, tmp_path):
    """The odds-ratio term agrees; TRL's likelihood term runs over prompts too, ours does not."""
    policy, reference = policy_and_reference()
    ours = Ours(policy, reference)
    trainer, batch = likelihood_trainer("orpo", rows, tokenizer, tmp_path, policy, beta=0.4)
    chosen, rejected = likelihood_stats(ours, trainer, batch)
    output = compute([Member(type="orpo", options={"beta": 0.4})], chosen, rejected)

    found = trainer.concatenated_forward(trainer.model, batch)
    ratio = -trainer.odds_ratio_loss(found[0], found[1])[0].mean()
    compare(ratio, trainer.model, only(output, "odds_ratio").mean(), ours)

    joined = trainer.concatenated_inputs(batch, padding_value=0)
    ids, attention = (joined[f"concatenated_{k}"][:B] for k in ("input_ids", "attention_mask"))
    everything = attention.clone()
    everything[:, 0] = 0
    with_prompt = -ours.tokens(ours.policy, ids, attention, everything).mean()
    responses = only(output, "nll").sum() / chosen.length.sum()
    assert found[4].item() == pytest.approx(with_prompt.item(), rel=1e-5)
    assert abs(responses.item() - with_prompt.item()) > 1e-3
