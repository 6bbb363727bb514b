"""What `palate doctor` says of machines, models, templates, data and recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palate import doctor
from palate.cli import app
from palate.doctor import Check, examine
from palate.doctor import machine as machine_module
from tiny_text import save_tiny

GOOD_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_the_machine_alone() -> None:
    checks = by_name(examine())
    assert checks["torch"].state == "ok"
    assert {"python", "device", "cores", "disk", "extra demo"} <= set(checks)


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [(None, "ok", "compiled"), ("no compiler", "note", "take longer: no compiler")],
)
def test_the_vocabulary_head_is_named(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, state: str, words: str
) -> None:
    from palate.kernels import cpu

    monkeypatch.setattr(cpu, "why_not", lambda: reason)
    check = by_name(examine())["vocabulary head"]
    assert check.state == state and words in check.text


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [(None, "ok", "Triton"), ("PALATE_COMPILED=0", "note", "take longer: PALATE_COMPILED=0")],
)
def test_the_vocabulary_head_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, state: str, words: str
) -> None:
    import torch

    from palate.kernels import triton

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    asked: list[torch.device] = []
    monkeypatch.setattr(triton, "why_not", lambda device: asked.append(device) or reason)
    check = machine_module._vocabulary_head()
    assert check is not None and check.state == state and words in check.text
    assert asked == [torch.device("cuda", 3)]


@pytest.mark.parametrize(
    ("flags", "state", "words"),
    [
        ({"avx2"}, "note", "without bfloat16"),
        ({"avx512_bf16"}, "ok", "AVX512_BF16"),
        ({"avx512_bf16", "amx_bf16"}, "ok", "AMX"),
        (None, "ok", "CPU"),
    ],
)
def test_bfloat16_on_this_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: set[str] | None, state: str, words: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine_module, "_cpu_flags", lambda: flags)
    check = by_name(examine())["device"]
    assert check.state == state and words in check.text


def test_a_model_folder(model: Path) -> None:
    checks = by_name(examine(str(model)))
    assert checks["model"].state == "ok" and "M parameters" in checks["model"].text
    assert checks["template"].state == "note"
    assert checks["layout"].state == "ok"


def test_an_unreadable_model_is_a_problem_in_one_line(tmp_path: Path) -> None:
    check = by_name(examine(str(tmp_path)))["model"]
    assert check.state == "problem" and "\n" not in check.text
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code == 1


@pytest.mark.parametrize(
    ("template", "state", "words"),
    [
        (GOOD_TEMPLATE, "ok", "prefixes"),
        ("{{ messages | length }}", "problem", "leaves out a turn of user"),
        (GOOD_TEMPLATE + "{{ messages | length }}", "problem", "no prefix"),
        ("{{ raise_exception('no system turn') }}", "problem", "no system turn"),
    ],
)
def test_templates(model: Path, tmp_path: Path, template: str, state: str, words: str) -> None:
    (tmp_path / "t.jinja").write_text(template)
    recipe = write(tmp_path, model, chat_template=str(tmp_path / "t.jinja"))
    check = by_name(examine(recipe))["template"]
    assert check.state == state and words in check.text


def write(folder: Path, model: Path, rows: int = 5, **model_keys: Any) -> str:
    """A DPO recipe on a few good rows; the path of its file."""
    lines = [
        json.dumps({"prompt": f"Q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"})
        for i in range(rows)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model), "dtype": "float32", **model_keys},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}]},
    }
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return str(folder / "r.yaml")


def test_a_good_recipe(model: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, model)
    checks = by_name(examine(recipe))
    assert checks["recipe"].state == "ok"
    assert checks["data"].state == "ok" and "5 rows" in checks["data"].text
    result = CliRunner().invoke(app, ["doctor", recipe, "--no-probe"])
    assert result.exit_code == 0, result.output


def test_what_would_stop_a_recipe(model: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, model)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("{not json\n")
    checks = by_name(examine(recipe))
    assert checks["data"].state == "note" and "row 6" in checks["data"].text

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    assert by_name(examine(recipe))["output_dir"].state == "problem"

    (tmp_path / "pairs.jsonl").unlink()
    assert by_name(examine(recipe))["data"].state == "problem"

    Path(recipe).write_text("beta: 0.1\n")
    problems = [check for check in examine(recipe) if check.state == "problem"]
    assert any("`loss.beta`" in check.text for check in problems)


def test_the_verb_of_a_file_is_found(tmp_path: Path) -> None:
    from palate.recipes import EvalRecipe, ScoreRecipe, ServeRecipe, SftRecipe, TuneRecipe
    from palate.recipes.judge import JudgeRecipe
    from palate.recipes.reward import RewardRecipe

    file = tmp_path / "r.yaml"
    for text, cls in (
        ("# palate sft: x\nseed: 1\n", SftRecipe),
        # As `palate judge` writes it.
        ("# The trained judge\nscorer: {type: length}\n", ServeRecipe),
        ("scorer: {type: length}\ndata: [{path: a}]\noutput_dir: b\n", ScoreRecipe),
        ("output_dir: b\nmodel: {}\njudge: {}\n", JudgeRecipe),
        ("output_dir: b\nmodel: {}\npooling: mean\n", RewardRecipe),
        ("beta: 0.1\n", TuneRecipe),
        ("runs: [a]\n", EvalRecipe),
        ("loss: {type: dpo}\n", TuneRecipe),
        ("model_name_or_path: m\n", TuneRecipe),
        ("a: [", TuneRecipe),
    ):
        file.write_text(text)
        assert doctor.class_of(file) is cls


def write_recipe(path: Path, document: dict[str, Any], verb: str) -> str:
    path.write_text(f"# palate {verb}\n" + json.dumps(document))
    return str(path)


def test_a_reward_recipe(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    document = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(model), "chat_template": "plain", "dtype": "float32"},
        "data": {"train": [{"path": str(rows)}]},
    }
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "reward")))
    assert {checks[name].state for name in ("recipe", "data", "model", "layout")} == {"ok"}
    document["data"] = {"train": [{"path": str(tmp_path / "none.jsonl")}]}
    document["model"]["path"] = str(tmp_path / "nowhere")  # type: ignore[index]
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "reward")))
    assert "no such file" in checks["data"].text
    assert checks["model"].state == "problem"


def test_recipes_that_score(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    missing = {"type": "model", "path": str(tmp_path / "nowhere")}
    out = str(tmp_path / "run")
    document: dict[str, Any] = {
        "output_dir": out,
        "scorer": {"type": "length"},
        "data": [{"path": str(rows)}],
    }
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "score")))
    assert checks["scorer"].state == checks["data"].state == "ok"
    document["scorer"] = missing
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "score")))
    assert checks["scorer"].state == "problem"
    monkeypatch.delenv("SOME_KEY", raising=False)
    server = {"type": "server", "url": "http://127.0.0.1:1/v1", "model": "m"}
    judge = {"type": "pointwise", "chat": server | {"api_key_env": "SOME_KEY"}}
    document = {
        "output_dir": out,
        "models": [{"type": "length"}, judge],
        "benchmarks": [
            {"type": "pairs", "data": [{"path": str(rows)}]},
            {"type": "rm_bench", "data": [{"path": str(tmp_path / "none.json")}]},
        ],
    }
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "eval reward")))
    assert checks["data"].state == "ok"
    assert "SOME_KEY holds no key" in checks["server"].text
    assert checks["benchmark"].state == "problem"


def test_candidates_gold_and_prior_sets_of_an_evaluation(tmp_path: Path) -> None:
    def checks(**keys: Any) -> list[Check]:
        document = {"output_dir": str(tmp_path / "run"), "models": [{"type": "length"}], **keys}
        return examine(write_recipe(tmp_path / "r.yaml", document, "eval reward"))

    rated = tmp_path / "rated.jsonl"
    answers = [{"content": "x" * n, "rating": n} for n in (1, 2, 3)]
    rated.write_text(json.dumps({"prompt": "p", "responses": answers}) + "\n")
    found = by_name(checks(best_of_n={"candidates": [{"path": str(rated)}]}))
    assert found["candidates"] == Check("candidates", "ok", f"{rated}: 3 candidates to 1 prompt")
    sample = {"prompt_id": "p", "prompt": "p", "policy": "m"}
    lines = [sample | {"index": n, "response": "x" * n} for n in (1, 2)]
    lines.append(sample | {"index": 3, "response": 5})
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    candidates = [{"path": str(samples)}]
    found = by_name(checks(best_of_n={"candidates": candidates}))
    assert found["candidates"].state == "problem" and "name a scorer" in found["candidates"].text
    gold = {"type": "model", "path": str(tmp_path / "nowhere")}
    own = checks(best_of_n={"candidates": candidates, "gold": gold})
    assert by_name(own)["candidates"].state == "note"
    assert "1 line left out; the first: row 3: no text" in by_name(own)["candidates"].text
    assert [c.state for c in own if c.name == "scorer"] == ["ok", "problem"]
    found = by_name(checks(best_of_n={"candidates": [{"path": str(tmp_path / "none.jsonl")}]}))
    assert "no such file" in found["candidates"].text
    benchmark = {"type": "rewardbench", "data": [{"path": str(rated)}]}
    prior = [{"path": str(tmp_path / "shp.jsonl")}]
    own = [c for c in checks(benchmarks=[benchmark | {"prior": prior}]) if c.name == "benchmark"]
    assert [c.state for c in own] == ["problem"] and "shp.jsonl" in own[0].text


def test_a_benchmark_is_read_as_a_run_would_read_it(tmp_path: Path) -> None:
    def check(rows: list[Any], **model: Any) -> list[Check]:
        file = tmp_path / "rm.json"
        file.write_text(json.dumps(rows))
        document = {
            "output_dir": str(tmp_path / "run"),
            "models": [model or {"type": "length"}],
            "benchmarks": [{"type": "rm_bench", "data": [{"path": str(file)}]}],
        }
        return examine(write_recipe(tmp_path / "r.yaml", document, "eval reward"))

    good = {"id": 1, "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    good["domain"] = "chat"
    found = by_name(check([good]))["benchmark"]
    assert (found.state, found.text.endswith("rm.json: 1 prompt")) == ("ok", True)
    found = by_name(check([good, good | {"id": 2, "chosen": ["a"]}]))["benchmark"]
    assert found.state == "note" and "1 row left out; the first: row 2" in found.text
    assert by_name(check([{"id": 2}]))["benchmark"].state == "problem"
    thumbs = tmp_path / "thumbs.jsonl"
    thumbs.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    members = [{"scorer": {"type": "length"}}, {"scorer": {"type": "length"}}]
    ensemble = {"type": "ensemble", "combine": "zscore", "members": members}
    own = check([good], **ensemble, validation=[{"path": str(thumbs)}])
    assert by_name(own)["data"].state == "problem"
    assert "no pair or rated row among them" in by_name(own)["data"].text


def test_the_writer_of_a_judges_texts_and_the_reward_of_samples(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    own = {"path": str(model), "dtype": "float32", "chat_template": "plain"}
    document: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "model": own,
        "judge": {"type": "pairwise", "reasoning": True},
        "data": {"train": [{"path": str(rows)}]},
    }
    server = {"type": "server", "url": "http://127.0.0.1:1/v1", "model": "m"}
    for chat, name, words in (
        (server | {"api_key_env": "SOME_KEY"}, "server", "SOME_KEY holds no key"),
        (server | {"url": "127.0.0.1"}, "server", "127.0.0.1 is no address"),
        ({"type": "local", "path": str(tmp_path / "gone")}, "model", "gone: no such folder"),
    ):
        recipe = document | {"texts": {"type": "chat", "chat": chat}}
        found = examine(write_recipe(tmp_path / "r.yaml", recipe, "judge"))
        (problem,) = [check for check in found if check.state == "problem"]
        assert problem.name == name and words in problem.text
    reward = {"type": "classifier", "path": str(tmp_path / "gone")}
    evaluation = {
        "output_dir": str(tmp_path / "run"),
        "model": own,
        "data": [{"path": str(rows)}],
        "sampling": {},
        "reward": reward,
    }
    found = examine(write_recipe(tmp_path / "r.yaml", evaluation, "eval"))
    (problem,) = [check for check in found if check.state == "problem"]
    assert problem.name == "scorer" and "no readable classifier" in problem.text


def test_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document: dict[str, Any] = {"scorer": {"type": "length"}, "port": 0}
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "serve")))
    assert checks["address"].state == checks["scorer"].state == "ok"
    validated: dict[str, Any] = {
        "type": "ensemble",
        "combine": "zscore",
        "members": [{"scorer": {"type": "length"}}] * 2,
        "validation": [{"path": str(tmp_path / "none.jsonl")}],
    }
    checks = by_name(
        examine(write_recipe(tmp_path / "r.yaml", document | {"scorer": validated}, "serve"))
    )
    assert checks["data"].state == "problem" and "no such file" in checks["data"].text
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    document |= {"token_env": "SOME_TOKEN"}
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "serve")))
    assert "SOME_TOKEN is not set" in checks["address"].text


def test_a_recipe_that_builds_data(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    document = {"output_dir": str(tmp_path / "out"), "sources": [{"path": str(rows)}]}
    checks = by_name(examine(write_recipe(tmp_path / "r.yaml", document, "data build")))
    assert checks["data"].state == "ok" and "1 rows read" in checks["data"].text
