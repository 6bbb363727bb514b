"""`palate judge`: judges and critics from preference data, by the stages that palate has."""

from __future__ import annotations

from palate.train.judge.run import JudgeResult, train_judge

__all__ = ["JudgeResult", "train_judge"]
