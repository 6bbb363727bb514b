"""Recipes: what a file and overrides become, and the one line for every mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from palate.errors import RecipeError
from palate.recipes import (
    DemoRecipe,
    EvalRecipe,
    SftRecipe,
    TuneRecipe,
    load_recipe,
    resolve_yaml,
    shipped_recipes,
)
from palate.recipes.load import VERBS

GOOD = """\
output_dir: runs/a
model:
  path: some/model
data:
  train:
    - path: pairs.jsonl
"""
"""Six lines; what tests append starts at line 7."""

Errors = Callable[..., list[str]]


@pytest.fixture
def errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Errors:
    """The error lines of GOOD with `more` appended, from a file called r.yaml."""
    monkeypatch.chdir(tmp_path)

    def run(
        more: str = "", *, text: str = GOOD, overrides: Sequence[str] = (), cls: type = TuneRecipe
    ) -> list[str]:
        Path("r.yaml").write_text(text + more, encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe(cls, "r.yaml", overrides)
        return str(caught.value).splitlines()

    return run


def load(tmp_path: Path, more: str = "", *overrides: str) -> TuneRecipe:
    (tmp_path / "r.yaml").write_text(GOOD + more)
    return load_recipe(TuneRecipe, tmp_path / "r.yaml", overrides)


def test_defaults_are_plain_dpo(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.loss.type == "dpo"
    assert recipe.loss.beta == 0.1
    assert recipe.output_dir == Path("runs/a")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    recipe = load(tmp_path, "train: {learning_rate: 5e-6, max_grad_norm: .5, epochs: 2}\n")
    assert recipe.train.learning_rate == 5e-6
    assert recipe.train.max_grad_norm == 0.5
    assert recipe.train.epochs == 2.0


def test_dates_and_versions_stay_text(tmp_path: Path) -> None:
    text = GOOD.replace("some/model", "2024-01-31")
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(TuneRecipe, tmp_path / "r.yaml").model.path == "2024-01-31"


def test_overrides_win_and_make_sections(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "loss: {type: tdpo2, alpha: 0.3}\n",
        "loss.beta=0.2",
        "data.train.0.limit=5",
        "model.lora.r=4",
        "train.report_to=[tensorboard]",
        "loss.beta=0.3",
    )
    assert (recipe.loss.type, recipe.loss.beta, recipe.loss.alpha) == ("tdpo2", 0.3, 0.3)  # type: ignore[union-attr]
    assert recipe.data.train[0].limit == 5
    assert recipe.model.lora is not None and recipe.model.lora.r == 4
    assert recipe.train.report_to == ("tensorboard",)


def test_override_of_a_default_loss_keeps_its_type(tmp_path: Path) -> None:
    assert load(tmp_path, "", "loss.beta=0.2").loss.type == "dpo"
    assert load(tmp_path, "loss:\ntrain:\n").loss.type == "dpo"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("beta: 0.1\n", "r.yaml, line 7, column 1: unknown key `beta`; it belongs in `loss.beta`"),
        (
            "seed: 1\nlearning_rate: 1e-5\n",
            "r.yaml, line 8, column 1: unknown key `learning_rate`; it belongs in"
            " `train.learning_rate`",
        ),
        (
            "train:\n  learning_rat: 1e-5\n",
            "r.yaml, line 8, column 3: unknown key `train.learning_rat`; did you mean"
            " `train.learning_rate`?",
        ),
        (
            "outputdir: b\n",
            "r.yaml, line 7, column 1: unknown key `outputdir`; did you mean `output_dir`?",
        ),
        (
            "loss:\n  type: tdpo1\n  alpha: 0.5\n",
            "r.yaml, line 9, column 3: unknown key `loss.alpha`: loss tdpo1 has no alpha"
            " (fdpo and tdpo2 have)",
        ),
        (
            "loss: {type: tdpo2, gama: 1}\n",
            "r.yaml, line 7, column 21: unknown key `loss.gama`; did you mean `loss.gamma` or"
            " `token_weights.gamma`?",
        ),
        (
            "per_device_train_batch_size: 2\n",
            "r.yaml, line 7, column 1: unknown key `per_device_train_batch_size`; TRL's"
            " per_device_train_batch_size is here `train.micro_batch_size_pairs`",
        ),
        (
            "loss: {type: tdpo3}\n",
            "r.yaml, line 7, column 8: `loss.type`: unknown type 'tdpo3'; did you mean tdpo2? it is"
            " one of dpo, rdpo, ipo_mean, ipo_sum, hinge, simpo, dpo_norm, kto, orpo, cpo, fdpo,"
            " tdpo1, tdpo2, anchor, sft or mixture",
        ),
        (
            "token_weights: {alpha: 0.5}\n",
            "r.yaml, line 7, column 1: `token_weights` needs `type`: ld or d2po",
        ),
        (
            "train: {epochs: many}\n",
            "r.yaml, line 7, column 9: `train.epochs`: expected a number > 0, got 'many'",
        ),
        (
            "train: {layout: packed}\n",
            "r.yaml, line 7, column 9: `train.layout`: expected auto, plain or shared, got"
            " 'packed'",
        ),
        ("train: 3\n", "r.yaml, line 7, column 1: `train`: expected a section of keys, got 3"),
        (
            "loss:\n  type: mixture\n  losses: [{type: dpo}, {type: simpo, beta: -1}]\n",
            "r.yaml, line 9, column 39: `loss.losses.1.beta`: expected a number > 0, got -1",
        ),
        (
            "seed: .inf\n",
            "r.yaml, line 7, column 1: `seed`: expected a whole number >= 0 and"
            " <= 4294967295, got inf",
        ),
        (
            "seed: 1\nseed: 2\n",
            "r.yaml, line 8, column 1: `seed` is given twice (first: r.yaml, line 7, column 1)",
        ),
        ("3: x\n", "r.yaml, line 7, column 1: key 3 is not text"),
        ("a: &a {b: *a}\n", "r.yaml, line 7, column 11: an alias stands inside what it refers to"),
        ("<<: {}\n", "r.yaml, line 7, column 1: merge keys (<<) are not supported"),
        (
            "x: !!python/object/apply:os.system [ls]\n",
            "r.yaml, line 7, column 4: tag !!python/object/apply:os.system is not supported",
        ),
    ],
)
def test_one_line_for_a_mistake(errors: Errors, more: str, line: str) -> None:
    assert errors(more) == [line]


def test_several_mistakes_several_lines_in_file_order(errors: Errors) -> None:
    lines = errors("seed: -1\nloss: {type: dpo, beta: x, temperature: 1}\ntrain: {epochs: 0}\n")
    assert [line.split(":")[0] for line in lines] == [
        f"r.yaml, line {place}"
        for place in ("7, column 1", "8, column 19", "8, column 28", "9, column 9")
    ]


def test_a_union_of_types_gives_one_line(errors: Errors) -> None:
    assert errors("", overrides=["model.lora={target_modules: 3}"]) == [
        "--set model.lora={target_modules: 3}: `model.lora.target_modules`:"
        " expected all-linear or a list: text, got 3"
    ]


def test_missing_keys_name_their_section(errors: Errors) -> None:
    assert errors(text="output_dir: a\nmodel: {}\ndata:\n  train: []\n") == [
        "r.yaml, line 2, column 1: `model.path` is missing (text)",
        "r.yaml, line 4, column 3: `data.train`: expected a list of sections (at least 1), got []",
    ]
    assert errors(text="")[0] == "r.yaml: `output_dir` is missing (a path)"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("loss.bet=1", "--set loss.bet=1: unknown key `loss.bet`; did you mean `loss.beta`?"),
        ("loss.beta", "--set loss.beta: write it as section.key=value"),
        ("output_dir=", "--set output_dir=: `output_dir`: expected a path, got None"),
        (
            "train.epochs=[",
            "--set train.epochs=[: the value is not valid YAML: expected the node content,"
            " but found '<stream end>'",
        ),
        ("a..b=1", "--set a..b=1: write it as section.key=value"),
        (
            "data.train.3.limit=5",
            "--set data.train.3.limit=5: `data.train.3.limit` goes through a list of 1;"
            " items count from 0",
        ),
        (
            "output_dir.x=5",
            "--set output_dir.x=5: `output_dir.x` leads through 'runs/a', which has no keys",
        ),
    ],
)
def test_one_line_for_a_wrong_override(errors: Errors, override: str, line: str) -> None:
    assert errors(overrides=[override]) == [line]


def test_malformed_files_name_the_line(errors: Errors, tmp_path: Path) -> None:
    assert errors("a: [1\nb: 2\n") == [
        "r.yaml, line 8, column 2: not valid YAML: expected ',' or ']', but got ':'"
    ]
    assert errors(text="- a\n") == ["r.yaml, line 1, column 1: a recipe is a mapping of keys"]
    assert errors(text="a: \x00\n") == [
        "r.yaml, line 1, column 4: character #x0000 is not allowed in YAML"
    ]
    Path("r.yaml").write_bytes(GOOD.encode() + b"# caf\xe9\n")
    with pytest.raises(RecipeError, match=r"^r\.yaml, line 7, column 6: not UTF-8$"):
        load_recipe(TuneRecipe, "r.yaml")
    with pytest.raises(RecipeError, match=r"^no recipe file absent\.yaml$"):
        load_recipe(TuneRecipe, "absent.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(TuneRecipe, tmp_path)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("data: {train: [{path: a}], eval: [{path: b}], eval_fraction: 0.1}", "data.eval_fraction"),
        ("train: {batch_size_pairs: 6}", "train.batch_size_pairs"),
        ("train: {warmup_steps: 5, warmup_fraction: 0.1}", "train.warmup_fraction"),
        (
            "train: {micro_batch_tokens: 900, micro_batch_size_pairs: 2}",
            "train.micro_batch_tokens",
        ),
        ("train: {early_stop_patience: 2}", "train.early_stop_patience"),
        ("train: {eval_every_steps: 2}", "train.eval_every_steps"),
        ("train: {keep_checkpoints: 2}", "train.keep_checkpoints"),
        ("loss: {type: dpo, weight: 0.5}", "loss.weight"),
        ("loss: {type: rdpo, label_smoothing: 0}", "loss.label_smoothing"),
        ("loss: {type: fdpo, divergence: js, alpha: 0.5}", "loss.alpha"),
        ("loss: {type: mixture, losses: [{type: dpo}, {type: kto}]}", "loss.losses.1.type"),
        ("loss: {type: simpo}\nreference: {kind: auto}", "reference"),
        ("loss: {type: orpo}\ntrain: {extra_metrics: [kl]}", "train.extra_metrics"),
        ("loss: {type: tdpo2}\ntoken_weights: {type: ld}", "token_weights"),
        ("loss: {type: sft}\ntoken_weights: {type: ld}", "token_weights"),
        ("reference: {kind: frozen_copy, cache_dir: x}", "reference.cache_dir"),
        ("reference: {kind: adapter_off}", "reference.kind"),
        ("reference: {kind: adapter_off, path: x}", "reference.path"),
        ("data: {train: [{path: a}], pairing: {rejected: worst, pairs_per_prompt: 2}}",
         "data.pairing.pairs_per_prompt"),
    ],
)  # fmt: skip
def test_options_that_a_path_does_not_use_are_refused(errors: Errors, more: str, key: str) -> None:
    text = GOOD[: GOOD.index("data:")] if more.startswith("data:") else GOOD
    lines = errors(more, text=text)
    assert len(lines) == 1
    assert f"`{key}`: " in lines[0]
    assert lines[0].startswith("r.yaml, line ")


@pytest.mark.parametrize(
    "more",
    [
        "loss: {type: mixture, losses: [{type: dpo}, {type: sft, weight: 0.1}]}\n"
        "token_weights: {type: ld}",
        "loss: {type: mixture, losses: [{type: simpo}, {type: dpo}]}\nreference: {kind: cache}",
        "train: {batch_size_pairs: 2, micro_batch_size_pairs: 4}",
        "loss: {type: simpo}\ntrain: {extra_metrics: [entropy]}",
    ],
)
def test_combinations_that_make_sense_are_accepted(tmp_path: Path, more: str) -> None:
    load(tmp_path, more)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("output_dir: a\n", "runs"),
        ("output_dir: a\nmodel: {path: m}\n", "data"),
        ("output_dir: a\nruns: [b]\nreward: {type: lexicon}\n", "reward"),
        ("output_dir: a\nruns: [b]\npreference: false\n", "preference"),
        ("output_dir: a\nmodel: {path: m}\ndata: [{path: x}]\ncheckpoints: all\n", "checkpoints"),
    ],
)
def test_evaluation_needs_something_to_do(errors: Errors, text: str, key: str) -> None:
    assert f"`{key}`: " in errors(text=text, cls=EvalRecipe)[0]


def test_sft_has_its_own_learning_rate_and_no_loss(errors: Errors) -> None:
    Path("s.yaml").write_text(GOOD + "train: {epochs: 2}\n")
    assert load_recipe(SftRecipe, "s.yaml").train.learning_rate == 1e-5
    assert "unknown key `loss`" in errors("loss: {type: dpo}\n", cls=SftRecipe)[0]


@pytest.mark.parametrize(("cls", "verb"), list(VERBS.items()))
def test_every_shipped_recipe_loads_and_round_trips(
    cls: type[TuneRecipe], verb: str, tmp_path: Path
) -> None:
    names = shipped_recipes(verb)
    assert names or cls is DemoRecipe
    for name, description in names.items():
        recipe = load_recipe(cls, name)
        (tmp_path / "resolved.yaml").write_text(resolve_yaml(recipe))
        assert load_recipe(cls, tmp_path / "resolved.yaml") == recipe
        assert description
    assert set(names) <= set(shipped_recipes())


def test_the_paper_recipe_has_the_papers_settings() -> None:
    recipe = load_recipe(TuneRecipe, "tdpo2-hh-paper")
    assert (recipe.loss.type, recipe.loss.beta, recipe.loss.alpha) == ("tdpo2", 0.1, 0.5)  # type: ignore[union-attr]
    train = recipe.train
    assert (train.optimizer, train.learning_rate, train.scheduler) == ("rmsprop", 5e-6, "constant")
    assert (train.warmup_steps, train.batch_size_pairs, train.max_grad_norm) == (150, 64, 10.0)


def test_a_recipe_of_another_verb_and_a_misspelt_name(errors: Errors) -> None:
    with pytest.raises(RecipeError, match=r"recipe of `palate sft`, not `palate tune`"):
        load_recipe(TuneRecipe, "sft-small")
    with pytest.raises(RecipeError, match="did you mean the shipped recipe tdpo2-small"):
        load_recipe(TuneRecipe, "tdpo2-smal")


def test_a_demo_needs_no_file() -> None:
    assert load_recipe(DemoRecipe, None, ["quick=true"]).quick
