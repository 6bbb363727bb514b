"""The cache of a frozen backbone's states: whole, its own model's, and the same in any batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palate.data.items import Item, PairLabel, Ranks, Tokens
from palate.data.layouts import collate
from palate.errors import ModelError, RunError
from palate.models.features import FeatureTable
from palate.models.model import Model
from palate.models.reward_config import RewardSpec
from palate.recipes.schema import ModelRecipe
from palate.store import cache
from tiny import rewards_of, tiny_model, tiny_pairs


def model(*, pooling: Any = "token", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    spec = RewardSpec(model=ModelRecipe(path="tiny"), pooling=pooling)
    base = tiny_model("llama", dtype=dtype, seed=seed, spread=2.0).base_model
    return Model.reward(base, spec).eval()


def table(root: Path, items: Any, *, own: Model | None = None, digest: str = "a") -> Any:
    own = own or model()
    return FeatureTable(own, items, digest=digest, root=root, pad_id=0, batch_size=4)


def filled(root: Path, items: Any, **more: Any) -> Any:
    found = table(root, items, **more)
    found.fill()
    found.index()
    return found


def lists(n: int = 6) -> list[Item]:
    return [
        Item.of(
            p.prompts[0],
            *(*p.responses, Tokens((7, 8, 2)))[: 2 + i % 2],
            label=Ranks((2, 1, 1)[: 2 + i % 2]),
            id=p.id,
            source=p.source,
            index=i,
        )
        for i, p in enumerate(tiny_pairs(n))
    ]


@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("items", [tiny_pairs(9), lists()], ids=["pairs", "lists"])
def test_batches_are_those_of_the_live_backbone(items: Any, pooling: str, tmp_path: Path) -> None:
    own = model(pooling=pooling)
    found = filled(tmp_path, items, own=own)
    chunk = [items[i] for i in (4, 0, 5)]
    batch = found.collate(chunk)
    live = collate(chunk, layout="plain", pad_id=0, keep_last=True)
    with torch.no_grad():
        torch.testing.assert_close(rewards_of(own, batch), rewards_of(own, live))
    for name in ("lengths", "item", "rank", "weight", "ids", "sources"):
        got, want = getattr(batch, name), getattr(live, name)
        assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want, name
    assert (batch.pairs is None) == (live.pairs is None)
    if batch.pairs is not None and live.pairs is not None:
        for name in ("chosen", "rejected", "tie"):
            assert torch.equal(getattr(batch.pairs, name), getattr(live.pairs, name)), name


def test_own_prompts_of_the_sides(tmp_path: Path) -> None:
    pairs = [
        dataclasses.replace(p, prompts=(p.prompts[0], Tokens((1, 50 + i))))
        for i, p in enumerate(tiny_pairs(4))
    ]
    own = model()
    batch = filled(tmp_path, pairs, own=own).collate(pairs)
    live = collate(pairs, layout="plain", pad_id=0, keep_last=True)
    with torch.no_grad():
        torch.testing.assert_close(rewards_of(own, batch), rewards_of(own, live))


def test_processes_share_the_work_whatever_the_others_have_written(tmp_path: Path) -> None:
    """The second one begins to read when the first has written its part."""
    pairs = tiny_pairs(20)
    parts = [table(tmp_path, pairs) for _ in range(3)]
    for rank, part in enumerate(parts):
        part.fill(rank=rank, world_size=3)
    counts = [part.computed for part in parts]
    assert min(counts) > 0 and sum(counts) == len({key for p in parts for key in p._keys})
    for part in parts:
        part.index()


def test_shards_are_written_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run loses no more than that."""
    monkeypatch.setattr(cache, "SHARD_SECONDS", 0.0)
    pairs = tiny_pairs(10)
    first = table(tmp_path, pairs)
    live = first._live

    def dies(own: Any) -> Any:
        if len(list(first.folder.glob("shard-*"))) == 2:
            raise KeyboardInterrupt
        return live(own)

    monkeypatch.setattr(first, "_live", dies)
    with pytest.raises(KeyboardInterrupt):
        first.fill()
    again = filled(tmp_path, pairs)
    assert again.computed == len(set(again._keys)) - 8


def edit(path: Path, change: Any, **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        known = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=known | metadata)


DAMAGES: dict[str, tuple[Any, str]] = {
    "one value": (lambda t: t["features"][3].mul_(1.01), "damaged"),
    "not a number": (lambda t: t["features"][0].fill_(float("nan")), "damaged"),
    "rows in another order": (lambda t: t.update(features=t["features"].flip(0)), "damaged"),
    "another width": (lambda t: t.update(features=t["features"][:, :5]), "another model"),
    "fewer rows": (lambda t: t.update(features=t["features"][:3]), "another model"),
    "fewer keys": (lambda t: t.update(keys=t["keys"][:-7]), "another model"),
    "another dtype": (lambda t: t.update(features=t["features"].half()), "another model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_one_line(damage: str, tmp_path: Path) -> None:
    pairs = tiny_pairs(12)
    found = filled(tmp_path, pairs)
    change, words = DAMAGES[damage]
    (path,) = found.folder.glob("shard-*")
    edit(path, change)
    with pytest.raises(RunError, match=f"{path.name}.*{words}.*delete it"):
        table(tmp_path, pairs).fill()


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    pairs = tiny_pairs(5)
    other = filled(tmp_path, pairs, own=model(seed=1), digest="b")
    own = table(tmp_path, pairs)
    own.folder.mkdir()
    (path,) = other.folder.glob("shard-*")
    (own.folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="another model"):
        own.fill()


def test_states_are_compared_with_the_live_backbone_wherever_they_lie(tmp_path: Path) -> None:
    """A digest that lies, and stored states of which the first are right."""
    pairs = tiny_pairs(40)
    found = table(tmp_path, pairs)
    right, live = found._live, model(seed=1)
    own = table(tmp_path, pairs, own=live)._live
    first = {pairs[k].sequences[j] for k in range(8) for j in range(2)}
    found._live = lambda ids: torch.cat([(right if one in first else own)([one]) for one in ids])
    found.fill()
    with pytest.raises(ModelError, match="off the live backbone"):
        table(tmp_path, pairs).index()


def test_states_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    found = table(tmp_path, tiny_pairs(3), own=model(dtype=torch.float16))
    found._live = lambda ids: torch.full((len(ids), 32), torch.inf, dtype=torch.float16)
    with pytest.raises(ModelError, match=r"not finite in float16: choose another `model\.dtype`"):
        found.fill()
    assert not list(tmp_path.rglob("shard-*"))


def test_equal_token_ids_cut_elsewhere_are_other_sequences(tmp_path: Path) -> None:
    one = Item.of((1, 5), (6, 7, 2), (2,), label=PairLabel(), index=0)
    other = Item.of((1, 5, 6), (7, 2), (2,), label=PairLabel(), index=1)
    keys = table(tmp_path, [one, other])._keys
    assert len(set(keys)) == 4
