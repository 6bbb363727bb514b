"""Recipes of runs: what variants, budgets and seeds write into them."""

from __future__ import annotations

from typing import Any

import pytest

from palate.study.documents import linked_step, linked_steps, split_key, with_links, within
from study_cases import (
    algorithm,
    aspect,
    data,
    evaluation_step,
    plan_of,
    policy_step,
    recipe,
    refusal,
    tuning,
    validating,
)


def shown(value: dict[str, Any], step: str = "policy") -> list[dict[str, Any]]:
    """Recipes of a step, run by run."""
    plan = plan_of(value)
    return [plan.stages[run.stages[step]].inputs["recipe"] for run in plan.compared]


def test_links() -> None:
    assert linked_step("step:policy/model") == linked_step("step:policy") == "policy"
    assert linked_step("policy") is None
    value = {"runs": ["step:a", {"path": "step:b/x/y"}], "text": "no step: at all", "n": 3}
    assert linked_steps(value) == {"a", "b"}
    assert with_links(value, {"a": "out/a-1", "b": "out/b-2"}) == {
        "runs": ["out/a-1", {"path": "out/b-2/x/y"}],
        "text": "no step: at all",
        "n": 3,
    }


def test_sections() -> None:
    assert within("policy.loss", "policy.loss") and within("policy.loss.beta", "policy.loss")
    assert not within("policy.loss_scale", "policy.loss")
    assert split_key("policy.loss.beta") == ("policy", "loss.beta")


def test_seeds_go_to_what_trains_and_to_steps_that_ask_for_them() -> None:
    assert [value["seed"] for value in shown(recipe())] == [0, 1] * 3
    assert {value["seed"] for value in shown(recipe(), "evaluation")} == {0}
    steps = [policy_step() | {"seeds": "fixed"}, evaluation_step() | {"seeds": "vary"}]
    assert {value["seed"] for value in shown(recipe(steps=steps))} == {0}
    assert [value["seed"] for value in shown(recipe(steps=steps), "evaluation")] == [0, 1] * 3


def test_the_budget_is_in_every_run() -> None:
    for value in shown(recipe(budget={"pairs": 3, "updates": 5})):
        assert value["train"]["max_steps"] == 5
        mixture = value["data"]["mixture"]
        assert (mixture["total"], mixture["unit"], mixture["weights"]) == (3, "pairs", "equal")
    for value in shown(recipe(budget={"tokens": 90})):
        assert value["train"]["max_steps"] is None
        assert (value["data"]["mixture"]["total"], value["data"]["mixture"]["unit"]) == (
            90,
            "tokens",
        )
    for value in shown(recipe(budget={"unmatched": True})):
        assert value["data"]["mixture"] is None and value["train"]["max_steps"] is None


def test_a_variant_starts_from_the_steps_recipe_and_not_from_another_variant() -> None:
    ipo = {"name": "ipo", "set": {"policy.loss": {"type": "ipo_sum", "beta": 0.3}}}
    value = recipe(aspects=[algorithm(ipo), data()], design={"type": "grid"})
    losses = [recipe["loss"] for recipe in shown(value)]
    assert [loss["type"] for loss in losses[::4]] == ["dpo", "tdpo2", "ipo_sum"]
    assert [loss["beta"] for loss in losses if loss["type"] == "ipo_sum"] == [0.3] * 4
    assert {loss["beta"] for loss in losses if loss["type"] == "dpo"} == {0.1}


def test_null_takes_a_section_out() -> None:
    simpo = {
        "name": "simpo",
        "set": {"policy.loss": {"type": "simpo"}},
        "coupled": {"policy.reference": None},
    }
    recipes = shown(recipe(aspects=[{"name": "algorithm", "variants": [{"name": "dpo"}, simpo]}]))
    assert [value["reference"] is None for value in recipes] == [False, False, True, True]


def setting(key: str, value: Any, **more: Any) -> dict[str, Any]:
    return recipe(aspects=[aspect("odd", {key: value})], **more)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (setting("policy.seed", 7), "`policy.seed` is set by the study: delete the key"),
        (setting("policy.output_dir", "x"), "`policy.output_dir` is set by the study"),
        (setting("policy.resume", True), "`policy.resume` is set by the study"),
        (setting("evaluation.seed", 7), "`evaluation.seed` is set by the study"),
        (
            setting("polcy.loss.beta", 1),
            "study.yaml, odd changed: `polcy.loss.beta`: no step is named polcy",
        ),
        (setting("policy", {}), "`policy`: write it as step.key"),
        (setting("policy.los.beta", 1), "`los`"),
        (setting("policy.loss.beta", "much"), "`loss.beta`"),
        (setting("policy.loss.beta", None), "`loss.beta`"),
        (setting("policy.data.train.1.limit", 2), "goes through a list of 1; items count from 0"),
        (setting("policy.loss.type.name", 2), "leads through 'dpo', which has no keys"),
        (
            setting("policy.train.max_steps", 9),
            "`budget.updates` says how many steps step policy takes",
        ),
        (
            setting("policy.data.mixture", {"total": 9}, budget={"pairs": 2}),
            "leave `take` and `total` out",
        ),
        (
            recipe(steps=[policy_step(train={"max_steps": 9}), evaluation_step()]),
            "leave `train.max_steps` out",
        ),
        (
            validating(aspects=[algorithm()], tuning=tuning(keys={"policy.seed": [1, 2]})),
            "study.yaml, tuning: `policy.seed` is set by the study",
        ),
    ],
)
def test_what_a_variant_may_not_write(value: dict[str, Any], line: str) -> None:
    assert line in refusal(value)
