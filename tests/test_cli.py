"""The command line: exit status, streams, help, and which function gets which recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import palate
from palate.cli import app
from palate.errors import ModelError
from palate.recipes import TuneRecipe, load_recipe

GOOD = "output_dir: runs/a\nmodel: {path: m}\ndata:\n  train: [{path: pairs.jsonl}]\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("r.yaml").write_text(GOOD)


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


class Recorder:
    """Stands where a verb's function is; remembers its arguments, or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(path=Path("runs/a"))


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(module: str, name: str, error: BaseException | None = None) -> Recorder:
        recorder = Recorder(error)
        fake = SimpleNamespace(**{name: recorder})
        monkeypatch.setitem(sys.modules, module, fake)  # type: ignore[arg-type]
        return recorder

    return put


def test_version() -> None:
    assert invoke("--version").output == f"palate {palate.__version__}\n"


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        (
            "tune",
            ["loss.alpha", "token_weights.gamma", "tdpo2-small", "train.epochs  a number > 0"],
        ),
        ("sft", ["train.learning_rate", "sft-small"]),
        ("reward", ["head.layers", "regularise.centring", "reward-small"]),
        ("eval", ["sampling.prompts", "eval-frontier"]),
        ("demo", ["--quick", "quick  true or false"]),
        ("report", ["--out", "RUN..."]),
        ("doctor", ["RECIPE | MODEL"]),
    ],
)
def test_help_is_generated_from_the_recipe(verb: str, keys: list[str]) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    for key in keys:
        assert key in result.output


def test_help_says_every_loss_type_and_default() -> None:
    text = invoke("tune", "--help").output
    assert "loss.type: tdpo2" in text
    assert "loss.beta  a number > 0  [2.0]" in text  # SimPO's own


def test_print_recipe_reads_back_equal() -> None:
    result = invoke("tune", "r.yaml", "--set", "loss.beta=0.2", "--print-recipe")
    assert result.exit_code == 0
    Path("resolved.yaml").write_text(result.stdout)
    assert load_recipe(TuneRecipe, "resolved.yaml") == load_recipe(
        TuneRecipe, "r.yaml", ["loss.beta=0.2"]
    )


def test_each_verb_calls_its_function(replace: Any) -> None:
    tune = replace("palate.train", "tune")
    assert invoke("tune", "r.yaml", "--set", "seed=3").output == f"{Path('runs/a')}\n"
    assert tune.calls[0][0].seed == 3
    sft = replace("palate.train", "sft")
    assert invoke("sft", "r.yaml").exit_code == 0
    assert sft.calls[0][0].train.learning_rate == 1e-5
    reward = replace("palate.train", "reward")
    assert invoke("reward", "r.yaml", "--set", "head.layers=2").exit_code == 0
    assert reward.calls[0][0].head.has_bias
    demo = replace("palate.demo", "demo")
    assert invoke("demo", "--quick", "--seed", "4", "--output-dir", "d").exit_code == 0
    assert (demo.calls[0][0].quick, demo.calls[0][0].seed) == (True, 4)
    assert demo.calls[0][0].output_dir == Path("d")
    report = replace("palate.report", "write_report")
    assert invoke("report", "a", "b", "-o", "x.html").exit_code == 0
    assert report.calls == [([Path("a"), Path("b")], Path("x.html"), None)]


def test_eval_takes_run_folders(replace: Any) -> None:
    for name in ("a", "b c"):
        (Path("runs") / name).mkdir(parents=True)
    evaluate = replace("palate.evaluate", "evaluate")
    result = invoke("eval", "runs/a", "runs/b c", "--set", "sampling.prompts=8")
    assert result.exit_code == 0, result.output
    recipe = evaluate.calls[0][0]
    assert recipe.runs == (Path("runs/a"), Path("runs/b c"))
    assert recipe.output_dir == Path("runs/evaluation")
    assert recipe.sampling.prompts == 8
    assert "nope is no run folder" in invoke("eval", "runs/a", "nope").stderr


def test_a_mistake_is_one_line_on_stderr_and_status_2(replace: Any) -> None:
    result = invoke("tune", "r.yaml", "--set", "loss.bet=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "palate: --set loss.bet=1: unknown key `loss.bet`; did you mean `loss.beta`?\n"
    )
    replace("palate.train", "tune", ModelError("m: no readable model"))
    result = invoke("tune", "r.yaml")
    assert (result.exit_code, result.stderr) == (2, "palate: m: no readable model\n")


def test_a_bug_keeps_its_traceback(replace: Any) -> None:
    replace("palate.train", "tune", ZeroDivisionError("bug"))
    assert isinstance(invoke("tune", "r.yaml").exception, ZeroDivisionError)


def test_an_interruption_says_how_to_go_on(replace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace("palate.train", "tune", KeyboardInterrupt())
    monkeypatch.setattr(sys, "argv", ["palate", "tune", "r.yaml"])
    result = invoke("tune", "r.yaml")
    assert result.exit_code == 130
    assert result.stderr == (
        "palate: interrupted; to go on: palate tune r.yaml --set resume=true\n"
    )


def test_notes_of_trl_recipes_go_to_stderr() -> None:
    Path("t.yaml").write_text(
        "model_name_or_path: m\ndataset_name: d\nlabel_smoothing: 0.1\nbf16: false\n"
    )
    result = invoke("tune", "t.yaml", "--print-recipe")
    assert result.stderr.startswith(
        "palate: t.yaml, line 3, column 1: label_smoothing makes this cDPO"
    )
    assert result.stdout.startswith("# palate tune\n")


def test_the_list_of_commands_needs_no_tables_and_no_torch() -> None:
    code = (
        "import sys\n"
        "from palate.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'pydantic', 'rich.console', 'markdown_it'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "Preference tuning" in done.stdout and "eval reward" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_traceback() -> None:
    command = [sys.executable, "-m", "palate.cli", "tune", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["demo", "--seed", "1_0"], "--set seed=1_0: `seed`: expected a whole number >= 0 and"),
        (["demo", "--seed", "\u0663"], "--set seed=\u0663: `seed`: expected a whole number"),
        (["data", "inspect", "p.jsonl", "--limit", "1_0"], "data inspect: `limit`: expected"),
        (["data", "inspect", "p.jsonl", "--limit", "0"], "data inspect: `limit`: expected"),
        (["data", "inspect", "p.jsonl", "--format", ""], "data inspect: `format`: expected"),
        (["tune", "x" * 300], "no recipe file xxx"),
        (["tune", "r.yaml", "--set", "output_dir=" + "x" * 300], "xxx"),
        (["data", "inspect", "x" * 300], "xxx"),
        (["tune", "r.yaml", "--set", 'model.path="a\\nb"'], "a b: no such folder"),
        (["tune", "r.yaml", "--set", "output_dir=''"], "--set output_dir='': `output_dir`"),
    ],
)  # fmt: skip
def test_odd_names_and_numbers_are_one_line(args: list[str], line: str) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    result = invoke(*args)
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith(f"palate: {line}")
    assert len(result.stderr.splitlines()) == 1
