"""Training of policies: `tune` on preferences, `sft` on demonstrations."""

from palate.train.run import RunResult, sft, tune

__all__ = ["RunResult", "sft", "tune"]
