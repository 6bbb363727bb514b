"""Shipped recipes of reward models: every value that the source states is the source's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from build_cases import built, rows_of, write_jsonl
from palate.recipes import load_recipe
from palate.recipes.construct import DataBuildRecipe
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


def test_basereward_text() -> None:
    own = shipped("reward-basereward-text")
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


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_basereward(size: str) -> None:
    own = shipped(f"reward-basereward-{size.lower()}")
    assert own.model.path == f"Qwen/Qwen2.5-VL-{size}-Instruct" and own.model.lora is None
    assert (own.head.layers, own.head.activation, own.head.width) == (2, "silu", None)
    assert own.loss == BradleyTerry() and own.regularise == RegulariseRecipe()
    assert own.pooling == "token" and own.backbone == "trained"
    train = own.train
    assert (train.learning_rate, train.batch_size_pairs, train.epochs) == (3e-6, 128, 1.0)
    # What it reads is what the recipe of its data writes.
    data = load_recipe(DataBuildRecipe, "data-basereward")
    assert {source.path for source in (*own.data.train, *own.data.eval)} == {str(data.output_dir)}
    assert [source.split for source in (*own.data.train, *own.data.eval)] == ["train", "eval"]
    assert data.output.eval_fraction is not None


def test_basereward_small_differs_in_size_alone() -> None:
    own, large = shipped("reward-basereward-small"), shipped("reward-basereward-7b")
    assert (own.head, own.pooling, own.loss) == (large.head, large.pooling, large.loss)
    assert own.regularise == large.regularise and own.model.lora is not None
    # As its comment says, a model and pairs of one's own take the place of the demo's.
    keys = ["model.path=here", "data.train.0.path=pairs.jsonl"]
    changed = load_recipe(RewardRecipe, "reward-basereward-small", keys)
    assert (changed.model.path, changed.data.train[0].path) == ("here", "pairs.jsonl")


def test_the_data_of_basereward() -> None:
    data = load_recipe(DataBuildRecipe, "data-basereward")
    assert data.mixture is not None and data.mixture.take is not None
    assert set(data.mixture.take) == {source.name for source in data.sources}
    assert data.mixture.take["mmpr"] == 2_000_000
    assert set(paths(shipped("reward-basereward-text"))) <= {s.path for s in data.sources}
    # R1-Reward's draw of 100k from four sets, of which one is here as a whole.
    drawn = {"vlfeedback": 80_258, "povid": 17_184, "wildvision": 10_383}
    total = sum(drawn.values()) + 74_802
    for name, rows in drawn.items():
        assert data.mixture.take[name] == pytest.approx(rows * 100_000 / total, abs=10)


def test_what_basereward_is_measured_on_is_not_trained_on(tmp_path: Path) -> None:
    """The recipe's own steps, on files with the columns that the benchmarks have."""
    curate = load_recipe(DataBuildRecipe, "data-basereward").model_dump(mode="json")["curate"]
    pictures = {}
    for i in range(4):
        Image.new("RGB", (5 + i, 4), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        pictures[i] = {"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None}
    asked = [f"What is shown in the picture with number {i}?" for i in range(4)]
    write_jsonl(
        tmp_path / "mm_reward_bench.jsonl",
        [
            {"id": "a", "prompt": asked[0], "chosen": "x", "rejected": "y", "image": "0.png"},
            {"id": "b", "prompt": "And the film?", "chosen": "x", "rejected": "y", "video": "v"},
        ],
    )
    vl = [
        {"id": "b", "query": f"<image>\n{asked[1]}", "response": ["x", "y"], "image": pictures[1]}
    ]
    pq.write_table(pa.Table.from_pylist(vl), tmp_path / "vl.parquet")
    third = {"ID": "c", "Text": asked[2], "Image": "2.png", "Output1": "x", "Output2": "y"}
    (tmp_path / "all_data.json").write_text(json.dumps([third]))
    files = ("mm_reward_bench.jsonl", "vl.parquet", "all_data.json")
    for against, name in zip(curate[0]["against"], files, strict=True):
        against |= {"path": str(tmp_path / name), "split": None}

    def row(question: int, shown: int | None, answer: str) -> dict[str, Any]:
        parts: list[Any] = [] if shown is None else [{"type": "image"}]
        return {
            "prompt": [
                {"role": "user", "content": [*parts, {"type": "text", "text": asked[question]}]}
            ],
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "images": [] if shown is None else [f"{shown}.png"],
        }

    first = [row(0, 0, "a"), row(0, 0, "b"), row(1, 1, "c"), row(3, 3, "kept"), row(0, 3, "kept")]
    second = [row(2, 2, "d"), row(1, None, "kept")]
    sources = []
    for name, rows in (("rlaif_v", first), ("povid", second)):
        sources.append({"path": write_jsonl(tmp_path / f"{name}.jsonl", rows), "name": name})
    report = built(tmp_path / "out", sources, curate=curate)
    written = rows_of(tmp_path / "out")
    assert [r["chosen"][0]["content"] for r in written] == [[{"type": "text", "text": "kept"}]] * 3
    sets = report["steps"][0]["account"]["sets"]
    counted = {name: account["by_source"] for name, account in sets.items()}
    rule = "same image, same prompt"
    assert counted == {
        "mm_rlhf_rewardbench": {"rlaif_v": {rule: 2}},
        "vl_rewardbench": {"rlaif_v": {rule: 1}},
        "multimodal_rewardbench": {"povid": {rule: 1}},
    }
