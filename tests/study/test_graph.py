"""Keys of stages: what changes them, what does not, and which runs share which stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palate.errors import RecipeError
from palate.study import graph
from palate.study.graph import ordered
from palate.study.plan import Plan
from study_cases import (
    aspect,
    data,
    evaluation_step,
    keys_by_run,
    plan_of,
    policy_step,
    recipe,
    study_of,
    write_model,
    write_pairs,
)

DPO = {"name": "dpo"}
TDPO2 = {"name": "tdpo2", "set": {"policy.loss.type": "tdpo2"}}
IPO = {"name": "ipo", "set": {"policy.loss": {"type": "ipo_sum"}}}


def losses(*variants: dict[str, Any]) -> dict[str, Any]:
    return {"name": "algorithm", "variants": [*variants]}


GRID = recipe(aspects=[losses(DPO, TDPO2, IPO), data()], design={"type": "grid"})


def caches(plan: Plan) -> dict[tuple[str, int], str]:
    """(cell, seed) -> key of the reference cache that its run reads."""
    return {
        (run.cell.name, run.seed): need
        for run in plan.compared
        for need in plan.stages[run.stages["policy"]].needs
        if plan.stages[need].verb == graph.REFERENCE_CACHE
    }


def test_stages_are_distinct_and_each_stands_after_its_needs() -> None:
    plan = plan_of(GRID)
    keys = keys_by_run(plan)
    # 6 cells of 2 seeds, each with a policy and an evaluation of its own; 2 losses without KL and
    # 1 with, of 2 data sets: 4 caches.
    assert len(keys) == len(set(keys.values())) == 24
    assert len(plan.stages) == 24 + 4
    before: set[str] = set()
    for stage in ordered(plan.stages):
        assert set(stage.needs) <= before
        before.add(stage.key)
    for (cell, seed, step), key in keys.items():
        if step == "evaluation":
            assert plan.stages[key].needs == (keys[cell, seed, "policy"],)


def test_steps_that_no_variant_touches_are_there_once() -> None:
    first = {"name": "first", "verb": "sft", "recipe": {}}
    first["recipe"] = {"model": {"path": "base"}, "data": {"train": [{"path": "c.jsonl"}]}}
    policy = policy_step(model={"path": "step:first/model", "dtype": "float32"})
    plan = plan_of(GRID | {"steps": [first | {"seeds": "fixed"}, policy, evaluation_step()]})
    keys = {key for (_, _, step), key in keys_by_run(plan).items() if step == "first"}
    assert len(keys) == 1
    varied = plan_of(GRID | {"steps": [first, policy, evaluation_step()]})
    by_seed = {
        (seed, key) for (_, seed, step), key in keys_by_run(varied).items() if step == "first"
    }
    assert len(by_seed) == 2


def test_caches_are_shared_by_seeds_and_by_losses_of_the_same_needs() -> None:
    shared = caches(plan_of(GRID))
    for source in "ab":
        assert (
            len({shared[f"{loss}, {source}", seed] for loss in ("dpo", "ipo") for seed in (0, 1)})
            == 1
        )
        assert shared[f"tdpo2, {source}", 0] == shared[f"tdpo2, {source}", 1]
        assert shared[f"tdpo2, {source}", 0] != shared[f"dpo, {source}", 0]
    assert (
        len({shared[f"{loss}, {source}", 0] for loss in ("dpo", "tdpo2") for source in "ab"}) == 4
    )


def test_caches_are_not_shared_where_the_seed_draws_the_pairs() -> None:
    drawn = caches(plan_of(GRID | {"budget": {"pairs": 2, "updates": 3}}))
    assert drawn["dpo, a", 0] != drawn["dpo, a", 1]
    assert drawn["dpo, a", 0] == drawn["ipo, a", 0]


def test_caches_of_unpaired_items_are_their_own() -> None:
    kto = {"name": "kto", "set": {"policy.loss": {"type": "kto"}}}
    shared = caches(plan_of(GRID | {"aspects": [losses(DPO, kto), data()]}))
    assert shared["dpo, a", 0] == shared["dpo, a", 1]
    assert len({shared["dpo, a", 0], shared["kto, a", 0], shared["kto, a", 1]}) == 3
    drawn = {"aspects": [losses(DPO, kto), data()], "budget": {"pairs": 2}}
    shared = caches(plan_of(GRID | drawn))
    assert shared["dpo, a", 0] != shared["kto, a", 0]


def test_caches_are_of_the_rows_as_they_are_cut() -> None:
    longer = aspect("longer", {"policy.data.length.max_prompt_tokens": 9}, also_changes=["length"])
    shared = caches(plan_of(recipe(aspects=[longer])))
    assert shared["plain", 0] == shared["plain", 1] != shared["changed", 0]


def test_a_changed_variant_changes_its_own_stages_and_what_needs_them() -> None:
    before = keys_by_run(plan_of(GRID))
    changed = IPO | {"set": {"policy.loss": {"type": "ipo_sum", "beta": 0.3}}}
    after = keys_by_run(plan_of(GRID | {"aspects": [losses(DPO, TDPO2, changed), data()]}))
    for (cell, seed, step), key in before.items():
        assert (after[cell, seed, step] != key) == cell.startswith("ipo")


def test_neither_names_nor_order_of_variants_nor_more_of_them_change_a_key() -> None:
    before = keys_by_run(plan_of(GRID))
    turned = losses(IPO, DPO, TDPO2 | {"name": "tdpo2"}) | {"baseline": "dpo"}
    after = keys_by_run(plan_of(GRID | {"aspects": [turned, data()]}))
    assert before == after
    more = {"name": "c", "set": {"policy.data.train": [{"path": "c.jsonl"}]}}
    assert (
        before.items()
        < keys_by_run(plan_of(GRID | {"aspects": [losses(DPO, TDPO2, IPO), data(more)]})).items()
    )


def steps_changed(change: Callable[[], Any], value: dict[str, Any] = GRID) -> dict[str, set[str]]:
    """Step -> cells whose stages have other keys after a change."""
    before = keys_by_run(plan_of(value))
    replaced = change()
    after = keys_by_run(plan_of(replaced if isinstance(replaced, dict) else value))
    changed: dict[str, set[str]] = {"policy": set(), "evaluation": set()}
    for (cell, seed, step), key in before.items():
        if after[cell, seed, step] != key:
            changed[step].add(cell)
    return changed


ALL = {f"{loss}, {source}" for loss in ("dpo", "tdpo2", "ipo") for source in "ab"}
OF_B = {cell for cell in ALL if cell.endswith("b")}


@pytest.mark.parametrize(
    ("file", "text", "policies", "evaluations"),
    [
        ("b.jsonl", '{"prompt": "x", "chosen": "y", "rejected": "z"}\n', OF_B, OF_B),
        ("test.jsonl", '{"prompt": "x", "chosen": "y", "rejected": "z"}\n', set(), ALL),
        ("base/model.safetensors", "other weights", ALL, ALL),
        ("base/tokenizer_config.json", "another template", ALL, ALL),
        ("validation.jsonl", "nothing reads it", set(), set()),
    ],
)
def test_content_of_what_is_read_is_part_of_the_key(
    file: str, text: str, policies: set[str], evaluations: set[str]
) -> None:
    changed = steps_changed(lambda: Path(file).write_text(text))
    assert changed == {"policy": policies, "evaluation": evaluations}


def test_a_template_of_its_own_file_is_part_of_the_key() -> None:
    Path("chat.jinja").write_text("{{ messages }}")
    model = {"path": "base", "dtype": "float32", "chat_template": "chat.jinja"}
    value = GRID | {"steps": [policy_step(model=model), evaluation_step()]}
    changed = steps_changed(lambda: Path("chat.jinja").write_text("<{{ messages }}>"), value)
    assert changed["policy"] == ALL


def test_a_touched_file_of_the_same_content_changes_nothing() -> None:
    assert steps_changed(lambda: os.utime("b.jsonl", (1, 1))) == {
        "policy": set(),
        "evaluation": set(),
    }


def test_a_key_of_a_recipe_is_part_of_the_key() -> None:
    longer = policy_step(train={"learning_rate": 1e-3})
    changed = steps_changed(lambda: GRID | {"steps": [longer, evaluation_step()]})
    assert changed == {"policy": ALL, "evaluation": ALL}
    asked = evaluation_step(confidence=0.9)
    changed = steps_changed(lambda: GRID | {"steps": [policy_step(), asked]})
    assert changed == {"policy": set(), "evaluation": ALL}


@pytest.mark.parametrize(
    "changed",
    [
        GRID | {"output_dir": "a/nested/place"},
        GRID | {"output_dir": "."},
        GRID | {"output_dir": "a folder with spaces"},
        GRID | {"output_dir": "./out/../out"},
        GRID | {"seeds": [1, 0]},
        GRID | {"steps": [policy_step(), evaluation_step(results_dir="elsewhere")]},
        GRID
        | {
            "steps": [
                policy_step(reference={"kind": "cache", "cache_dir": "caches"}),
                evaluation_step(),
            ]
        },
    ],
    ids=["nested", "here", "spaces", "dots", "seeds", "results_dir", "cache_dir"],
)
def test_where_things_are_written_is_not_part_of_a_key(changed: dict[str, Any]) -> None:
    assert steps_changed(lambda: changed) == {"policy": set(), "evaluation": set()}


def test_an_absolute_folder_gives_the_keys_of_a_relative_one(tmp_path: Path) -> None:
    absolute = GRID | {"output_dir": str(tmp_path / "somewhere")}
    assert steps_changed(lambda: absolute) == {"policy": set(), "evaluation": set()}


@pytest.mark.parametrize("place", ["out", "."])
def test_keys_stay_when_stages_are_there(place: str) -> None:
    value = GRID | {"output_dir": place}

    def fill() -> None:
        for key in plan_of(value).stages:
            path = study_of(value).root / key
            path.mkdir(parents=True)
            (path / "weights").write_text(key)

    assert steps_changed(fill, value) == {"policy": set(), "evaluation": set()}


def test_data_in_the_folder_of_the_study_are_told_by_their_content() -> None:
    Path("out").mkdir()
    shutil.copy("a.jsonl", "out/a.jsonl")
    value = GRID | {
        "steps": [policy_step(data={"train": [{"path": "out/a.jsonl"}]}), evaluation_step()]
    }
    changed = steps_changed(lambda: write_pairs(Path("out/a.jsonl"), "new"), value)
    assert changed["policy"] == ALL - OF_B


def test_another_version_of_the_code_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = steps_changed(lambda: monkeypatch.setattr(graph, "VERSION", graph.VERSION + 1))
    assert changed == {"policy": ALL, "evaluation": ALL}
    changed = steps_changed(lambda: monkeypatch.setattr(graph, "__version__", "9.9.9"))
    assert changed == {"policy": ALL, "evaluation": ALL}


def test_models_that_judge_the_training_data_are_told_by_their_content() -> None:
    write_model(Path("judge"))
    curate = [
        {
            "step": "difficulty",
            "scores": {"type": "log_ratio", "policy": "judge"},
            "field": "margin_of_judge",
            "buckets": 2,
        }
    ]
    pairs = {
        "name": "pairs",
        "verb": "data build",
        "recipe": {"sources": [{"path": "a.jsonl"}], "curate": curate},
    }
    value = recipe(
        steps=[pairs, policy_step(data={"train": [{"path": "step:pairs"}]}), evaluation_step()],
        aspects=[losses(DPO, TDPO2)],
    )
    before = keys_by_run(plan_of(value))
    Path("judge/model.safetensors").write_text("others")
    after = keys_by_run(plan_of(value))
    assert all(after[place] != key for place, key in before.items())


def test_models_of_the_hub_are_told_by_name_and_revision() -> None:
    hub = {"path": "nobody/nothing", "dtype": "float32"}
    value = GRID | {"steps": [policy_step(model=hub), evaluation_step()]}
    newer = GRID | {"steps": [policy_step(model=hub | {"revision": "v2"}), evaluation_step()]}
    assert steps_changed(lambda: newer, value)["policy"] == ALL


def test_two_steps_of_one_recipe_are_two_stages() -> None:
    again = evaluation_step("again")
    measures = [
        {"name": step, "step": step, "value": "accuracy"} for step in ("evaluation", "again")
    ]
    plan = plan_of(recipe(steps=[policy_step(), evaluation_step(), again], measures=measures))
    run = plan.compared[0]
    assert run.stages["evaluation"].partition("-")[2] != ""
    assert run.stages["evaluation"] != run.stages["again"]


@pytest.mark.parametrize("step", ["nowhere", "policy", "evaluation"])
def test_a_link_to_no_earlier_step_is_refused(step: str) -> None:
    train = [{"path": f"step:{step}"}]
    value = recipe(steps=[policy_step(data={"train": train}), evaluation_step()])
    with pytest.raises(RecipeError) as caught:
        plan_of(value)
    line = f"study.yaml, step policy: `step:{step}`: no step before this one is named {step}"
    assert str(caught.value) == line


def test_values_that_are_tuned_may_link_to_steps() -> None:
    from study_cases import tuning, validating

    sft = {
        "verb": "sft",
        "recipe": {"model": {"path": "base"}, "data": {"train": [{"path": "c.jsonl"}]}},
    }
    longer = {"verb": "sft", "recipe": sft["recipe"] | {"train": {"learning_rate": 1e-3}}}
    keys = {"policy.model.path": ["step:first/model", "step:second/model"]}
    value = validating(aspects=[losses(DPO, TDPO2)], tuning=tuning(keys=keys))
    value["steps"] = [{"name": "first"} | sft, {"name": "second"} | longer, *value["steps"]]
    trials = plan_of(value).runs
    tried = {
        "name": "third",
        "tune": {"policy.model.path": ["step:first/model", "step:second/model"]},
    }
    value["aspects"] = [losses(DPO, tried)]
    value["tuning"] = tuning(trials=2, keys={"policy.train.learning_rate": [1e-5, 1e-4]})
    assert {"first", "second"} <= {step for run in plan_of(value).runs for step in run.stages}
    starts = {plan_stage for run in trials for plan_stage in run.stages}
    assert {"first", "second"} <= starts


def test_a_variant_of_an_item_of_a_list() -> None:
    limited = aspect("size", {"policy.data.train.0.limit": 2})
    plan = plan_of(recipe(aspects=[limited]))
    limits = [
        plan.stages[run.stages["policy"]].inputs["recipe"]["data"]["train"][0]["limit"]
        for run in plan.compared
    ]
    assert limits == [None, None, 2, 2]
