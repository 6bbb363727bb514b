"""Training: `tune` and `sft` of policies, `reward` of reward models."""

from palate.train.reward_run import reward
from palate.train.run import sft, tune
from palate.train.training_run import RunResult

__all__ = ["RunResult", "reward", "sft", "tune"]
