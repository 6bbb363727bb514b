"""Planted confounds: each is refused in a line that names it, and accepted where it is declared."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RecipeError
from palate.study.analysis import analyse
from study_cases import (
    ACCURACY,
    VALIDATION,
    algorithm,
    aspect,
    data,
    evaluation_step,
    plan_of,
    plant,
    policy_step,
    recipe,
    refusal,
    study_of,
    tuning,
    validating,
    write_model,
)

LEXICON = {"type": "lexicon"}
SAMPLING = {"prompts": 2, "max_new_tokens": 4}


def scored(name: str = "evaluation", **changes: Any) -> dict[str, Any]:
    """An evaluation whose samples a lexicon scores."""
    return evaluation_step(name, **{"sampling": SAMPLING, "reward": LEXICON, **changes})


def accepted(value: dict[str, Any]) -> None:
    assert plan_of(value).compared


def backbone(**more: Any) -> dict[str, Any]:
    """A study of two starting models."""
    return recipe(aspects=[aspect("backbone", {"policy.model.path": "second"}, **more)])


def test_a_key_outside_of_the_aspect() -> None:
    rate = {"policy.loss.type": "tdpo2", "policy.train.learning_rate": 1e-3}
    variant = {"name": "fast", "set": rate}
    assert refusal(recipe(aspects=[algorithm(variant)])) == (
        "study.yaml: algorithm fast: sets policy.train.learning_rate, outside of what the aspect "
        "varies (policy.loss, policy.token_weights, policy.algorithm, policy.kl, policy.value, "
        "policy.fidelity): declare it under `coupled`, or leave it"
    )
    coupled = {"policy.train.learning_rate": rate.pop("policy.train.learning_rate")}
    accepted(recipe(aspects=[algorithm(variant | {"coupled": coupled})]))


def test_a_section_is_not_a_prefix_of_letters() -> None:
    odd = {"name": "odd", "varies": ["policy.train.eval"], "variants": [{"name": "x"}]}
    odd["variants"].append({"name": "y", "set": {"policy.train.eval_batch_size_pairs": 2}})
    assert "outside of what the aspect varies" in refusal(recipe(aspects=[odd]))


def test_two_aspects_of_one_section() -> None:
    loss = aspect("beta", {"policy.loss.beta": 0.2})
    line = "study.yaml: aspects algorithm and beta both vary policy.loss.beta"
    assert refusal(recipe(aspects=[algorithm(), loss])) == line


def test_a_coupled_key_of_another_aspect_or_of_its_own() -> None:
    b = {"policy.data.train": [{"path": "b.jsonl"}]}
    variant = {"name": "odd", "coupled": b}
    assert refusal(recipe(aspects=[algorithm(variant), data()])) == (
        "study.yaml: algorithm odd: couples policy.data.train, which aspect data varies"
    )
    variant = {"name": "odd", "coupled": {"policy.loss.beta": 0.2}}
    assert refusal(recipe(aspects=[algorithm(variant)])) == (
        "study.yaml: algorithm odd: couples policy.loss.beta, which the aspect varies: put it "
        "under `set`"
    )


@pytest.mark.parametrize(
    ("fact", "files"),
    [
        ("tokenizer", {"tokenizer": "other tokens"}),
        ("template", {"chat_template": "other"}),
    ],
)
def test_another_tokenizer_or_template_of_a_model(fact: str, files: dict[str, str]) -> None:
    write_model(Path("second"), **files)
    if fact == "template":
        Path("second/chat_template.jinja").write_text("other")
    assert refusal(backbone()) == (
        f"study.yaml: step policy: {fact} is not the same for plain and for changed: name it in "
        "`also_changes` of the variant that changes it (backbone plain, backbone changed)"
    )
    accepted(backbone(also_changes=[fact]))
    accepted(recipe(aspects=[aspect("x", {}, coupled={"policy.model.path": "second"})]))
    wrong = "precision" if fact == "tokenizer" else "tokenizer"
    assert fact in refusal(backbone(also_changes=[wrong]))


def test_other_weights_of_the_same_kind_are_the_aspect_itself() -> None:
    write_model(Path("second"), model="other weights")
    accepted(backbone())


def test_a_model_of_the_hub_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    value = recipe(aspects=[aspect("backbone", {"policy.model.path": "nobody/nothing"})])
    with pytest.raises(Exception, match="tokenizer is not the same"):
        plan_of(value)
    declared = {"also_changes": ["tokenizer", "template"]}
    accepted(recipe(aspects=[aspect("backbone", {"policy.model.path": "nobody/x"}, **declared)]))


@pytest.mark.parametrize(
    ("fact", "key", "value"),
    [
        ("template", "policy.model.chat_template", "plain"),
        ("length", "policy.data.length.max_prompt_tokens", 9),
        ("length", "policy.data.length", {"response": "drop"}),
        ("precision", "policy.model.dtype", "bfloat16"),
        ("precision", "policy.train.optimizer_precision", "model"),
        ("reference", "policy.reference.path", "second"),
    ],
)
def test_other_facts_of_training(fact: str, key: str, value: Any) -> None:
    write_model(Path("second"))
    assert f"step policy: {fact} is not the same for plain and for changed" in refusal(
        recipe(aspects=[aspect("odd", {key: value})])
    )
    accepted(recipe(aspects=[aspect("odd", {key: value}, also_changes=[fact])]))
    accepted(recipe(aspects=[aspect("odd", {}, coupled={key: value})]))


@pytest.mark.parametrize(
    ("fact", "key", "value"),
    [
        ("evaluation", "evaluation.data", [{"path": "validation.jsonl"}]),
        ("evaluation", "evaluation.length.max_prompt_tokens", 9),
        ("evaluation", "evaluation.reward", {"type": "length"}),
        ("evaluation", "evaluation.judge", {"type": "length"}),
        ("decoding", "evaluation.sampling.temperature", 0.5),
        ("decoding", "evaluation.sampling.max_new_tokens", 2),
        ("reference", "evaluation.reference", "second"),
    ],
)
def test_what_runs_are_measured_by(fact: str, key: str, value: Any) -> None:
    write_model(Path("second"))
    steps = [policy_step(), scored()]
    assert refusal(recipe(steps=steps, aspects=[aspect("odd", {key: value})])) == (
        f"study.yaml: odd changed: sets {key}: what runs are measured by is the same for all"
    )
    accepted(recipe(steps=steps, aspects=[aspect("odd", {}, coupled={key: value})]))
    coupled_elsewhere = aspect("odd", {"policy.loss.beta": 0.2})
    assert plan_of(recipe(steps=steps, aspects=[coupled_elsewhere])).compared


def reward_step(path: str = "c.jsonl", **changes: Any) -> dict[str, Any]:
    value = {"model": {"path": "base"}, "data": {"train": [{"path": path}]}}
    return {"name": "reward", "verb": "reward", "recipe": value | changes}


MODEL_REWARD = {"type": "model", "path": "step:reward/model"}


def test_a_scorer_that_differs_from_run_to_run() -> None:
    steps = [reward_step(), policy_step(), scored(reward=MODEL_REWARD)]
    accepted(recipe(steps=steps))
    rate = {"reward.train.learning_rate": 1e-3}
    line = refusal(recipe(steps=steps, aspects=[aspect("odd", rate)]))
    assert "step evaluation: evaluation is not the same for plain and for changed" in line
    accepted(recipe(steps=steps, aspects=[aspect("odd", rate, also_changes=["evaluation"])]))


def test_evaluation_on_each_runs_own_pairs() -> None:
    held_out = {"train": [{"path": "a.jsonl"}], "eval_fraction": 0.5}
    steps = [policy_step(data=held_out), evaluation_step(data=[])]
    assert refusal(recipe(steps=steps)) == (
        "study.yaml: step evaluation has no `data`: it would take each run's own held-out pairs, "
        "and they are not the same"
    )


def test_other_data_without_a_budget() -> None:
    line = (
        "study.yaml: step policy trains on other data from variant to variant: set `budget`, so "
        "that amount and content are not one choice, or `budget: {unmatched: true}`"
    )
    assert refusal(recipe(budget=None)) == line
    accepted(recipe(budget={"unmatched": True}))
    accepted(recipe(budget={"pairs": 4}))
    accepted(recipe(budget=None, aspects=[algorithm()]))
    limited = aspect("size", {"policy.data.train.0.limit": 2})
    assert refusal(recipe(budget=None, aspects=[limited])) == line


def test_other_data_by_a_build_of_any_name_without_a_budget() -> None:
    build = {"name": "build", "verb": "data build", "recipe": {"sources": [{"path": "a.jsonl"}]}}
    steps = [build, policy_step(data={"train": [{"path": "step:build"}]}), evaluation_step()]
    varied = aspect("source", {"build.sources": [{"path": "b.jsonl"}]})
    line = "step policy trains on other data from variant to variant"
    assert line in refusal(recipe(budget=None, steps=steps, aspects=[varied]))
    accepted(recipe(steps=steps, aspects=[varied]))


def test_data_that_differ_by_the_seed_alone_are_not_a_choice() -> None:
    build = {"name": "build", "verb": "data build", "recipe": {"sources": [{"path": "a.jsonl"}]}}
    steps = [
        build | {"seeds": "vary"},
        policy_step(data={"train": [{"path": "step:build"}]}),
        evaluation_step(),
    ]
    accepted(recipe(budget=None, steps=steps, aspects=[algorithm()]))


def test_another_backbone_is_not_other_data() -> None:
    write_model(Path("second"), model="other weights")
    value = backbone()
    del value["budget"]
    accepted(value)


def test_evaluation_on_what_was_trained_on() -> None:
    shutil.copy("b.jsonl", "copy.jsonl")
    steps = [policy_step(), evaluation_step(data=[{"path": "copy.jsonl"}])]
    assert refusal(recipe(steps=steps)) == (
        "study.yaml: step evaluation measures on copy.jsonl, which step policy trains on"
    )
    accepted(recipe(steps=steps, aspects=[algorithm()]))


def built(*, train: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    build = {"sources": [{"path": "a.jsonl"}], "output": {"eval_fraction": 0.5}}
    steps = [
        {"name": "build", "verb": "data build", "recipe": build},
        policy_step(data={"train": [train]}),
        evaluation_step(data=[evaluation]),
    ]
    return recipe(steps=steps, aspects=[algorithm()])


def test_evaluation_on_what_the_training_data_were_built_of() -> None:
    line = refusal(built(train={"path": "step:build"}, evaluation={"path": "a.jsonl"}))
    assert line == "study.yaml: step evaluation measures on a.jsonl, which step build trains on"


def test_the_splits_of_a_build_are_two_things_before_and_after_it_is_made() -> None:
    train = {"path": "step:build", "split": "train"}
    value = built(train=train, evaluation={"path": "step:build", "split": "eval"})
    accepted(value)
    for key in plan_of(value).stages:
        if key.startswith("build"):
            Path("out", key).mkdir(parents=True)
            Path("out", key, "train.parquet").write_text("rows")
    accepted(value)
    line = refusal(built(train=train, evaluation=train))
    assert "step evaluation measures on out/build-" in line and "step policy trains on" in line


def test_settings_chosen_by_what_measures() -> None:
    value = validating(aspects=[algorithm()], tuning=tuning())
    assert plan_of(value).runs
    value["steps"][2]["recipe"]["data"] = [{"path": "test.jsonl"}]
    with pytest.raises(Exception, match=r"by which step validation chooses settings"):
        _with_trials_done(value)
    value = recipe(aspects=[algorithm()], tuning=tuning(measure="accuracy"), measures=[ACCURACY])
    assert refusal(value) == (
        "study.yaml: measures: accuracy, the main measure, is of step evaluation, which chooses: "
        "measure and choose by different steps, on different data"
    )


def _with_trials_done(value: dict[str, Any]) -> None:
    study = study_of(value)
    plan = study.plan()
    for run in plan.runs:
        plant(study, plan.stages[run.stages["validation"]])
    study.plan()


def test_survivors_chosen_by_what_measures() -> None:
    design = {"type": "halving", "measure": "accuracy", "first_updates": 1}
    value = recipe(design=design, measures=[ACCURACY])
    assert "the main measure, is of step evaluation, which chooses" in refusal(value)


def test_a_tuned_key_that_a_variant_sets() -> None:
    keys = {"policy.loss.beta": [0.1, 0.2]}
    variant = {"name": "strong", "set": {"policy.loss.beta": 0.5}}
    value = validating(aspects=[algorithm(variant)], tuning=tuning(keys=keys))
    assert refusal(value) == (
        "study.yaml: algorithm strong: sets policy.loss.beta, which its tuning trials choose"
    )
    variant = {"name": "ipo", "set": {"policy.loss": {"type": "ipo_sum"}}}
    value = validating(aspects=[algorithm(variant)], tuning=tuning(keys=keys))
    assert "algorithm ipo: sets policy.loss, which" in refusal(value)
    del variant["set"]
    variant["tune"] = {"policy.loss.beta": [1.0, 2.0]}
    assert plan_of(validating(aspects=[algorithm(variant)], tuning=tuning(keys=keys))).runs


def test_only_what_trains_is_tuned() -> None:
    keys = {"evaluation.confidence": [0.9, 0.95]}
    line = refusal(validating(aspects=[algorithm()], tuning=tuning(keys=keys)))
    assert (
        line
        == "study.yaml: tuning: tries evaluation.confidence, and only steps that train are tuned"
    )


def curated(scorer: dict[str, Any], *, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Pairs that a scorer chose, a policy of them, and its evaluation."""
    step = {"step": "difficulty", "scores": scorer, "field": "margin_of_it", "buckets": 2}
    build = {"sources": [{"path": "a.jsonl"}], "curate": [step]}
    steps = [
        {"name": "build", "verb": "data build", "recipe": build},
        policy_step(data={"train": [{"path": "step:build"}]}),
        evaluation,
    ]
    return recipe(steps=steps, aspects=[algorithm()])


def test_the_scorer_that_made_the_data() -> None:
    assert refusal(curated(LEXICON, evaluation=scored())) == (
        "study.yaml: step evaluation measures by lexicon, and step build makes its data with it: "
        "no run is its own yardstick"
    )
    accepted(curated(LEXICON, evaluation=scored(reward={"type": "length"})))
    members = [{"scorer": LEXICON}, {"scorer": {"type": "length"}}]
    inside = scored(reward={"type": "mixture", "members": members})
    assert "measures by lexicon" in refusal(curated(LEXICON, evaluation=inside))


def test_a_classifier_is_told_by_its_weights() -> None:
    write_model(Path("judge"), model="of a judge")
    shutil.copytree("judge", "copy")
    chosen = {"type": "classifier", "path": "judge", "label": "GOOD"}
    measures = chosen | {"path": "copy"}
    line = refusal(curated(chosen, evaluation=scored(reward=measures)))
    assert "measures by classifier copy, and step build makes its data with it" in line
    write_model(Path("third"), model="of another judge")
    accepted(curated(chosen, evaluation=scored(reward=chosen | {"path": "third"})))


def test_the_scorer_that_chose_settings() -> None:
    reward = {"value": "reward"}
    value = validating(aspects=[algorithm()], tuning=tuning())
    value["measures"] = [ACCURACY | reward, VALIDATION | reward]
    value["steps"][1] = scored()
    value["steps"][2] = scored("validation", data=[{"path": "validation.jsonl"}])
    with pytest.raises(
        Exception, match="step validation chooses settings by it: no run is its own"
    ):
        _with_trials_done_of_samples(value)


def _with_trials_done_of_samples(value: dict[str, Any]) -> None:
    study = study_of(value)
    plan = study.plan()
    row = '{"prompt_id": "p", "index": 0, "policy": "p", "checkpoint": 1, "reward": 1.0}\n'
    for run in plan.runs:
        key = run.stages["validation"]
        plant(study, plan.stages[key])
        Path("out", key, "samples.jsonl").write_text(row)
    study.plan()


def test_a_reward_model_of_the_policys_pairs() -> None:
    steps = [reward_step("a.jsonl"), policy_step(), scored(reward=MODEL_REWARD)]
    assert refusal(recipe(steps=steps)) == (
        "study.yaml: step evaluation measures by the reward model of step reward, which learned "
        "from the pairs that step policy trains on"
    )
    steps[0] = reward_step("c.jsonl")
    accepted(recipe(steps=steps))
    shutil.copy("a.jsonl", "copy.jsonl")
    steps[0] = reward_step("copy.jsonl")
    assert "which learned from the pairs" in refusal(recipe(steps=steps))


def test_a_reward_model_of_the_pairs_that_the_policys_were_built_of() -> None:
    build = {"name": "build", "verb": "data build", "recipe": {"sources": [{"path": "a.jsonl"}]}}
    policy = policy_step(data={"train": [{"path": "step:build"}]})
    steps = [build, reward_step("a.jsonl"), policy, scored(reward=MODEL_REWARD)]
    assert "which learned from the pairs" in refusal(recipe(steps=steps, aspects=[algorithm()]))


@pytest.mark.parametrize("key", ["reward", "judge"])
def test_a_reward_model_from_elsewhere_tells_by_its_lineage(key: str) -> None:
    """It lies in a run's folder, which says what the run learned from: here a built data set."""
    for name in ("rm", "rm/model", "built"):
        Path(name).mkdir()
    Path("rm/model/config.json").write_text("{}")
    a, c = (hashlib.sha256(Path(f"{name}.jsonl").read_bytes()).hexdigest() for name in "ac")

    def learned(*data: dict[str, str]) -> str | None:
        Path("rm/lineage.json").write_text(json.dumps({"data": data}))
        measures = {"type": "classifier", "path": "rm/model"}
        changes = {"reward": measures} if key == "reward" else {"judge": measures, "reward": None}
        value = recipe(steps=[policy_step(), scored(**changes)])
        try:
            plan_of(value)
        except RecipeError as error:
            return str(error)
        return None

    line = (
        "study.yaml: step evaluation measures by rm/model, which learned from the pairs that step "
        "policy trains on"
    )
    assert learned({"path": "elsewhere.jsonl", "sha256": a}) == line
    assert learned({"path": "c.jsonl", "sha256": c}) is None
    Path("built/lineage.json").write_text(json.dumps({"data": [{"path": "x", "sha256": a}]}))
    assert learned({"path": "built", "sha256": "of the folder"}) == line


@pytest.mark.parametrize("key", ["reward", "judge"])
def test_a_measuring_model_that_varies_with_an_aspect(key: str) -> None:
    train = aspect("rate", {"reward.train.learning_rate": 1e-3})
    measures = {"reward": None} | {key: MODEL_REWARD}
    steps = [reward_step("c.jsonl"), policy_step(), scored(**measures)]
    measure = ACCURACY | {"value": "win_rate"}
    value = recipe(steps=steps, aspects=[train], measures=[measure])
    assert "evaluation is not the same for plain and for changed" in refusal(value)


def test_a_judge_is_a_yardstick_too() -> None:
    lexicon = {"type": "lexicon"}
    filtered = {
        "sources": [{"path": "a.jsonl"}],
        "curate": [{"step": "score_filter", "scores": lexicon, "keep": "right"}],
    }
    build = {"name": "build", "verb": "data build", "recipe": filtered}
    policy = policy_step(data={"train": [{"path": "step:build"}]})
    steps = [build, policy, scored(reward=None, judge=lexicon)]
    measure = ACCURACY | {"value": "win_rate"}
    line = refusal(recipe(steps=steps, aspects=[algorithm()], measures=[measure]))
    assert "step evaluation measures by lexicon, and step build makes its data with it" in line
    steps[2] = scored(reward=None, judge={"type": "length"})
    accepted(recipe(steps=steps, aspects=[algorithm()], measures=[measure]))


def test_numbers_of_reward_models_need_what_makes_them() -> None:
    benchmark = {"type": "pairs", "data": [{"path": "validation.jsonl"}]}
    best = {"candidates": [{"path": "c.jsonl"}], "gold": {"type": "lexicon"}}

    def of(value: str, **judged: Any) -> dict[str, Any]:
        step = {"name": "judged", "verb": "eval reward", "recipe": {"models": [MODEL_REWARD]}}
        step["recipe"] |= judged  # type: ignore[operator]
        steps = [reward_step("a.jsonl"), step]
        measures = [ACCURACY | {"step": "judged", "value": value}]
        train = aspect("rate", {"reward.train.learning_rate": 1e-3})
        return recipe(steps=steps, aspects=[train], measures=measures)

    assert "no best_of_n of step judged: give `best_of_n`" in refusal(
        of("best_of_n", benchmarks=[benchmark])
    )
    assert "no accuracy of step judged: give `benchmarks`" in refusal(
        of("accuracy", best_of_n=best)
    )
    accepted(of("best_of_n", best_of_n=best))


def test_a_reward_model_may_be_evaluated_and_measure() -> None:
    benchmark = {"type": "pairs", "data": [{"path": "validation.jsonl"}]}
    judged = {"models": [MODEL_REWARD], "benchmarks": [benchmark]}
    steps = [
        reward_step("c.jsonl"),
        {"name": "judged", "verb": "eval reward", "recipe": judged},
        policy_step(),
        scored(reward=MODEL_REWARD),
    ]
    measures = [ACCURACY, ACCURACY | {"name": "judged", "step": "judged"}]
    accepted(recipe(steps=steps, measures=measures))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tuning": tuning(seed=1)}, "`tuning.seed`: is one of `seeds`"),
        ({"seeds": [3, 4, 3]}, "`seeds`: 3 is there twice"),
        ({"seeds": []}, "`seeds`"),
        (
            {"design": {"type": "halving", "measure": "validation", "first_updates": 1, "seed": 0}},
            "`design.seed`: is one of `seeds`",
        ),
        (
            {
                "design": {"type": "halving", "measure": "validation", "first_updates": 1},
                "budget": {"pairs": 2},
            },
            "halving ends at `budget.updates`",
        ),
    ],
)
def test_seeds_and_rounds(changes: dict[str, Any], line: str) -> None:
    assert line in refusal(validating(aspects=[algorithm()]) | changes)


def test_a_variant_that_changes_nothing() -> None:
    same = {"name": "again", "set": {"policy.loss.type": "dpo"}}
    line = "changes nothing that is measured: its runs are those of dpo"
    assert refusal(recipe(aspects=[algorithm(same)])) == f"study.yaml: algorithm again: {line}"
    # Nothing at one setting, something at another: the cells meet in both.
    both = recipe(aspects=[algorithm(), data()], design={"type": "grid"})
    accepted(both)


def test_a_step_that_nothing_uses() -> None:
    first = {"model": {"path": "base"}, "data": {"train": [{"path": "c.jsonl"}]}}
    steps = [{"name": "first", "verb": "sft", "recipe": first}, policy_step(), evaluation_step()]
    assert refusal(recipe(steps=steps)) == (
        "study.yaml: step first: no measure and no step that is measured uses it: delete it"
    )
    start = aspect(
        "start", {"policy.model.path": "step:first/model"}, also_changes=["tokenizer", "template"]
    )
    accepted(recipe(steps=steps, aspects=[start]))


@pytest.mark.parametrize(
    ("value", "changes", "line"),
    [
        ("reward", {"sampling": SAMPLING}, "no reward of step evaluation: set `reward`"),
        ("win_rate", {"sampling": SAMPLING}, "no win_rate of step evaluation: set `judge` or"),
        ("length_controlled_win_rate", {"sampling": SAMPLING}, "set `judge` or `reward`"),
        ("reward", {"sampling": SAMPLING, "judge": LEXICON}, "set `reward`"),
        ("best_of_n", {"sampling": SAMPLING, "reward": LEXICON}, "`sampling.samples_per_prompt`"),
        ("self_bleu", {"sampling": SAMPLING}, "set `sampling.samples_per_prompt` to 2 or more"),
        ("best_of_n", {"sampling": SAMPLING | {"samples_per_prompt": 2}}, "set `reward`"),
        ("kl", {}, "no kl of step evaluation: set `sampling`"),
        ("accuracy", {"sampling": SAMPLING, "preference": False}, "set `preference`"),
        ("log_ratio_accuracy", {"sampling": SAMPLING, "preference": False}, "set `preference`"),
        ("accuracy", {"runs": ["step:policy", "elsewhere"]}, "of one run: it evaluates several"),
    ],
)
def test_a_number_that_the_evaluation_does_not_make(
    value: str, changes: dict[str, Any], line: str
) -> None:
    measures = [{"name": "m", "step": "evaluation", "value": value}]
    steps = [policy_step(), evaluation_step(**changes)]
    assert line in refusal(recipe(steps=steps, measures=measures))


@pytest.mark.parametrize(
    ("measure", "line"),
    [
        ({"step": "policy"}, "`measures.0.step`: no step of `eval` is named policy"),
        ({"value": "reward", "source": "test"}, "`measures.0.source`: only of pairs"),
        ({"value": "happiness"}, "`measures.0.value`"),
    ],
)
def test_measures(measure: dict[str, Any], line: str) -> None:
    assert line in refusal(recipe(measures=[ACCURACY | measure]))


def test_every_confound_has_its_line() -> None:
    steps = [
        policy_step(data={"train": [{"path": "a.jsonl"}]}),
        evaluation_step(data=[{"path": "b.jsonl"}]),
    ]
    with pytest.raises(Exception, match="step policy trains on") as caught:
        plan_of(recipe(steps=steps, budget=None))
    assert len(str(caught.value).splitlines()) == 2


def rows(name: str, prompts: Sequence[str]) -> None:
    lines = [json.dumps({"prompt": p, "chosen": " good", "rejected": " bad"}) for p in prompts]
    Path(name).write_text("\n".join(lines) + "\n")


def test_prompts_that_are_trained_on_and_measured_on_are_refused() -> None:
    rows("a.jsonl", [f"a {i}" for i in range(4)])
    rows("test.jsonl", ["a 2", *(f"test {i}" for i in range(9))])
    line = refusal(recipe(aspects=[algorithm()]))
    assert "step policy trains on 1 of the 10 prompts of test.jsonl" in line
    assert "`decontaminate`" in line


def test_few_of_them_are_told_in_a_footnote() -> None:
    rows("a.jsonl", [f"a {i}" for i in range(4)])
    rows("test.jsonl", ["a 2", *(f"test {i}" for i in range(149))])
    (footnote,) = analyse(study_of(recipe(aspects=[algorithm()])))["footnotes"]
    assert footnote.startswith("Step policy trains on 1 of the 150 prompts of test.jsonl")


def test_shared_prompts_are_looked_for_once_for_what_files_hold() -> None:
    Path("out").mkdir()
    plan_of(recipe(aspects=[algorithm()]))
    kept = json.loads(Path("out/prompts.json").read_text())
    assert list(kept.values()) == [[0, 4]]
    rows("a.jsonl", ["test 0"])
    refusal(recipe(aspects=[algorithm()]))
    assert len(json.loads(Path("out/prompts.json").read_text())) == 2
