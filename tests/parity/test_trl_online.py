"""Policy losses, advantages and corrections against TRL's own trainers, on the same tensors.

TRL's `GRPOTrainer._compute_loss` is given the log-probs that its model would have had, as a padded
float64 parameter, and is compared with ours on the flat tokens: value, and gradient of every token.
`_generate_and_score_completions` of both trainers is given responses and scores. Where we differ on
purpose a test says how.
"""

from __future__ import annotations

import os

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from palate.losses import (
    cispo,
    clipped_surrogate,
    correction_weights,
    denominators,
    group_advantages,
    kl_estimate,
    leave_one_out,
    loss_counts,
    whiten,
)
from tiny import VOCABULARY, tiny_model

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl", minversion="1.16")

S, LONGEST, LIMIT = 4, 5, 7
LENGTHS = torch.tensor([3, 5, 1, 4])
PADDED = torch.arange(LONGEST) < LENGTHS[:, None]
"""[S, LONGEST] bool, True at a token of a response."""
SEGMENT = torch.repeat_interleave(torch.arange(S), LENGTHS)
F64 = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>"]
    words = {w: i for i, w in enumerate([*special, *(f"t{i}" for i in range(3, VOCABULARY))])}
    core = Tokenizer(models.WordLevel(words, unk_token="t3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def trainer_of(kind: str, folder: str, tokenizer: PreTrainedTokenizerFast, **config):
    from datasets import Dataset

    config_class, trainer_class = {
        "grpo": (trl.GRPOConfig, trl.GRPOTrainer),
        "rloo": (trl.RLOOConfig, trl.RLOOTrainer),
    }[kind]
    args = config_class(
        output_dir=folder,
        per_device_train_batch_size=S,
        num_generations=4,
        max_completion_length=LIMIT,
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        **config,
    )
    return trainer_class(
        model=tiny_model("llama", spread=2.0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["t4 t5"] * S}),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def grpo(tokenizer, tmp_path_factory):
    trainer = trainer_of("grpo", str(tmp_path_factory.mktemp("grpo")), tokenizer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def rloo(tokenizer, tmp_path_factory):
    return trainer_of("rloo", str(tmp_path_factory.mktemp("rloo")), tokenizer, beta=0.0)


def padded(seed: int, scale: float, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(S, LONGEST, generator=g, **F64)


LOGP, OLD, REF = padded(0, 0.4, -2.0), padded(1, 0.4, -2.0), padded(2, 0.6, -2.0)
ADVANTAGES = torch.tensor([1.5, -0.7, -2.0, 0.4], **F64)


def of_trl(trainer, monkeypatch, *, args: dict, extra: dict | None = None, **attributes):
    """(loss, [N] its gradient in the log-probs) of TRL's own function."""
    logp = nn.Parameter(LOGP.clone())
    monkeypatch.setattr(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda *_, **__: (logp, torch.zeros_like(logp), None),
    )
    for name, value in attributes.items():
        monkeypatch.setattr(trainer, name, value)
    for name, value in args.items():
        monkeypatch.setattr(trainer.args, name, value)
    inputs = {
        "prompt_ids": torch.zeros(S, 1).long(),
        "prompt_mask": torch.ones(S, 1).long(),
        "completion_ids": torch.zeros(S, LONGEST).long(),
        "completion_mask": PADDED.long(),
        "advantages": ADVANTAGES,
        "old_per_token_logps": OLD,
        "ref_per_token_logps": REF,
        "num_items_in_batch": PADDED.sum(),
        **(extra or {}),
    }
    value = trainer._compute_loss(trainer.model, inputs)
    (slope,) = torch.autograd.grad(value, logp)
    assert not slope[~PADDED].any()
    return value, slope[PADDED]


def of_ours(
    loss_type: str,
    *,
    beta: float = 0.0,
    corrected: bool = False,
    advantages: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor]:
    logp = LOGP[PADDED].requires_grad_()
    old, ref = OLD[PADDED], REF[PADDED]
    advantages = ADVANTAGES[SEGMENT] if advantages is None else advantages[PADDED]
    if options.get("level") == "sequence":
        options = {**options, "segment": SEGMENT, "n_sequences": S}
    policy = cispo if loss_type == "cispo" else clipped_surrogate
    losses = policy(logp, old, advantages, **options).losses
    if beta:
        correction = {"old_logp": old} if corrected else {}
        losses = losses + beta * kl_estimate(logp, ref, "k3", **correction)
    factor, per = denominators(loss_type, SEGMENT, S, LIMIT)
    value = (losses * factor).sum() / loss_counts(SEGMENT, S)[per]
    (slope,) = torch.autograd.grad(value, logp)
    return value, slope


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float = 1e-7) -> None:
    # The factors are float32.
    torch.testing.assert_close(got[0], expected[0], rtol=rtol, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=rtol, atol=1e-12)
    assert expected[1].norm() > 1e-2, "nothing to compare"


LOSSES = pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])


@LOSSES
@pytest.mark.parametrize("beta", ["none", "plain", "corrected"])
def test_clipped_losses(grpo, monkeypatch, loss_type, beta):
    """Two bounds, k3 in the loss with and without the bias correction."""
    coefficient, corrected = (0.0 if beta == "none" else 0.3), beta == "corrected"
    expected = of_trl(
        grpo,
        monkeypatch,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        beta=coefficient,
        args={"use_bias_correction_kl": corrected},
    )
    options = {"epsilon": 0.2, "epsilon_high": 0.28}
    same(of_ours(loss_type, beta=coefficient, corrected=corrected, **options), expected)


def test_the_bias_correction_changes_the_gradient_even_on_policy(grpo, monkeypatch):
    both = [
        of_trl(
            grpo,
            monkeypatch,
            loss_type="dapo",
            beta=0.3,
            args={"use_bias_correction_kl": corrected},
            extra={"old_per_token_logps": LOGP},
        )
        for corrected in (False, True)
    ]
    assert both[0][0] == both[1][0]
    assert (both[0][1] - both[1][1]).norm() > 1e-2


@LOSSES
def test_delta(grpo, monkeypatch, loss_type):
    options = {"loss_type": loss_type, "epsilon_low": 0.2, "epsilon_high": 0.2}
    expected = of_trl(grpo, monkeypatch, args={"delta": 1.3}, **options)
    same(of_ours(loss_type, epsilon=0.2, delta=1.3), expected)
    without = of_ours(loss_type, epsilon=0.2)
    assert (without[1] - expected[1]).norm() > 1e-3


@LOSSES
@pytest.mark.parametrize("delta", [None, 1.15])
def test_ratios_of_sequences(grpo, monkeypatch, loss_type, delta):
    """GSPO: one advantage a response, where GSPO and its token form are one, value and gradient."""
    expected = of_trl(
        grpo,
        monkeypatch,
        loss_type=loss_type,
        importance_sampling_level="sequence",
        epsilon_low=0.05,
        epsilon_high=0.08,
        args={"delta": delta},
    )
    options = {"level": "sequence", "epsilon": 0.05, "epsilon_high": 0.08, "delta": delta}
    same(of_ours(loss_type, **options), expected)


def test_advantages_of_tokens(grpo, monkeypatch):
    advantages = padded(3, 1.0)
    options = {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.2}
    expected = of_trl(grpo, monkeypatch, args={}, extra={"advantages": advantages}, **options)
    same(of_ours("dapo", epsilon=0.2, advantages=advantages), expected)


def test_advantages_that_vary_in_a_row_under_ratios_of_sequences(grpo, monkeypatch):
    """On purpose another gradient: TRL's is each token's share of the row's mean advantage, ours
    the token's own, as in GSPO's token form and in verl. The values agree."""
    advantages = padded(3, 1.0)
    expected = of_trl(
        grpo,
        monkeypatch,
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon_low=0.9,
        epsilon_high=0.9,
        args={},
        extra={"advantages": advantages},
    )
    ours = of_ours("grpo", level="sequence", epsilon=0.9, advantages=advantages)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-7, atol=0)
    assert (ours[1] - expected[1]).norm() > 1e-2
    means = torch.stack([row[kept].mean() for row, kept in zip(advantages, PADDED, strict=True)])
    by_mean = of_ours("grpo", level="sequence", epsilon=0.9, advantages=means[:, None] + 0 * LOGP)
    torch.testing.assert_close(by_mean[1], expected[1])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo(grpo, monkeypatch, level):
    """TRL's `epsilon_high` is the bound of the weight, ours what it exceeds 1 by."""
    bound = {"token": 1.3, "sequence": 1.05}[level]
    expected = of_trl(
        grpo,
        monkeypatch,
        loss_type="cispo",
        importance_sampling_level=level,
        epsilon_high=bound,
        args={},
    )
    same(of_ours("cispo", epsilon_high=bound - 1, level=level), expected)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_importance_weights_multiply_the_policy_term_alone(grpo, monkeypatch, loss_type):
    """Not the KL; and a weight of 0 stays in the denominators."""
    weights = (padded(4, 0.5)).exp()
    weights[1, 2] = 0.0
    expected = of_trl(
        grpo,
        monkeypatch,
        loss_type=loss_type,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        epsilon_low=0.2,
        epsilon_high=1.2,
        beta=0.2,
        args={"use_bias_correction_kl": False},
        extra={"importance_sampling_ratio": weights},
    )
    bounds = (
        {"epsilon_high": 0.2} if loss_type == "cispo" else {"epsilon": 0.2, "epsilon_high": 1.2}
    )
    same(of_ours(loss_type, beta=0.2, weights=weights[PADDED], **bounds), expected)


def test_clip_fractions(grpo, monkeypatch):
    of_trl(grpo, monkeypatch, loss_type="dapo", epsilon_low=0.2, epsilon_high=0.3, args={})
    out = clipped_surrogate(
        LOGP[PADDED], OLD[PADDED], ADVANTAGES[SEGMENT], epsilon=0.2, epsilon_high=0.3
    )
    logged = grpo._metrics["train"]
    assert logged["clip_ratio/low_mean"][-1] == pytest.approx(out.clipped_low.double().mean())
    assert logged["clip_ratio/high_mean"][-1] == pytest.approx(out.clipped_high.double().mean())
    assert out.clipped_low.any() and out.clipped_high.any()


def test_a_response_masked_as_a_whole(grpo, monkeypatch):
    """TRL's mask_truncated_completions leaves the row in the denominator of sequences; here what is
    not trained on is in none. Over tokens the two agree."""
    mask = PADDED.clone()
    mask[1] = False
    flat = mask[PADDED]
    kept = {"completion_mask": mask.long(), "num_items_in_batch": mask.sum()}
    for loss_type, ratio in (("dapo", 1.0), ("grpo", 4 / 3), ("dr_grpo", 4 / 3)):
        value, slope = of_trl(
            grpo,
            monkeypatch,
            loss_type=loss_type,
            epsilon_low=0.2,
            epsilon_high=0.2,
            args={},
            extra=kept,
        )
        logp = LOGP[PADDED].requires_grad_()
        losses = clipped_surrogate(
            logp, OLD[PADDED], ADVANTAGES[SEGMENT], epsilon=0.2, mask=flat
        ).losses
        factor, per = denominators(loss_type, SEGMENT, S, LIMIT, mask=flat)
        ours = (losses * factor).sum() / loss_counts(SEGMENT, S, mask=flat)[per]
        assert ours.item() == pytest.approx(ratio * value.item(), rel=1e-5)
        (own,) = torch.autograd.grad(ours, logp)
        torch.testing.assert_close(own, ratio * slope, rtol=1e-6, atol=1e-12)


# --- RLOO's loss -------------------------------------------------------------------------------


def test_rloo_loss_on_policy(rloo, monkeypatch):
    """TRL clips the product of a response's ratios; on policy its gradient is that of the sum over
    tokens, which `dr_grpo` is up to max_new_tokens. Off policy they differ on purpose: the
    product's range grows with length."""
    logp = nn.Parameter(LOGP.clone())
    monkeypatch.setattr(
        rloo, "_get_per_token_logps_and_entropies", lambda *_, **__: (logp, 0 * LOGP, None)
    )
    inputs = {
        "prompt_ids": torch.zeros(S, 1).long(),
        "prompt_mask": torch.ones(S, 1).long(),
        "completion_ids": torch.zeros(S, LONGEST).long(),
        "completion_mask": PADDED.long(),
        "advantages": ADVANTAGES,
        "old_logps": (LOGP * PADDED).sum(1),
    }
    (slope,) = torch.autograd.grad(rloo._compute_loss(rloo.model, inputs), logp)
    ours = LOGP[PADDED].requires_grad_()
    losses = clipped_surrogate(ours, LOGP[PADDED], ADVANTAGES[SEGMENT], epsilon=0.2).losses
    factor, per = denominators("dr_grpo", SEGMENT, S, LIMIT)
    value = LIMIT * (losses * factor).sum() / loss_counts(SEGMENT, S)[per]
    torch.testing.assert_close(
        torch.autograd.grad(value, ours)[0], slope[PADDED], rtol=1e-6, atol=1e-12
    )


# --- advantages --------------------------------------------------------------------------------

SCORES = [[1.0, 2.0, 4.0, 3.0], [0.5, 0.5, None, 2.0], [1.0, 1.0, 1.0, 1.0]]
FLAT = torch.tensor([float("nan") if x is None else x for row in SCORES for x in row])
GROUP = torch.arange(3).repeat_interleave(4)


def scored(
    trainer,
    monkeypatch,
    *,
    scores: Tensor = FLAT,
    engine: list[list[float]] | None = None,
    **attributes,
) -> dict[str, Tensor]:
    """What TRL makes of twelve responses of two tokens with these scores."""
    n = len(scores)
    prompts, ids, texts = [[4]] * n, [[5, 2]] * n, ["t5"] * n
    generated = {
        "GRPOTrainer": (prompts, ids, None, texts, engine, {}, None, None),
        "RLOOTrainer": (prompts, ids, texts),
    }[type(trainer).__name__]
    monkeypatch.setattr(trainer, "_generate", lambda *_: generated)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: scores[:, None])
    for name, value in attributes.items():
        monkeypatch.setattr(trainer, name, value)
    return trainer._generate_and_score_completions([{"prompt": "t4"} for _ in range(n)])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(grpo, monkeypatch, scale):
    """Unbiased deviations, TRL's epsilon, a response that nobody could score."""
    out = scored(grpo, monkeypatch, scale_rewards=scale, beta=0.0)
    ours = group_advantages(FLAT, GROUP, scale=scale)
    torch.testing.assert_close(out["advantages"], ours, rtol=2e-6, atol=1e-7)
    assert (ours != 0).sum() >= 6


def test_a_group_that_differs_by_rounding_is_no_group_of_equals(grpo, monkeypatch):
    """TRL reports zero variance where the deviation is close to 0; here equality is exact."""
    close = torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-8] * 3, **F64)
    reported = grpo._metrics["train"]["frac_reward_zero_std"]
    scored(grpo, monkeypatch, scores=close, beta=0.0)
    assert reported[-1] == 1.0
    assert (group_advantages(close, GROUP, scale="group") != 0).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_leave_one_out(rloo, monkeypatch, normalize):
    """TRL divides by the deviation plus 1e-4, ours by the root of the variance plus 1e-8."""
    out = scored(rloo, monkeypatch, beta=0.0, normalize_advantages=normalize)
    ours = leave_one_out(FLAT, GROUP)
    if normalize:
        ours = whiten(ours, mask=~FLAT.isnan())
    torch.testing.assert_close(out["advantages"], ours, rtol=3e-4 if normalize else 2e-6, atol=1e-7)


# --- corrections -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_corrections(grpo, monkeypatch, level, mode):
    """The engine's log-probs with a NaN among them; TRL's cap, no floor."""
    n = len(FLAT)
    g = torch.Generator().manual_seed(5)
    old = -1.0 + 0.5 * torch.randn(n, 2, generator=g)
    engine = old + 0.7 * torch.randn(n, 2, generator=g)
    engine[3, 1] = float("nan")
    monkeypatch.setattr(
        grpo, "_get_per_token_logps_and_entropies", lambda *_, **__: (old, 0 * old, None)
    )
    # The weights are made where the engine's log-probs come in; nothing else of vLLM is needed.
    out = scored(
        grpo,
        monkeypatch,
        engine=engine.tolist(),
        beta=0.0,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=f"{level}_{mode}",
        vllm_importance_sampling_clip_max=1.5,
        vllm_importance_sampling_clip_min=None,
    )
    expected = out["importance_sampling_ratio"].expand(n, 2).reshape(-1)
    segment = torch.arange(n).repeat_interleave(2)
    ours = correction_weights(
        old.reshape(-1), engine.reshape(-1), segment, level=level, mode=mode, cap=1.5
    )
    torch.testing.assert_close(ours, expected)
    assert 0 < int((expected == (1.5 if mode == "truncate" else 0.0)).sum()) < len(expected)
