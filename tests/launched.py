"""Runs on two processes: launched as a user would, and with weights sharded by FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from palate.train import checkpoint

# accelerate leaves FSDP out on CPU, where torch has it: this child asks for it all the same. With
# a second argument it dies before that step.
FSDP_CHILD = """
import sys
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

made = AcceleratorState.__init__
def sharded(self, *args, fsdp_plugin=None, **kwargs):
    made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
AcceleratorState.__init__ = sharded

import palate.train as train
import palate.train.run as run
from palate.recipes import load_recipe, RewardRecipe, TuneRecipe
from palate.train.trainer import PalateTrainer
from palate.train.weights import is_sharded

run.check_launch = lambda *args, **kwargs: None
begin = PalateTrainer.get_batch_samples
def checked(self, *args):
    assert is_sharded(self.job.policy)
    if len(sys.argv) > 2 and self.state.global_step == int(sys.argv[2]):
        sys.exit("stopped")
    return begin(self, *args)
PalateTrainer.get_batch_samples = checked
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
