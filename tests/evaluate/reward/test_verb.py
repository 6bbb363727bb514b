"""`palate eval reward` from a recipe to a folder and a page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palate.cli import app
from palate.data.containers import hub
from palate.errors import DataError, ModelError, PalateError, RecipeError, RunError
from palate.evaluate.reward import evaluate_rewards
from palate.evaluate.reward import run as run_module
from palate.evaluate.reward.check import check_scorers
from palate.evaluate.reward.rewardbench import WEIGHTS
from palate.models.loading import NO_HUB
from palate.models.reward_config import RewardSpec, Scale, document
from palate.recipes import load_recipe
from palate.recipes.reward_eval import RewardEvalRecipe
from palate.recipes.schema import ModelRecipe
from palate.recipes.scorers import HeadsScorer, LengthScorer, ModelScorer
from palate.report import write_report
from palate.report.reward_views import OPEN_SOURCES
from palate.rewards.length import Length
from palate.store.folders import lock_folder

RECIPE = """\
# palate eval reward
output_dir: out
models:
  - {type: length, name: long}
  - {type: length, prefer: shorter, name: short}
  - type: ensemble
    name: both
    members:
      - scorer: {type: length}
      - scorer: {type: length, prefer: shorter}
        modality: text
benchmarks:
  - type: pairs
    data: [{path: pairs.jsonl}]
  - type: rm_bench
    name: styles
    data: [{path: chat_filtered.json}]
robustness: {items: 3, changes: [upper_case]}
best_of_n:
  candidates: [{path: rated.jsonl}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"prompt": f"Question {n}", "chosen": "a" * (n + 2), "rejected": "b" * 4} for n in range(6)
    ]
    rated = [
        {"prompt": p, "responses": [{"content": "x" * n, "rating": 9 - n} for n in range(1, 6)]}
        for p in ("one", "two", "three")
    ]
    for name, rows in (("pairs", pairs), ("rated", rated)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"id": 1, "prompt": "p", "chosen": ["a", "aa", "aaa"], "rejected": ["b", "bb", "bbb"]}
    Path("chat_filtered.json").write_text(json.dumps([row]))
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


def test_a_recipe_becomes_a_folder_and_a_page(folder):
    found = evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml")).evaluation
    assert found == json.loads(Path("out/evaluation.json").read_text())
    assert found["kind"] == "reward-evaluation"
    pairs, styles = found["benchmarks"]
    assert pairs["name"] == "pairs" and pairs["pairs"] == 6
    # Lengths 2 .. 7 against 4: three longer, one equal.
    assert pairs["results"]["long"]["official"]["value"] == 0.5
    assert pairs["results"]["long"]["accuracy"]["all"]["ties"] == 1
    assert pairs["results"]["short"]["official"]["value"] == pytest.approx(1 / 3)
    assert pairs["results"]["both"]["accuracy"]["all"]["ties"] == 6
    assert pairs["baselines"]["longer"]["value"] == 0.5
    assert [a["verdicts"] for a in pairs["agreement"]] == [0.0, None, None]
    assert styles["results"]["long"]["official"]["detail"]["domains"]["chat"]["easy"] == 1.0
    robust = pairs["results"]["long"]["robustness"]
    assert [(r["change"], r["rejected_only"]) for r in robust] == [
        ("upper_case", False),
        ("appended", True),
    ]
    assert robust[0]["flips"] == 0.0
    choices = found["best_of_n"]["models"]
    assert choices["short"]["points"][-1]["gold"] == 8.0  # the shortest is rated best
    assert choices["long"]["points"][-1]["gold"] == 4.0 and choices["long"]["over_optimised"]
    both = next(model for model in found["models"] if model["name"] == "both")
    assert [spread["name"] for spread in both["members"]["raw"]] == ["long", "short"]
    rows = [json.loads(line) for line in Path("out/scores.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and rows[0]["scores"]["long"] == [2.0, 4.0]
    # Candidates stand under no benchmark, their gold scores beside them.
    assert [row["benchmark"] for row in rows[7:]] == [None] * 3
    assert rows[7]["gold"] == [8.0, 7.0, 6.0, 5.0, 4.0]
    assert rows[7]["scores"]["short"] == [-1.0, -2.0, -3.0, -4.0, -5.0]
    lineage = json.loads(Path("out/lineage.json").read_text())
    assert lineage["verb"] == "eval reward" and len(lineage["models"]) == 3
    data = json.loads(Path("out/data.json").read_text())
    assert [source["kept"] for source in data["sources"]] == [6, 1, 3]
    page = Path("out/report.html").read_text()
    for text in ("Reward models", "styles", "Best of n under the data", "Over-optimisation"):
        assert text in page
    # Differences in length of a few characters are drawn to scale.
    figure = page[page.index("Line chart: accuracy by difference in length") :]
    assert "+2" in re.findall(r">([+-]?\d+)</text>", figure[: figure.index("</svg>")])
    # It falls from n = 1 on: it never was of use.
    assert "choosing by long is worse than choosing blindly" in page.lower()


def test_a_member_that_is_not_asked_lacks_no_score(folder):
    text = "{scorer: {type: length}, modality: text}"
    image = "{scorer: {type: length, prefer: shorter}, modality: image}"
    recipe = load_recipe(
        RewardEvalRecipe,
        "r.yaml",
        [f"models=[{{type: ensemble, name: routed, members: [{text}, {image}]}}]"],
    )
    found = evaluate_rewards(recipe).evaluation
    spreads = found["models"][0]["members"]["raw"]
    assert [(s["n"] > 0, s["unscored"]) for s in spreads] == [(True, 0), (False, 0)]
    assert spreads[0]["share"] == pytest.approx(1.0)
    scores = found["benchmarks"][0]["results"]["routed"]["accuracy"]["all"]
    assert (scores["unscored"], scores["accuracy"]) == (0, 0.5)


def test_members_of_one_name_are_numbered(folder):
    twice = "{scorer: {type: length}}, {scorer: {type: length}}"
    keys = [f"models=[{{type: ensemble, members: [{twice}]}}]"]
    found = evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml", keys)).evaluation
    names = [spread["name"] for spread in found["models"][0]["members"]["raw"]]
    assert names == ["longer wins", "longer wins (2)"]


def test_what_was_counted_is_the_same_after_a_resumed_run(folder, monkeypatch):
    scored = Length.score

    def counted(self, groups):
        self.counts["asked"] += sum(len(group.responses) for group in groups)
        return scored(self, groups)

    monkeypatch.setattr(Length, "score", counted)
    rows = [{"prompt": "v", "chosen": "a" * n, "rejected": "b"} for n in (2, 3)]
    Path("validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    members = "{scorer: {type: length}}, {scorer: {type: length, prefer: shorter}}"
    both = f"combine: zscore, members: [{members}], validation: [{{path: validation.jsonl}}]"
    keys = [f"models=[{{type: length}}, {{type: ensemble, {both}}}]"]
    recipe = load_recipe(RewardEvalRecipe, "r.yaml", keys)
    first = evaluate_rewards(recipe).evaluation
    again = evaluate_rewards(recipe.model_copy(update={"resume": True})).evaluation
    assert first["models"][0]["account"]["asked"] > 0 and again == first


def test_heads_without_a_scale_have_no_zscores(folder):
    scales = tuple(Scale(mean=0.0, deviation=d, n=2) for d in (1.0, 0.0))
    spec = RewardSpec(model=ModelRecipe(path="x"), end_tokens={2: "<eos>"}, heads=2, scales=scales)
    Path("flat").mkdir()
    Path("flat/reward_config.json").write_text(json.dumps(document(spec, "backbone")))
    with pytest.raises(ModelError, match="flat: head 1 gave equal rewards to all"):
        check_scorers([HeadsScorer(path="flat", combine="zscore")])


def test_resume_keeps_scores_and_refuses_another_recipe(folder):
    recipe = load_recipe(RewardEvalRecipe, "r.yaml")
    first = evaluate_rewards(recipe).evaluation
    with pytest.raises(RunError, match="holds a run already"):
        evaluate_rewards(recipe)
    stored = {file: file.read_bytes() for file in Path("out/parts").iterdir()}
    again = evaluate_rewards(recipe.model_copy(update={"resume": True})).evaluation
    assert again == first
    assert {file: file.read_bytes() for file in Path("out/parts").iterdir()} == stored
    with pytest.raises(RunError, match="another recipe"):
        evaluate_rewards(recipe.model_copy(update={"resume": True, "seed": 1}))


def test_a_model_whose_results_are_there_is_not_evaluated_again(folder, monkeypatch):
    recipe = load_recipe(RewardEvalRecipe, "r.yaml")
    whole = run_module._EvaluationContext._evaluated
    evaluated = []

    def stopping(self, scorer, gold):
        evaluated.append(scorer.name)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return whole(self, scorer, gold)

    with monkeypatch.context() as patch:
        patch.setattr(run_module._EvaluationContext, "_evaluated", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate_rewards(recipe)
        again = recipe.model_copy(update={"resume": True})
        resumed = evaluate_rewards(again).evaluation
        assert evaluated == ["long", "short", "short", "both"]
        assert evaluate_rewards(again).evaluation == resumed
        assert len(evaluated) == 4
    shutil.rmtree("out")
    assert evaluate_rewards(recipe).evaluation == resumed


def test_a_folder_is_one_process_at_a_time(folder):
    recipe = load_recipe(RewardEvalRecipe, "r.yaml")
    with (
        lock_folder(Path("out")),
        pytest.raises(RunError, match="out: another process writes to it"),
    ):
        evaluate_rewards(recipe)
    assert not any(Path("out").iterdir())
    # What it had claimed it lets go of, however it ended.
    Path("pairs.jsonl").rename("away.jsonl")
    with pytest.raises(DataError):
        evaluate_rewards(recipe)
    Path("away.jsonl").rename("pairs.jsonl")
    evaluate_rewards(recipe)
    Path("file").write_text("")
    with pytest.raises(RunError, match="file: is a file; choose another output_dir"):
        evaluate_rewards(recipe.model_copy(update={"output_dir": Path("file")}))


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("{type: model, path: ./nowhere}", r"\./nowhere: no such folder"),
        ("{type: model, path: runs/x/model}", "runs/x/model: no such folder"),
        ("{type: model, path: nobody/nothing}", f"nobody/nothing: {NO_HUB}"),
        ("{type: model, path: run}", "run: a run's folder; its model is run/model"),
        ("{type: heads, path: ./nowhere}", r"nowhere: no reward model of palate's"),
        ("{type: classifier, path: empty}", "empty: holds no model: there is no config.json"),
        ("{type: pairwise, chat: {type: local, path: ./nowhere}}", "nowhere: no such folder"),
        (
            "{type: pairwise, chat: {type: local, path: full, chat_template: none.jinja}}",
            r"no file none\.jinja",
        ),
        (
            "{type: pointwise, chat: {type: server, url: 'http://h/v1', model: m, "
            "api_key_env: NO_SUCH_KEY}}",
            "NO_SUCH_KEY holds no key",
        ),
        ("{type: pointwise, chat: {type: server, url: h, model: m}}", r"`chat\.url`: h is no"),
        (
            "{type: critic, chat: {type: server, url: 'http://h/v1', model: m}, "
            "scorer: {path: ./nowhere}}",
            "nowhere: no such folder",
        ),
        (
            "{type: ensemble, members: [{scorer: {type: length}}, "
            "{scorer: {type: classifier, path: ./nowhere}}]}",
            "nowhere: no such folder",
        ),
        (
            "{type: ensemble, combine: zscore, members: [{scorer: {type: length}}, "
            "{scorer: {type: length, prefer: shorter}}], validation: [{path: none.jsonl}]}",
            r"none\.jsonl: no such file",
        ),
    ],
)
def test_a_model_that_is_missing_is_found_out_before_another_one_scores(
    folder, monkeypatch, scorer, words
):
    monkeypatch.setattr(hub, "unreachable", lambda: True)
    for name in ("run/model/reward_config.json", "full/config.json", "empty/other.json"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("{}")
    models = f"models=[{{type: length}}, {{type: length, prefer: shorter}}, {scorer}]"
    with pytest.raises(PalateError, match=words) as found:
        evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml", [models]))
    assert len(str(found.value).splitlines()) == 1 and not Path("out").exists()


def test_a_gold_scorer_and_the_base_of_an_adapter_are_looked_for_as_well(folder):
    gold = "best_of_n={candidates: [{path: rated.jsonl}], gold: {type: model, path: ./nowhere}}"
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml", [gold]))
    spec = RewardSpec(model=ModelRecipe(path="./gone"), end_tokens={2: "<eos>"})
    Path("adapter").mkdir()
    Path("adapter/reward_config.json").write_text(json.dumps(document(spec, "adapter")))
    with pytest.raises(ModelError, match="gone: no such folder"):
        check_scorers([ModelScorer(path="adapter")])
    Path("adapter/reward_config.json").write_text(json.dumps(document(spec, "backbone")))
    check_scorers([ModelScorer(path="adapter"), LengthScorer()])


def test_the_command_and_its_neighbour(folder):
    result = CliRunner().invoke(app, ["eval", "reward", "r.yaml"])
    assert result.exit_code == 0 and result.stdout.strip() == "out"
    printed = CliRunner().invoke(app, ["eval", "reward", "r.yaml", "--print-recipe"])
    Path("resolved.yaml").write_text(printed.stdout)
    assert printed.stdout.startswith("# palate eval reward\n")
    assert load_recipe(RewardEvalRecipe, "resolved.yaml") == load_recipe(RewardEvalRecipe, "r.yaml")
    # The other verb knows its own recipes from these.
    other = CliRunner().invoke(app, ["eval", "r.yaml"])
    assert other.exit_code == 2
    assert "r.yaml is a recipe of `palate eval reward`, not `palate eval`" in other.stderr
    text = re.sub(r"\s+", " ", CliRunner().invoke(app, ["eval", "reward", "--help"]).output)
    for key in (
        "mm_rlhf_rewardbench, multimodal_rewardbench or pairs",
        "models[].chat",
        "best_of_n.largest",
    ):
        assert key in text, key


def test_a_run_folder_called_reward_is_a_run_folder(folder):
    (folder / "reward").mkdir()
    result = CliRunner().invoke(app, ["eval", "reward"])
    assert result.exit_code == 2 and "not a run folder" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models=[]", "at least 1"),
        ("benchmarks=[{type: rm_bench, data: [{path: x, format: trl_preference}]}]", "its own"),
        ("models=[{type: length, name: a}, {type: lexicon, name: a}]", "two are named a"),
        ("models=[{type: pairwise, chat: {type: local, path: m}, votes: 3}]", "votes"),
        ("models=[{type: nonsense}]", "nonsense"),
        (
            "benchmarks=[{type: rewardbench, data: [{path: x}], "
            "prior: [{path: y, format: trl_preference}]}]",
            "prior.0.format",
        ),
    ],
)
def test_mistakes_are_one_line(folder, override, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(RewardEvalRecipe, "r.yaml", [override])


def test_gold_must_come_from_somewhere(folder):
    rows = [
        {"prompt_id": "p", "index": i, "prompt": "p", "policy": "m", "response": "x" * i}
        for i in range(1, 3)
    ]
    Path("samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        RewardEvalRecipe, "r.yaml", ["best_of_n.candidates=[{path: samples.jsonl}]"]
    )
    with pytest.raises(RecipeError, match="no rating of their own: name a scorer"):
        evaluate_rewards(recipe)
    gold = recipe.model_copy(update={"output_dir": Path("gold")})
    named = load_recipe(
        RewardEvalRecipe,
        "r.yaml",
        [
            "best_of_n={candidates: [{path: samples.jsonl}], gold: {type: length}}",
            "output_dir=gold",
        ],
    )
    assert gold.output_dir == named.output_dir
    found = evaluate_rewards(named).evaluation["best_of_n"]
    assert found["gold"] == "longer wins"
    assert found["models"]["long"]["points"][-1]["gold"] == 2.0
    scorers = json.loads(Path("gold/lineage.json").read_text())["models"]
    assert (scorers[0]["name"], scorers[0].get("role")) == ("longer wins", "gold")


def test_what_best_of_n_does_without_is_said(folder):
    rows = [
        {"prompt_id": p, "index": i, "prompt": p, "policy": "m", "response": "x" * i, "reward": i}
        for p, n in (("p", 8), ("q", 2), ("r", 1))
        for i in range(n)
    ]
    rows += [rows[0] | {"index": 9, "reward": "high"}]
    Path("samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        RewardEvalRecipe, "r.yaml", ["best_of_n.candidates=[{path: samples.jsonl}]"]
    )
    evaluate_rewards(recipe)
    lines = [json.loads(line) for line in Path("out/quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [
        (12, "text, not a number"),
        (11, "fewer than two candidates"),
    ]
    page = Path("out/report.html").read_text()
    assert "ends at n = 2, the fewest candidates of a prompt; others have up to 8" in page


def test_the_page_shows_what_a_score_is_made_of(folder):
    base = {"prompt": "q", "chosen": ["aaaa"], "rejected": ["b", "cc", "dddd"]}
    kinds = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    two = [base | {"id": str(n), "subset": name} for n, name in enumerate(kinds)]
    two += [
        base | {"id": "tied:1", "subset": "Ties", "chosen": ["aaaaaa", "aaaaa"]},
        base | {"id": "ref:1", "subset": "Ties"},
    ]
    one = [
        {"prompt": "q", "chosen": "aa", "rejected": "b", "subset": name, "id": n}
        for n, name in enumerate(WEIGHTS)
    ]
    for name, rows in (("two", two), ("one", one)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = (
        "benchmarks=[{type: rewardbench, data: [{path: one.jsonl}]}, "
        "{type: rewardbench2, data: [{path: two.jsonl}]}, "
        "{type: rm_bench, data: [{path: chat_filtered.json}]}]"
    )
    recipe = load_recipe(RewardEvalRecipe, "r.yaml", [benchmarks, "best_of_n=null"])
    found = evaluate_rewards(recipe).evaluation
    page = re.sub(r"<[^>]*>|\s+", " ", Path("out/report.html").read_text())
    page = re.sub(r" +", " ", page)
    assert "model score by old counts Chat Chat Hard Safety" in page
    assert "xstest subsets up to its version 0.1.2" in page
    # Equal lengths of two of four: half a point, and said to be so.
    assert "50.0% [5.5, 94.5] 1 equal" in page
    parts = found["benchmarks"][1]["results"]["long"]["official"]["detail"]["ties"]
    assert (parts["tied_accuracy"], parts["ref_accuracy"], parts["preferred"]) == (1.0, 0.0, 0.0)
    assert "long 100.0% 0.0% 0.0% 0.0%" in page  # what Ties is made of
    assert "Styles against styles" in page and "markdown 100.0% 100.0% 0.0%" in page
    assert (
        "RM-Bench is not the set as published: chat has 1 prompts, not 129, lacks code, lacks math "
        "and 1 more difference"
    ) in page


def test_the_page_escapes_and_survives_what_is_missing(folder):
    hostile = "<script>alert(1)</script>"
    recipe = load_recipe(
        RewardEvalRecipe, "r.yaml", [f"models=[{{type: length, name: '{hostile}'}}]"]
    )
    evaluate_rewards(recipe)
    assert "<script" not in Path("out/report.html").read_text()
    file = Path("out/evaluation.json")
    document = json.loads(file.read_text())
    document["benchmarks"][0]["results"][hostile] = {}
    document["best_of_n"]["models"] = {}
    styles = document["benchmarks"][1]["results"][hostile]["official"]["detail"]
    styles["matrix"], styles["ties"], styles["with_prior"] = [3, ["x"], None], {"score": "x"}, "x"
    file.write_text(json.dumps(document))
    assert "Reward models" in write_report(["out"]).read_text()
    file.write_text(json.dumps({"kind": "reward-evaluation"}))
    write_report(["out"])
    file.write_text(json.dumps({"kind": "reward-evaluation", "models": 3}))
    assert "valuation.json is left out" in write_report(["out"]).read_text()


def test_a_choice_that_helps_at_first_and_harms_later_is_named(folder):
    rows = [
        {
            "prompt": p,
            "responses": [{"content": "x" * n, "rating": r} for n, r in enumerate((1, 2, 8, w), 1)],
        }
        for p, w in (("one", 1), ("two", 0), ("three", 2))
    ]
    Path("rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(RewardEvalRecipe, "r.yaml", ["benchmarks=[]", "robustness=null"])
    found = evaluate_rewards(recipe).evaluation["best_of_n"]["models"]["long"]
    assert (found["peak"], found["largest"], found["over_optimised"]) == (2, 4, True)
    page = Path("out/report.html").read_text()
    assert "Choosing by long over-optimises: the gold score falls" in page


def test_a_judge_that_reads_places_is_named(folder):
    evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml"))
    file = Path("out/evaluation.json")
    document = json.loads(file.read_text())
    document["models"][0]["account"] = {
        "verdicts for the first place": 19,
        "verdicts for the second place": 2,
    }
    file.write_text(json.dumps(document))
    page = write_report(["out"]).read_text()
    assert "prefers the first place in 90% of its verdicts" in page


@pytest.mark.parametrize(("sources", "folded"), [(4, False), (5, True)])
def test_a_long_table_by_source_is_folded_away(folder, sources, folded):
    """Three models: a row each for every source."""
    assert OPEN_SOURCES == 12
    data = [{"path": f"pairs{n}.jsonl"} for n in range(sources)]
    for source in data:
        row = {"prompt": source["path"], "chosen": "aa", "rejected": "b"}
        Path(source["path"]).write_text(json.dumps(row) + "\n")
    overrides = [f"benchmarks=[{{type: pairs, data: {json.dumps(data)}}}]", "best_of_n=null"]
    evaluate_rewards(load_recipe(RewardEvalRecipe, "r.yaml", overrides))
    page = Path("out/report.html").read_text()
    assert ("<summary>By source</summary>" in page) is folded
    assert page.count("<details>") == page.count("</details>")
