"""What stages are predicted to take: one trial for each shape, kept, and never twice in vain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palate.errors import PalateError
from palate.recipes.schema import TuneRecipe
from palate.store.records import Foresight
from palate.study import costs as module
from palate.study.costs import Costs, shape_of
from palate.study.graph import StudyStage, ordered
from palate.study.plan import Plan
from palate.study.show import plan_lines
from study_cases import algorithm, data, plan_of, policy_step, recipe, study_of

FORESIGHT = Foresight(
    seconds=2.0,
    memory_bytes=3_000_000_000,
    layout="shared",
    items=4.0,
    micro_batches=1.0,
    tokens=100.0,
    most_tokens=120,
    fixed_seconds=0.4,
    start_seconds=5.0,
    total_steps=3,
    train_items=40,
    eval_items=0,
)
MEASURED = {"fixed": 3.0, "seconds": 20.0, "of_reference": 8.0, "memory_bytes": 10**9}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials that were made, by what they are of."""
    made: list[str] = []

    def predict(trained: TuneRecipe) -> Foresight:
        made.append(f"{trained.loss.type} on {trained.data.train[0].path}")
        return FORESIGHT

    def evaluated(*_: Any) -> dict[str, Any]:
        made.append("evaluation")
        return MEASURED

    monkeypatch.setattr("palate.train.foresight.predict", predict)
    monkeypatch.setattr(module, "_in_process", evaluated)
    return made


def of_step(plan: Plan, step: str) -> list[StudyStage]:
    return [stage for stage in ordered(plan.stages) if stage.step == step]


GRID = recipe(aspects=[algorithm(), data()], design={"type": "grid"})


def test_a_trial_is_made_once_for_each_shape_and_kept(trials: list[str]) -> None:
    plan = plan_of(GRID)
    costs = Costs(plan.graph.root)
    for stage in ordered(plan.stages):
        assert costs.of(stage, plan) is not None
    # Two losses on two data sets, whatever the seed; and an evaluation of each loss's policies.
    losses = ["dpo", "tdpo2"]
    trained = [f"{loss} on {file}.jsonl" for loss in losses for file in "ab"]
    assert sorted(trials) == sorted([*trained, "evaluation", "evaluation"])
    trials.clear()
    again = Costs(plan.graph.root, probe=False)
    assert all(again.of(stage, plan) for stage in plan.stages.values())
    assert trials == []


def test_seconds_are_those_of_start_steps_and_end(trials: list[str]) -> None:
    plan = plan_of(GRID)
    costs = Costs(plan.graph.root)
    policy = costs.of(of_step(plan, "policy")[0], plan)
    assert policy is not None and policy.memory_bytes == 3_000_000_000
    fixed = module.STARTING_SECONDS + module.ENDING_SECONDS
    assert policy.seconds == pytest.approx(fixed + 5.0 + 3 * 2.0)
    cache = costs.of(of_step(plan, "policy-reference")[0], plan)
    # 40 items, a third of the 1.6 seconds that 4 take through forward and backward.
    assert cache is not None
    assert cache.seconds == pytest.approx(module.STARTING_SECONDS + 5.0 + 40 * 1.6 / 4 / 3)
    evaluation = costs.of(of_step(plan, "evaluation")[0], plan)
    assert evaluation is not None and evaluation.shared == 8.0
    assert evaluation.seconds == pytest.approx(module.STARTING_SECONDS + 23.0)


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("seed", 7, True),
        ("train.learning_rate", 1e-3, True),
        ("train.max_steps", 50, True),
        ("train.epochs", 3.0, True),
        ("loss.beta", 0.5, True),
        ("loss.type", "tdpo2", False),
        ("train.batch_size_pairs", 16, False),
        ("data.length.max_response_tokens", 64, False),
        ("model.dtype", "bfloat16", False),
        ("train.gradient_checkpointing", True, False),
    ],
)
def test_the_shape_covers_what_time_depends_on(key: str, value: Any, same: bool) -> None:
    from palate.recipes.document import Document, apply_override
    from palate.recipes.load import check_document

    def shape(change: Callable[[Document], None] = lambda _: None) -> str:
        document = Document(json.loads(json.dumps(policy_step()["recipe"])))
        document.value["output_dir"] = "out"
        change(document)
        return shape_of(check_document(TuneRecipe, document))

    changed = shape(lambda document: apply_override(document, f"{key}={json.dumps(value)}"))
    assert (changed == shape()) is same


def test_a_trial_that_failed_is_not_made_again(
    trials: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> dict[str, Any]:
        trials.append("evaluation")
        raise PalateError("no memory")

    monkeypatch.setattr(module, "_in_process", failing)
    plan = plan_of(GRID)
    costs = Costs(plan.graph.root)
    stages = of_step(plan, "evaluation")
    assert [costs.of(stage, plan) for stage in stages] == [None] * len(stages)
    # One of each loss.
    assert trials == ["evaluation"] * 2
    assert costs.notes == {"evaluation": "no memory"}


def test_data_of_a_step_that_is_not_there_say_so(trials: list[str]) -> None:
    pairs = {
        "name": "pairs",
        "verb": "data build",
        "recipe": {"sources": [{"path": "a.jsonl"}]},
    }
    policy = policy_step(data={"train": [{"path": "step:pairs/data"}]})
    steps = [pairs, policy, *recipe()["steps"][1:]]
    plan = plan_of(recipe(steps=steps, aspects=[algorithm()]))
    costs = Costs(plan.graph.root)
    assert costs.of(of_step(plan, "policy")[0], plan) is None
    assert costs.of(of_step(plan, "pairs")[0], plan) is None
    assert costs.notes["policy"] == "its data are of a step that is not finished"
    assert costs.notes["pairs"] == "no trial is made of `palate data build`"


def built(**build: Any) -> dict[str, Any]:
    recipe_of = {"sources": [{"path": "a.jsonl"}]} | build
    pairs = {"name": "pairs", "verb": "data build", "recipe": recipe_of}
    policy = policy_step(data={"train": [{"path": "step:pairs/data"}]})
    return recipe(steps=[pairs, policy, *recipe()["steps"][1:]], aspects=[algorithm()])


def test_a_plan_builds_the_pairs_that_its_trials_read(trials: list[str]) -> None:
    study = study_of(built())
    said: list[str] = []
    lines = list(plan_lines(study, probe=True, says=said.append))
    assert said[0].startswith("building pairs-") and said[0].endswith(", whose pairs trials read")
    assert not any(line.startswith("not predicted") for line in lines)
    assert "1 finished" in lines[0]
    (pairs,) = of_step(study.plan(), "pairs")
    assert study.finished(pairs) and Path("out", pairs.key, "data").is_dir()
    # A plan without trials does nothing.
    other = study_of(built() | {"output_dir": "other"})
    lines = list(plan_lines(other, probe=False, says=said.append))
    assert "0 finished" in lines[0] and not Path("other").exists()


def test_a_build_waits_for_what_it_is_made_of(trials: list[str]) -> None:
    """Built of another build, it is built after it; of what a model filters, it is left."""
    value = built()
    second = {"name": "more", "verb": "data build", "recipe": {"sources": [{"path": "step:pairs"}]}}
    value["steps"].insert(1, second)
    value["steps"][2]["recipe"]["data"]["train"] = [{"path": "step:more/data"}]
    said: list[str] = []
    list(plan_lines(study_of(value), probe=True, says=said.append))
    assert [line.split("-")[0] for line in said[:2]] == ["building pairs", "building more"]
    scores = {"step": "score_filter", "scores": {"type": "lexicon"}, "keep": "right"}
    value["steps"][0]["recipe"]["curate"] = [scores]
    said.clear()
    list(plan_lines(study_of(value | {"output_dir": "other"}), probe=True, says=said.append))
    assert not any(line.startswith("building") for line in said)


def test_a_reward_model_of_a_step_to_come_is_left_out_and_told(
    trials: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def evaluated(placed: Any, *_: Any) -> dict[str, Any]:
        asked.append(placed.reward)
        return MEASURED

    monkeypatch.setattr(module, "_in_process", evaluated)
    learns = {"model": {"path": "base"}, "data": {"train": [{"path": "c.jsonl"}]}}
    steps = [{"name": "reward", "verb": "reward", "recipe": learns}, *recipe()["steps"]]
    scored = {"type": "model", "path": "step:reward/model"}
    steps[2]["recipe"] |= {"sampling": {"prompts": 2}, "reward": scored}
    measures = [{"name": "m", "step": "evaluation", "value": "reward", "better": "higher"}]
    plan = plan_of(recipe(steps=steps, aspects=[algorithm()], measures=measures))
    costs = Costs(plan.graph.root)
    evaluation = of_step(plan, "evaluation")[0]
    assert costs.of(evaluation, plan) is not None and asked == [None]
    assert costs.notes["evaluation"] == "its reward is of a step that is not finished"
    # Once it is there, a trial counts it.
    (model,) = (need for need in evaluation.needs if need.startswith("reward-"))
    (plan.graph.root / model / "model").mkdir(parents=True)
    assert costs.of(evaluation, plan) is not None
    assert asked[1].path == str(plan.graph.root / model / "model")


def test_an_evaluation_of_all_checkpoints_is_as_many(trials: list[str]) -> None:
    steps = recipe()["steps"]
    steps[0]["recipe"]["train"] = {"save_every_steps": 1}
    steps[1]["recipe"]["checkpoints"] = "all"
    plan = plan_of(recipe(steps=steps, aspects=[algorithm()]))
    cost = Costs(plan.graph.root).of(of_step(plan, "evaluation")[0], plan)
    # A run of three steps leaves three behind.
    assert cost is not None
    assert cost.seconds == pytest.approx(module.STARTING_SECONDS + 3.0 + 3 * 20.0)


@pytest.mark.parametrize(
    "scores", [{"type": "lexicon"}, {"type": "log_ratio", "policy": "base", "reference": "base"}]
)
def test_pairs_that_a_model_filters_are_left_to_the_run(
    trials: list[str], scores: dict[str, str]
) -> None:
    curate = [{"step": "score_filter", "scores": scores, "keep": "right"}]
    study = study_of(built(curate=curate))
    said: list[str] = []
    lines = list(plan_lines(study, probe=True, says=said.append))
    assert not any(line.startswith("building") for line in said)
    assert "not predicted: policy: its data are of a step that is not finished" in lines


def test_pairs_that_cannot_be_built_are_left_to_the_run(trials: list[str]) -> None:
    Path("a.jsonl").write_text("no json\n")
    study = study_of(built())
    lines = list(plan_lines(study, probe=True, says=lambda _: None))
    assert "0 finished" in lines[0]


def test_a_plan_tells_the_whole_and_its_parts(trials: list[str]) -> None:
    study = study_of(GRID)
    said: list[str] = []
    lines = list(plan_lines(study, probe=True, says=said.append))
    assert lines[0] == "4 cells, 8 runs, 20 stages: 0 finished, 20 to run"
    assert any("evaluation: 8 stages" in line and "3 min 16 s" in line for line in lines)
    assert any(line.startswith("about ") and "3.0 GB" in line for line in lines)
    assert len(said) == 6
    assert not any(line.startswith("not predicted") for line in lines)


def test_seconds_of_a_budget_become_updates(trials: list[str]) -> None:
    plan = plan_of(recipe(aspects=[algorithm()], budget={"seconds": 13.0}))
    steps = {stage.recipe.train.max_steps for stage in of_step(plan, "policy")}  # type: ignore[attr-defined]
    # A step takes 2 seconds.
    assert steps == {6}
    assert Path("out", module.COSTS).exists()
