"""TRL-shaped recipes: what each key becomes, and that none is ignored."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RecipeError
from palate.recipes import EvalRecipe, RewardRecipe, SftRecipe, TuneRecipe, load_recipe
from palate.recipes.trl_table import BY_KEY, TABLE, markdown
from palate.recipes.yaml import dump_yaml

ROOT = Path(__file__).parents[2]
HEAD = "model_name_or_path: org/model\ndataset_name: org/data\n"
"""Two lines; what tests append starts at line 3."""

OLDER_NAMES = {"torch_dtype", "warmup_ratio", "max_prompt_length", "evaluation_strategy",
               "overwrite_output_dir", "logging_dir"}  # fmt: skip
"""Keys that TRL recipes in use have and the current release has not."""


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)


def load(more: str = "", cls: Any = TuneRecipe, overrides: tuple[str, ...] = ()) -> Any:
    Path("t.yaml").write_text(HEAD + more)
    return load_recipe(cls, "t.yaml", overrides)


def refused(more: str, cls: Any = TuneRecipe) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(more, cls)
    return str(caught.value).splitlines()


def test_absent_keys_get_the_defaults_of_trl() -> None:
    from trl import DPOConfig, ModelConfig

    recipe = load()
    theirs = {
        field.name: field.default
        for cls in (DPOConfig, ModelConfig)
        for field in dataclasses.fields(cls)
    }
    train, length = recipe.train, recipe.data.length
    assert train.learning_rate == theirs["learning_rate"]
    assert train.batch_size_pairs == theirs["per_device_train_batch_size"]
    assert train.eval_batch_size_pairs == theirs["per_device_eval_batch_size"]
    assert train.epochs == theirs["num_train_epochs"]
    assert train.max_grad_norm == theirs["max_grad_norm"]
    assert train.weight_decay == theirs["weight_decay"]
    assert train.warmup_steps == theirs["warmup_steps"]
    assert train.log_every_steps == theirs["logging_steps"]
    assert train.save_every_steps == theirs["save_steps"]
    assert train.scheduler == theirs["lr_scheduler_type"]
    assert recipe.seed == theirs["seed"]
    assert train.gradient_checkpointing is theirs["gradient_checkpointing"] is True
    assert train.data_workers == theirs["dataloader_num_workers"]
    assert recipe.model.dtype == theirs["dtype"]
    assert length.max_tokens == theirs["max_length"]
    assert (recipe.loss.type, recipe.loss.beta) == ("dpo", theirs["beta"])
    assert recipe.data.train[0].split == "train" and recipe.data.eval == ()

    from trl import SFTConfig

    rate = next(f.default for f in dataclasses.fields(SFTConfig) if f.name == "learning_rate")
    assert load("", SftRecipe).train.learning_rate == rate
    assert load("", SftRecipe).data.turns == "all"


def test_a_reward_model(caplog: pytest.LogCaptureFixture) -> None:
    from trl import RewardConfig

    plain = load("", RewardRecipe)
    theirs = {field.name: field.default for field in dataclasses.fields(RewardConfig)}
    assert plain.train.learning_rate == theirs["learning_rate"]
    assert plain.train.batch_size_pairs == theirs["per_device_train_batch_size"]
    assert plain.regularise.centring == 0.0 and theirs["center_rewards_coefficient"] is None
    length = plain.data.length
    assert length.max_tokens == length.max_response_tokens == theirs["max_length"]
    assert (length.prompt, length.response) == ("drop", "drop")
    assert (plain.loss.type, plain.head.layers, plain.head.init_deviation) == (
        "bradley_terry", 1, 0.02
    )  # fmt: skip
    assert "loss.margin=true" in caplog.text
    found = load(
        "center_rewards_coefficient: 0.01\nmax_length: 2048\nuse_peft: true\n"
        "lora_task_type: SEQ_CLS\nlora_modules_to_save: [score]\nlora_target_modules: all-linear\n"
        "disable_dropout: true\neval_strategy: steps\neval_steps: 5",
        RewardRecipe,
    )
    assert found.regularise.centring == 0.01 and found.data.length.max_prompt_tokens == 2048
    assert found.model.lora.r == 16 and found.train.eval_every_steps == 5
    assert "here it is SEQ_CLS" in refused(
        "use_peft: true\nlora_target_modules: all-linear\nlora_task_type: CAUSAL_LM", RewardRecipe
    )[0]  # fmt: skip


def test_a_usual_recipe() -> None:
    recipe = load(
        """\
dataset_config: default
learning_rate: 5.0e-6
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
num_train_epochs: 1
lr_scheduler_type: cosine
warmup_ratio: 0.1
max_length: 1024
max_prompt_length: 512
dtype: bfloat16
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
eval_strategy: steps
eval_steps: 50
save_strategy: epoch
logging_steps: 5
report_to: [wandb]
precompute_ref_log_probs: true
output_dir: out
bf16: true
push_to_hub: false
seed: 7
"""
    )
    train = recipe.train
    assert (train.batch_size_pairs, train.micro_batch_size_pairs) == (16, 2)
    assert (train.scheduler, train.warmup_fraction, train.warmup_steps) == ("cosine", 0.1, 0)
    assert (train.eval_every_steps, train.save_every_steps, train.log_every_steps) == (50, None, 5)
    assert train.gradient_checkpointing and train.report_to == ("wandb",)
    assert recipe.model.lora.model_dump() == {
        "r": 32, "alpha": 16.0, "dropout": 0.0, "target_modules": ("q_proj", "v_proj"),
    }  # fmt: skip
    assert recipe.model.dtype == "bfloat16" and recipe.reference.kind == "cache"
    source = recipe.data.eval[0]
    assert (source.path, source.subset, source.split) == ("org/data", "default", "test")
    length = recipe.data.length
    assert (length.max_tokens, length.max_prompt_tokens, length.prompt) == (1024, 512, "keep_end")
    assert recipe.output_dir == Path("out") and recipe.seed == 7


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("loss_type: sigmoid", {"type": "dpo", "beta": 0.1, "label_smoothing": 0.0}),
        ("loss_type: [ipo]\nbeta: 0.2", {"type": "ipo_mean", "beta": 0.2}),
        ("loss_type: hinge", {"type": "hinge", "beta": 0.1}),
        ("loss_type: sigmoid_norm", {"type": "dpo_norm", "beta": 0.1, "label_smoothing": 0.0}),
        (
            "loss_type: robust\nlabel_smoothing: 0.2",
            {"type": "rdpo", "beta": 0.1, "label_smoothing": 0.2},
        ),
        (
            "f_divergence_type: js_divergence",
            {"type": "fdpo", "beta": 0.1, "divergence": "js", "alpha": None},
        ),
        (
            "f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 0.25",
            {"type": "fdpo", "beta": 0.1, "divergence": "alpha", "alpha": 0.75},
        ),
        (
            "loss_type: simpo\nbeta: 2\nsimpo_gamma: 1.2\ncpo_alpha: 0",
            {"type": "simpo", "beta": 2.0, "gamma": 1.2},
        ),
        (
            "loss_type: sigmoid\ncpo_alpha: 0.5",
            {"type": "cpo", "beta": 0.1, "label_smoothing": 0.0, "nll_weight": 0.5},
        ),
        (
            "loss_type: kto\nundesirable_weight: 2",
            {"type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 2.0},
        ),
    ],
)
def test_losses(more: str, expected: dict[str, Any]) -> None:
    assert load(more).loss.model_dump(exclude={"weight"}) == expected


def test_lists_of_losses_become_mixtures() -> None:
    loss = load("loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.2]\nld_alpha: 0.5").loss
    assert [(part.type, part.weight) for part in loss.losses] == [("dpo", 1.0), ("sft", 0.2)]
    loss = load("loss_type: simpo\ncpo_alpha: 0.3").loss
    assert [(part.type, part.weight) for part in loss.losses] == [("simpo", 1.0), ("sft", 0.3)]


def test_differences_from_trl_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert load("label_smoothing: 0.1\nbf16: true").loss.label_smoothing == 0.1
    assert caplog.messages == [
        f"t.yaml, line 4, column 1: {BF16}",
        "t.yaml, line 3, column 1: label_smoothing makes this cDPO; TRL ignores it with sigmoid",
    ]


def test_batch_grows_with_processes_as_in_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load("per_device_train_batch_size: 4").train.batch_size_pairs == 8


def test_values_are_checked_at_their_own_line() -> None:
    assert refused("seed: 1\nbeta: x\n") == [
        "t.yaml, line 4, column 1: `loss.beta`: expected a number > 0, got 'x'"
    ]
    assert refused("loss_type: [sigmoid, sft]\nbeta: -1\n") == [
        "t.yaml, line 4, column 1: `loss.losses.0.beta`: expected a number > 0, got -1"
    ]


def test_native_overrides_apply_after_the_mapping() -> None:
    assert load("beta: 0.2", overrides=("loss.beta=0.3",)).loss.beta == 0.3


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("bet: 0.1", "unknown TRL key; did you mean `beta`?"),
        ("train: {}", "is a native section"),
        ("loss_type: exo_pair", "'exo_pair' is not offered"),
        ("load_in_4bit: true", "quantised training is not offered"),
        ("lora_r: 8", "only with `use_peft: true`"),
        ("use_peft: true", "required with use_peft"),
        ("max_length: null", "a limit is needed"),
        ("dtype: auto", "name the dtype"),
        ("save_strategy: epoch", "epoch is accepted with `num_train_epochs: 1`"),
        ("eval_steps: 10", "has no use without an eval_strategy"),
        ("loss_type: ipo\nlabel_smoothing: 0.1", "has no use with ipo_mean"),
        ("simpo_gamma: 0.5", "has no use with dpo"),
        ("f_divergence_type: forward_kl\nloss_type: kto", "has no use with kto"),
        ("lr_scheduler_type: constant\nwarmup_steps: 5", "TRL's constant has no warm-up"),
        ("deepspeed: z.json", "launch with FSDP 2"),
        ("adam_beta1: 0.8", "betas are 0.9 and 0.999"),
        ("loss_weights: [x]", "expected numbers"),
        ("sync_ref_model: true", "the reference stays fixed"),
        ("datasets: [{path: x}]", "give dataset_name or datasets"),
        ("packing: true", "belongs to `palate sft`"),
        ("per_device_train_batch_size: two", "expected a number, got 'two'"),
        ("max_length: '1024'", "expected a whole number, got '1024'"),
        ("bf16: 1", "expected true or false, got 1"),
        ("precompute_ref_log_probs: maybe", "expected true or false, got 'maybe'"),
        ("push_to_hub: yes", "upload `<output_dir>/model`"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(more: str, expected: str) -> None:
    lines = refused(more)
    assert len(lines) == 1
    assert expected in lines[0]
    assert lines[0].startswith("t.yaml")


@pytest.mark.parametrize("case", [str, str.title, str.upper])
def test_true_and_false_are_those_of_yaml_1_1(case: Any, caplog: pytest.LogCaptureFixture) -> None:
    no, off, on = (case(word) for word in ("no", "off", "on"))
    recipe = load(f"bf16: {off}\nuse_peft: {no}\npush_to_hub: {no}\ngradient_checkpointing: {off}")
    assert (recipe.model.lora, recipe.train.gradient_checkpointing) == (None, False)
    assert not caplog.messages
    assert load(f"precompute_ref_log_probs: {no}").reference is None
    assert load(f"precompute_ref_log_probs: {on}").reference.kind == "cache"


def test_every_refused_key_gets_its_own_line() -> None:
    more = "".join(f"{row.key}: 1\n" for row in TABLE if row.kind == "refused")
    assert len(refused(more)) == more.count("\n")


@pytest.mark.parametrize("row", [row for row in TABLE if row.kind == "fixed"], ids=lambda r: r.key)
def test_fixed_keys_accept_their_values_alone(row: Any) -> None:

    cls = {"sft": SftRecipe, "reward": RewardRecipe}.get(row.verb, TuneRecipe)
    for value in row.accepted:
        load(dump_yaml({row.key: value}), cls)
    assert row.becomes in refused(f"{row.key}: other", cls)[0]


def test_verbs() -> None:
    assert "belongs to `palate tune`" in refused("beta: 0.1", SftRecipe)[0]
    assert "belongs to `palate tune` and `palate sft`" in refused("loss_type: nll", RewardRecipe)[0]
    assert "for tune, sft and reward, not eval" in refused("", EvalRecipe)[0]
    assert load("completion_only_loss: true\npacking: false", SftRecipe).seed == 42


BF16 = (
    "TRL computes in bf16 over float32 weights; here in float32: set `dtype: bfloat16` for bf16, or"
    " `bf16: false`"
)
NO_DROPOUT = "TRL's SFT leaves the model's own dropout on; here it is off"
EVERY_TOKEN = (
    "of `messages` TRL trains on every token, users' and the template's too; here on every answer,"
    " as with `assistant_only_loss: true`"
)
IN_PLACE = (
    "TRL rounds every update to bfloat16; here updates add up in a float32 copy of the weights:"
    " `--set train.optimizer_precision=model` for TRL's"
)


@pytest.mark.parametrize(
    ("more", "cls", "notes"),
    [
        ("", TuneRecipe, [f"t.yaml: TRL's default of bf16: {BF16}"]),
        ("bf16: false", TuneRecipe, []),
        ("dtype: bfloat16", TuneRecipe, [f"t.yaml, line 3, column 1: {IN_PLACE}"]),
        (
            "dtype: bfloat16\nuse_peft: true\nlora_target_modules: all-linear\nlora_dropout: 0.1",
            TuneRecipe,
            ["t.yaml, line 6, column 1: TRL switches it off with all dropout (disable_dropout): 0"],
        ),
        (
            "bf16: false",
            SftRecipe,
            [
                f"t.yaml: TRL's default of assistant_only_loss: {EVERY_TOKEN}",
                f"t.yaml, line 1, column 1: {NO_DROPOUT}",
            ],
        ),
        (
            "bf16: false\nassistant_only_loss: true",
            SftRecipe,
            [f"t.yaml, line 1, column 1: {NO_DROPOUT}"],
        ),
        (
            "bf16: false\nloss_type: kto",
            TuneRecipe,
            [
                "t.yaml, line 4, column 1: TRL takes KTO's rows in the order of the file, and its"
                " KL from the next row's answer; here rows are shuffled, and the answer is drawn"
                " from all rows"
            ],
        ),
    ],
)
def test_a_default_that_differs_is_noted(
    more: str, cls: Any, notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load(more, cls)
    assert caplog.messages == notes


@pytest.mark.parametrize("verb", ["tune", "sft", "reward", "kto"])
def test_a_default_of_trl_written_out_changes_nothing(
    verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever TRL's trainer has without a key is what the recipe becomes without it."""
    import trl

    cls = {"sft": SftRecipe, "reward": RewardRecipe}.get(verb, TuneRecipe)
    config: Any = {
        "tune": trl.DPOConfig, "sft": trl.SFTConfig, "reward": trl.RewardConfig,
        "kto": trl.KTOConfig,
    }[verb]  # fmt: skip
    defaults = {
        field.name: field.default
        for cls_ in (config, trl.ModelConfig)
        for field in dataclasses.fields(cls_)
        if field.default is not dataclasses.MISSING
    } | {"output_dir": "trainer_output", "bf16": True}  # what their None stands for
    base = f"loss_type: {verb}\n" if verb == "kto" else ""
    peft = "use_peft: true\nlora_target_modules: all-linear\n"
    checked = set()
    skipped = ("loss_type", "use_peft", "lora_task_type", "model_revision")
    for key, value in defaults.items():
        row = BY_KEY.get(key)
        if row is None or row.kind == "refused" or value is None or key in skipped:
            continue
        if not row.belongs_to("tune" if verb == "kto" else verb):
            continue
        text = base + (peft if key.startswith("lora_") else "")
        caplog.clear()
        before = load(text, cls)
        notes = [message.rpartition(": ")[2] for message in caplog.messages]
        value = getattr(value, "value", value)
        caplog.clear()
        try:
            after = load(text + dump_yaml({key: value}), cls)
        except RecipeError as error:
            assert re.search("has no use (here|with|without)|only with", str(error)), error
            continue
        checked.add(key)
        assert after == before, key
        if key != "lora_dropout":
            assert [m.rpartition(": ")[2] for m in caplog.messages] == notes, key
    assert {"learning_rate", "bf16", "gradient_checkpointing", "seed", "lora_dropout"} <= checked
    assert len(checked) > 30


def test_trl_switches_the_dropout_of_adapters_off_too() -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import disable_dropout_in_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(2, 2)

    model = get_peft_model(Net(), LoraConfig(lora_dropout=0.05, target_modules=["up"]))
    disable_dropout_in_model(model)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0}


def test_every_key_of_the_dpo_config_itself_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from transformers import TrainingArguments
    from trl import DPOConfig, KTOConfig, ModelConfig, RewardConfig, ScriptArguments, SFTConfig
    from trl.experimental.cpo import CPOConfig

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {
        field.name
        for cls in (DPOConfig, SFTConfig, RewardConfig, ModelConfig)
        for field in dataclasses.fields(cls)
        if field.name not in inherited
    }
    assert own <= set(BY_KEY)
    known = inherited | OLDER_NAMES | {"datasets", "streaming", "test_split_size"}
    configs = (DPOConfig, SFTConfig, RewardConfig, KTOConfig, CPOConfig, ModelConfig)
    for cls in (*configs, ScriptArguments):
        known |= {field.name for field in dataclasses.fields(cls)}
    assert set(BY_KEY) <= known


def test_the_documented_table_is_the_table() -> None:
    page = (ROOT / "docs" / "trl-recipes.md").read_text(encoding="utf-8")
    assert markdown() in page, "paste the output of palate.recipes.trl_table.markdown() into it"
