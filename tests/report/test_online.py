"""The report of online learning: curves with alarms marked, rollouts, samples; escaped, and
tolerant of what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palate.recipes.alarms import AlarmName
from palate.report import rl_panels, write_report
from palate.report.panels import metric_groups
from palate.report.reader import SHOWN_ROLLOUTS, read_run, read_runs
from palate.report.rl_alarms import alarms_of
from palate.report.rl_panels import ALARM_CURVES, GROUPS, TITLES, marks_alarm, title_of
from palate.report.rl_views import online_views
from palate.report.style import Styles
from palate.report.tables import recipe_differences
from palate.report.words import DASH
from palate.store.pictures import PictureBudget
from palate.store.records import AlarmRecord
from palate.store.rollouts import read_rollout, rollout_files, write_rollout
from palate.train.alarm_rules import RULES
from synthetic_runs import PICTURE, evaluation_run, online_run, training_run

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> \x00"
METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def collapse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return online_run(tmp_path_factory.mktemp("online") / "collapse", "entropy_collapse")


@pytest.fixture(scope="module")
def page(collapse: Path) -> str:
    return write_report([collapse]).read_text()


def few_curves(run: Path) -> Path:
    """The run with the mean reward as its only curve: figures take most of a report's time."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{k: line[k] for k in ("step", "split", "reward")} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return run


def text_of(page: str) -> str:
    without = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def test_the_page_says_what_ran_and_what_went_wrong(page: str) -> None:
    text = text_of(page)
    assert "Online learning with GRPO (KL 0.05) from gemma-3-270m (LoRA) on 512 prompts." in text
    assert "Alarms sounded, see below: the policy collapses to one answer" in text
    assert "of the responses are one and the same text, while the reward rose" in text
    assert "<code>kl.coefficient</code>" in page
    assert "12 of 20 rollouts, evenly over the run" in text
    assert "First rollout" in text and "Middle rollout" in text and "Last rollout" in text
    assert "the annotator" not in text  # what is said of pairs
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_alarms_are_marked_at_their_step_in_the_curves_they_are_about(
    collapse: Path, page: str
) -> None:
    runs = read_runs([collapse])
    styles = Styles.of(runs)
    alarms = alarms_of(runs, styles)
    first = next(a for a in runs[0].alarms if a.state == "begins")
    assert (alarms[0].number, alarms[0].step, alarms[0].style) == (1, first.step, None)
    marked = {
        panel.title: [(mark.step, mark.label) for mark in panel.marks]
        for group in metric_groups(runs, styles, alarms)
        for panel in group.panels
    }
    entropy = marked["Entropy, from sampled tokens"]
    assert entropy == [(first.step, "1")] == marked["Commonest response"]
    assert marked["Length, mean"] == [] == marked["Reward: gold"]
    # Drawn: as many labels as there are marks, at the same place of every axis.
    figure = re.search(r"Entropy, from sampled tokens</figcaption>(.*?)</figure>", page, re.DOTALL)
    assert figure is not None and figure[1].count("stroke-dasharray") == 1


def test_every_alarm_has_curves_and_every_curve_a_line_in_the_docs() -> None:
    assert set(ALARM_CURVES) == set(RULES) == set(AlarmName.__args__)  # type: ignore[attr-defined]
    documented = METRICS.read_text()
    members = [name for *_, names in GROUPS for name in names]
    assert len(members) == len(set(members))
    for name in members:
        assert f"`{name.replace('*', '')}" in documented, name
        assert name.endswith("*") or name in TITLES or name in rl_panels.SHARED, name
    assert title_of("reward/helpful") == ("Reward: helpful", "reward", None)
    assert title_of("loss") is None
    assert marks_alarm("component_conflict", "reward/helpful")
    assert not marks_alarm("component_conflict", "reward/std")
    assert not marks_alarm("an_alarm_of_a_later_version", "reward")


def test_several_runs_tell_their_alarms_apart(tmp_path: Path) -> None:
    ppo = few_curves(online_run(tmp_path / "ppo", "value_divergence"))
    collapse = few_curves(online_run(tmp_path / "collapse", "entropy_collapse"))
    offline = training_run(tmp_path / "dpo", "dpo", steps=6)
    runs = read_runs([collapse, ppo, offline])
    alarms = alarms_of(runs, Styles.of(runs))
    assert [a.number for a in alarms] == list(range(1, len(alarms) + 1))
    assert {a.run for a in alarms} == {"collapse", "ppo"}
    assert all(a.style is not None for a in alarms)
    text = text_of(write_report([collapse, ppo, offline], tmp_path / "all.html").read_text())
    assert "collapse: The policy collapses" in text and "ppo: The value model diverges" in text
    assert "Online learning with GRPO (KL 0.05) and PPO (KL 0.05) from" in text
    assert "Preference tuning with DPO (β 0.1) from" in text


def test_an_alarm_that_comes_and_goes_is_listed_once(tmp_path: Path) -> None:
    run = few_curves(online_run(tmp_path / "run"))
    lines = [
        AlarmRecord(step=10, alarm="mismatch", title="Apart", seen="far", stops=True),
        AlarmRecord(step=30, alarm="mismatch", state="ends"),
        AlarmRecord(step=40, alarm="mismatch", title="Apart", seen="farther"),
        AlarmRecord(step=60, alarm="mismatch", state="ends"),
        AlarmRecord(step=70, alarm="new_in_a_later_version", seen="something"),
    ]
    (run / "alarms.jsonl").write_text(
        "".join(json.dumps(line.document()) + "\n" for line in lines) + '{"step": 7'
    )
    text = text_of(write_report([run]).read_text())
    assert "From step 10 to 60, 2 times: far. It ended the run." in text
    assert "new_in_a_later_version" in text
    assert "The last line of alarms.jsonl is cut off" in text


def test_samples_are_the_first_prompts_with_their_best_and_worst(collapse: Path) -> None:
    runs = read_runs([collapse])
    (view,) = online_views(runs, Styles.of(runs), PictureBudget())
    assert [line.rollout for line in view.lines][:: SHOWN_ROLLOUTS - 1] == [0, 19]
    assert (view.of, len(view.lines)) == (20, SHOWN_ROLLOUTS)
    rows = read_rollout(rollout_files(collapse)[0])
    scores = [row.score for row in rows if row.prompt == "p0" and row.score is not None]
    best, worst = view.samples[0].prompts[0].responses
    assert (best.role, best.score) == ("best", max(scores))
    assert (worst.role, worst.score) == ("worst", min(scores))
    line = view.lines[0]
    known = [row.score for row in rows if row.score is not None]
    assert line.score == pytest.approx(np.mean(known))
    assert (line.low, line.high, line.dropped) == (min(known), max(known), {"unscored": 1})
    texts = [row.text for row in rows]
    assert line.distinct == len(set(texts)) / 16
    assert line.commonest == max(map(texts.count, texts)) / 16


def test_texts_are_escaped_and_images_shown(tmp_path: Path) -> None:
    run = few_curves(online_run(tmp_path / "run", images=True))
    rows = [
        replace(row, text=HOSTILE, prompt_text=HOSTILE, source=HOSTILE, parts={HOSTILE: 1.0})
        for row in read_rollout(rollout_files(run)[0])
    ]
    rows[0] = replace(rows[0], score=None, reason=HOSTILE, dropped=HOSTILE)
    write_rollout(run, rows)
    alarm = AlarmRecord(step=9, alarm=HOSTILE, title=HOSTILE, seen=HOSTILE, advice=HOSTILE)
    (run / "alarms.jsonl").write_text(json.dumps(alarm.document()) + "\n")
    page = write_report([run]).read_text()
    assert "<script" not in page and "onerror=alert(1)>" not in page and "\0" not in page
    assert page.count("&lt;script&gt;") > 10
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) == 9 and all(str(PICTURE.url) in image for image in images)


def test_equal_scores_and_none_are_said(tmp_path: Path) -> None:
    run = few_curves(online_run(tmp_path / "run"))
    rows = read_rollout(rollout_files(run)[0])
    write_rollout(run, [replace(r, score=None if r.prompt == "p1" else 0.5) for r in rows])
    runs = read_runs([run])
    (view,) = online_views(runs, Styles.of(runs), PictureBudget())
    roles = [[r.role for r in prompt.responses] for prompt in view.samples[0].prompts]
    assert roles == [["one of equal scores"], ["without a score"], ["one of equal scores"]]
    write_rollout(run, [replace(row, score=None) for row in rows])
    assert "Rollouts" in text_of(write_report([run]).read_text())


def test_what_is_missing_or_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    run = few_curves(online_run(tmp_path / "run", "eos_collapse"))
    path = rollout_files(run)[0]
    path.write_bytes(path.read_bytes()[:200])
    read = read_run(run)
    assert 0 not in read.rollouts and len(read.rollouts) == SHOWN_ROLLOUTS - 1
    text = text_of(write_report([run]).read_text())
    assert "Rollouts/000000.parquet is left out: damaged: " in text
    for file in rollout_files(run).values():
        file.unlink()
    (run / "alarms.jsonl").unlink()
    page = write_report([run]).read_text()
    assert 'id="rollouts"' not in page and 'id="alarms"' not in page
    assert 'id="curves"' in page


def test_a_run_with_a_server_says_that_it_is_not_exact(tmp_path: Path) -> None:
    run = few_curves(online_run(tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("type: local", "type: server"))
    text = text_of(write_report([run]).read_text())
    assert (
        "A server wrote the responses: the run cannot be repeated, nor resumed, to the bit" in text
    )


def test_policies_of_online_runs_stand_on_the_frontier(tmp_path: Path) -> None:
    online = few_curves(online_run(tmp_path / "grpo"))
    dpo = training_run(tmp_path / "dpo", "dpo", steps=6)
    folder = evaluation_run(tmp_path / "evaluation", [dpo])
    record = json.loads((folder / "evaluation.json").read_text())
    for policy in record["policies"][1:3]:
        policy |= {"label": "grpo", "loss": "grpo", "run": str(online), "beta": 0.05}
    (folder / "evaluation.json").write_text(json.dumps(record))
    text = text_of(write_report([online, dpo, folder], tmp_path / "all.html").read_text())
    assert "GRPO" in text and "Reward against distance" in text
    # Each kind of training has a sentence of its own, with its own noun.
    assert "Online learning with GRPO (KL 0.05)" in text
    assert "Preference tuning with DPO" in text and "pairs" in text
    assert "The runs read different data" not in text


def test_recipes_of_two_verbs_are_compared_where_both_or_several_of_one_have_a_key(
    tmp_path: Path,
) -> None:
    runs = [
        online_run(tmp_path / "grpo"),
        online_run(tmp_path / "ppo", "value_divergence"),
        training_run(tmp_path / "dpo", "dpo", steps=6),
    ]
    rows = {row.item: row.values for row in recipe_differences(read_runs(runs))}
    # What tune alone has, or rl alone in all its runs alike, is no difference.
    assert not {"loss.type", "data.train.0.path", "kl.coefficient", "kl.form"} & set(rows)
    assert rows["algorithm.type"] == ("grpo", "ppo", DASH)
    assert rows["model.path"][0] == rows["model.path"][1] != rows["model.path"][2]
