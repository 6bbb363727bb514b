"""Float32 copies of sharded bfloat16 weights: what one process has, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from palate.train.optimizer import MasterWeights, build_optimizer, parameter_groups, state_of
from palate.train.shards import load_shards, save_shard

RATE = 3e-4
"""Small enough that most updates round to nothing in the weights themselves."""


def build() -> nn.Module:
    """Of five rows, and of one, of which the second process has none; a part is not trained."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 1), "c": nn.Linear(6, 2)})
    model["c"].requires_grad_(False)
    return model.to(torch.bfloat16)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(model, weight_decay=0.1)
    return build_optimizer(groups, name="adamw", learning_rate=RATE, precision="float32")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, k: int, part: slice, n: int) -> None:
    """Gradients are whole numbers below 256, so that no sum of them is rounded."""
    rows = torch.randint(-4, 5, (4, 6), generator=torch.Generator().manual_seed(k))
    loss = 0.0
    for row in rows[part].to(torch.bfloat16):
        loss = loss + model["a"](row).sum() + model["b"](row).sum()
    (loss * n).backward()
    optimizer.step()
    optimizer.zero_grad()


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All weights, copies and moments, whole."""
    entries: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = state_of(optimizer, parameter) if parameter.requires_grad else {}
        for key, value in {"weight": parameter, **state}.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            entries[f"{name}/{key}"] = whole.detach().clone()
    return entries


def train(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    mesh = init_device_mesh("cpu", (2,))

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = build()
        for part in model.values():
            fully_shard(part, mesh=mesh)
        return model, optimizer_of(model)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for k in steps:
            step(model, optimizer, k, slice(rank, None, 2), 2)

    model, optimizer = begin()
    run(model, optimizer, range(3))
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    save_shard(model, optimizer, shards, rank=rank)
    run(model, optimizer, range(3, 5))
    dist.barrier()
    again, resumed = begin()
    load_shards(again, resumed, shards)
    run(again, resumed, range(3, 5))
    whole = [kept(model, optimizer), kept(again, resumed)]
    if rank == 0:
        torch.save(whole, folder / "kept.pt")
    dist.destroy_process_group()


def test_two_processes_keep_what_one_does_and_resume(tmp_path: Path) -> None:
    mp.spawn(train, (tmp_path,), nprocs=2)
    model = build()
    optimizer = optimizer_of(model)
    assert isinstance(optimizer, MasterWeights)
    start = kept(model, optimizer)
    for k in range(5):
        step(model, optimizer, k, slice(None), 1)
    want = kept(model, optimizer)
    through, resumed = torch.load(tmp_path / "kept.pt", weights_only=True)
    assert {"a.weight/copy", "a.bias/exp_avg", "b.weight/exp_avg_sq", "c.bias/weight"} < want.keys()
    assert want.keys() == through.keys() == resumed.keys()
    for name, value in want.items():
        dtype = torch.bfloat16 if name.endswith("/weight") else torch.float32
        assert value.dtype == through[name].dtype == resumed[name].dtype == dtype, name
        # Vectors of other lengths round otherwise in the last bit.
        torch.testing.assert_close(through[name], value, rtol=1e-6, atol=1e-9, msg=name)
        assert torch.equal(resumed[name], through[name]), name
    assert not torch.equal(want["a.weight/copy"], start["a.weight/copy"])
    # And one process reads what two wrote.
    alone = build()
    loaded = optimizer_of(alone)
    load_shards(alone, loaded, tmp_path / "shards")
    for k in range(3, 5):
        step(alone, loaded, k, slice(None), 1)
    for name, value in kept(alone, loaded).items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-9, msg=name)
    with safe_open(tmp_path / "shards/rank-00001.safetensors", framework="pt") as second:
        assert second.get_slice("optimizer/a.weight/copy").get_shape() == [2, 6]
