"""Runs on two processes: launched as a user would, and with weights sharded by FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from palate.train import checkpoint

# With a second argument this child dies before that step.
FSDP_CHILD = """
import sys
from torch.distributed.tensor import DTensor
import palate.train as train
from palate.recipes import load_recipe, RewardRecipe, TuneRecipe
from palate.train.loop import Loop

train_step = Loop.train_step
def checked(self, micro_batches):
    assert all(isinstance(p, DTensor) for p in self.job.model.parameters())
    if len(sys.argv) > 2 and self.step == int(sys.argv[2]):
        sys.exit("stopped")
    train_step(self, micro_batches)
Loop.train_step = checked
if "# palate reward" in open(sys.argv[1]).read():
    train.reward(load_recipe(RewardRecipe, sys.argv[1]))
else:
    train.tune(load_recipe(TuneRecipe, sys.argv[1]))
"""


def fsdp(layer: str) -> str:
    """Options of a sharded launch.

    Args:
        layer: class of the model's layers.
    """
    return (
        "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
        f"--fsdp_transformer_layer_cls_to_wrap {layer} --fsdp_reshard_after_forward true "
        "--fsdp_cpu_ram_efficient_loading false"
    )


def launch(options: str, *command: str) -> subprocess.CompletedProcess[str]:
    src = Path(checkpoint.__file__).parents[2]
    common = "--num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    return subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *options.split()),
            *(*common.split(), "--dynamo_backend", "no", *command),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(src),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
