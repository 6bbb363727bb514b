"""Shipped recipes of reward models: every value that the source states is the source's."""

from __future__ import annotations

from pathlib import Path

import pytest

from palate.recipes import load_recipe
from palate.recipes.pairing import PairingRecipe
from palate.recipes.reward import BradleyTerry, RegulariseRecipe, RewardRecipe


def shipped(name: str) -> RewardRecipe:
    return load_recipe(RewardRecipe, name)


def paths(recipe: RewardRecipe) -> list[str]:
    return [source.path for source in recipe.data.train]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_default(tmp_path: Path) -> None:
    theirs = pytest.importorskip("trl").RewardConfig(output_dir=str(tmp_path), bf16=False)
    own = shipped("reward-trl-default")
    train = own.train
    assert train.learning_rate == theirs.learning_rate
    assert train.micro_batch_size_pairs == theirs.per_device_train_batch_size
    assert train.batch_size_pairs == (
        theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps
    )
    assert train.eval_batch_size_pairs == theirs.per_device_eval_batch_size
    assert train.epochs == theirs.num_train_epochs
    assert train.scheduler == theirs.lr_scheduler_type.value
    assert (train.warmup_steps, train.warmup_fraction) == (theirs.warmup_steps, None)
    assert train.weight_decay == theirs.weight_decay
    assert train.max_grad_norm == theirs.max_grad_norm
    assert train.gradient_checkpointing is theirs.gradient_checkpointing
    assert train.log_every_steps == theirs.logging_steps
    assert train.optimizer in theirs.optim.value
    assert own.seed == theirs.seed
    assert own.data.length.max_tokens == theirs.max_length
    assert own.data.length.prompt == own.data.length.response == "drop"
    assert own.regularise.centring == (theirs.center_rewards_coefficient or 0.0)
    # Its margin is a column of that name, which this data does not have: the scores are none.
    assert own.loss == BradleyTerry() and own.model.lora is None
    assert (own.head.layers, own.head.has_bias) == (1, False)
    from transformers import Qwen3Config

    assert own.head.init_deviation == Qwen3Config().initializer_range


def test_unpacking_paper() -> None:
    own = shipped("reward-unpacking-paper")
    train = own.train
    assert own.model.path == "allenai/tulu-2-13b" and own.model.lora is None
    assert paths(own) == ["allenai/tulu-2.5-preference-data"]
    assert own.data.train[0].split == "ultrafeedback_mean_aspects"
    assert (own.head.layers, own.head.has_bias, own.head.init_deviation) == (1, False, 0.02)
    assert own.loss == BradleyTerry() and own.regularise == RegulariseRecipe()
    assert (train.batch_size_pairs, train.epochs, train.learning_rate) == (512, 1.0, 1e-5)
    assert (train.scheduler, train.warmup_fraction) == ("linear", 0.03)
    assert (train.weight_decay, train.max_grad_norm, own.seed) == (0.0, 1.0, 42)
    assert own.data.length.max_tokens == 4096
    assert own.data.length.prompt == own.data.length.response == "drop"
    # What is left of 60,908 pairs gives about 118 updates, as there.
    assert round(60_908 * (1 - (own.data.eval_fraction or 0)) / train.batch_size_pairs) == 118


def test_basereward_paper() -> None:
    own = shipped("reward-basereward-paper")
    assert own.model.path == "Qwen/Qwen3-8B" and own.model.lora is None
    assert (own.head.layers, own.head.activation, own.head.width) == (2, "silu", None)
    assert own.pooling == "token"
    assert own.loss == BradleyTerry() and own.regularise == RegulariseRecipe()
    assert (own.train.learning_rate, own.train.batch_size_pairs) == (3e-6, 128)
    assert own.data.pairing == PairingRecipe.model_validate({"preset": "ultrafeedback_largest_gap"})
    assert set(paths(own)) == {
        "openbmb/UltraFeedback",
        "allenai/tulu-3-IF-augmented-on-policy-70b",
        "allenai/olmo-2-0425-1b-preference-mix",
        "allenai/tulu-3-wildchat-ultrafeedback",
        "bigcode/swe-arena-preference-5k",
    }
