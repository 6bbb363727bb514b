"""Alarms: each failure is seen, healthy logs are left alone, and a resumed run says the same."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from rich.console import Console

from palate.recipes.alarms import AlarmsRecipe, ThresholdsRecipe
from palate.store.records import AlarmRecord, read_lines
from palate.train.alarm_rules import RULES
from palate.train.alarms import Alarms, AlarmWatch, alarms_of
from palate.train.callbacks import figures
from palate.train.history import BEGINNING, LAST, PAST, RECENT, History
from synthetic_series import FAILURES, Line, failing, healthy

FROZEN = {
    "patience": 3,
    "errors": 3.0,
    "entropy": 0.1,
    "entropy_of_same": 0.5,
    "commonest": 0.5,
    "kl_growth": 5.0,
    "kl_from": 10.0,
    "kl_token": 1.0,
    "kl_far": 20.0,
    "length_growth": 2.0,
    "length_collapse": 0.33,
    "length_change_tokens": 8.0,
    "eos": 0.5,
    "eos_from": 0.3,
    "immediate_tokens": 2.0,
    "explained_variance": -1.0,
    "value_loss": 10.0,
    "ratio": 0.01,
    "zero_variance": 0.95,
    "mismatch_growth": 5.0,
    "mismatch_from": 0.01,
    "mismatch_most": 0.1,
    "component": 6.0,
    "component_change": 0.25,
}


def logged(n: int = 40, **figures: object) -> list[Line]:
    """Lines of constant figures, or of one value a line."""
    return [
        {"step": i + 1}
        | {
            name.replace("__", "/"): value[min(i, len(value) - 1)]  # type: ignore[index]
            if isinstance(value, list)
            else value
            for name, value in figures.items()
        }
        for i in range(n)
    ]


def names(lines: list[Line], limits: ThresholdsRecipe | None = None) -> list[str]:
    return [alarm.alarm for alarm in alarms_of(lines, limits)]


def test_thresholds_are_those_that_were_fixed() -> None:
    """What false alarms and detections were measured with; docs/online-alarms.md."""
    assert ThresholdsRecipe().model_dump() == FROZEN


@pytest.mark.parametrize("alarm", FAILURES)
def test_each_planted_failure_is_seen(alarm: str) -> None:
    assert FAILURES.keys() == RULES.keys()
    for seed in range(5):
        begun = [a for a in alarms_of(failing(alarm, seed)) if a.alarm == alarm]
        assert begun, f"seed {seed}"
        assert begun[0].seen and begun[0].advice == RULES[begun[0].alarm].advice  # type: ignore[index]


def test_healthy_logs_sound_no_alarm() -> None:
    """Fewer than one in twenty, of all kinds of run."""
    wrong = {seed: a for seed in range(70) if (a := names(healthy(seed)))}
    assert len(wrong) < 0.05 * 70, wrong


def test_an_alarm_does_not_depend_on_the_scale_of_the_reward() -> None:
    for alarm in ("entropy_collapse", "component_conflict"):
        lines = failing(alarm, 0)
        scaled = [dict(line) for line in lines]
        for line in scaled:
            for name in line:
                if name.startswith("reward"):
                    line[name] = line[name] * 1e4 - 3e3 * (name == "reward")
        first = next(a.step for a in alarms_of(lines) if a.alarm == alarm)
        assert next(a.step for a in alarms_of(scaled) if a.alarm == alarm) == first


def test_collapse_takes_a_reward_that_rises() -> None:
    fall = [2.0] * 10 + [0.1] * 30
    rise = [0.1 + 0.01 * (i % 3) for i in range(10)] + [0.8] * 30
    assert names(logged(entropy=fall, reward=rise)) == ["entropy_collapse"]
    assert names(logged(entropy=fall, reward=0.3)) == []
    assert names(logged(entropy=[2.0] * 10 + [0.6] * 30, reward=rise)) == []
    half = [2.0] * 10 + [0.6] * 30
    assert names(logged(entropy=half, reward=rise, samples__commonest=0.7)) == ["entropy_collapse"]
    # The estimate stands in where the exact entropy is not logged.
    lines = logged(entropy__sampled=fall, reward=rise)
    assert names(lines) == ["entropy_collapse"]
    assert "while the reward rose from 0.11 to 0.8" in alarms_of(lines)[0].seen


def test_kl_that_grows_steadily_does_not_explode() -> None:
    steady = [0.2 * i for i in range(200)]
    assert names(logged(200, kl__k1=steady, length__mean=100.0)) == []
    assert names(logged(200, kl__k1=[1.05**i - 1 for i in range(200)])) == ["kl_explosion"]
    # Far is far, however slowly it was reached; a short response gets there sooner.
    assert names(logged(200, kl__k1=steady, length__mean=10.0)) == ["kl_explosion"]
    assert names(logged(40, kl__exact=[0.0] * 9 + [30.0], kl__k1=0.0)) == ["kl_explosion"]


def test_lengths_and_ends_in_both_directions() -> None:
    assert names(logged(length__mean=[30.0] * 9 + [61.0])) == ["length_growth"]
    assert names(logged(length__mean=[30.0] * 9 + [59.0])) == []
    assert names(logged(length__mean=[3.0] * 9 + [9.0])) == []  # few tokens are no drift
    assert names(logged(length__mean=[60.0] * 9 + [19.0])) == ["length_collapse"]
    both = names(logged(length__mean=[60.0] * 9 + [1.5]))
    assert sorted(both) == ["immediate_eos", "length_collapse"]
    assert names(logged(length__mean=1.0)) == []
    assert names(logged(eos__rate=[0.9] * 9 + [0.4])) == ["eos_collapse"]
    assert names(logged(truncated__rate=[0.1] * 9 + [0.6])) == ["eos_collapse"]
    assert names(logged(eos__rate=[0.2] * 9 + [0.0])) == []  # hardly any ended before


def test_value_models() -> None:
    assert names(logged(value__explained_variance=[-3.0] * 20 + [0.3])) == []
    assert names(logged(60, value__explained_variance=-3.0)) == ["value_divergence"]
    worse = [0.3] * 20 + [-1.5]
    (alarm,) = alarms_of(logged(value__explained_variance=worse))
    assert (alarm.alarm, alarm.step) == ("value_divergence", 20 + 2 + 2)
    assert alarm.seen == "explained variance of the values 0.30 at best, -1.50 now"
    grows = [1.0] * 20 + [11.0]
    assert names(logged(value__loss=grows)) == ["value_divergence"]
    # Returns have grown, and the value model follows.
    assert names(logged(value__loss=grows, value__explained_variance=0.6)) == []


def test_a_ratio_that_is_not_one_is_said_at_once() -> None:
    (alarm,) = alarms_of(logged(ratio__first=[0.0] * 6 + [0.02] + [0.0] * 9))
    assert (alarm.alarm, alarm.step) == ("ratio_off", 7)
    assert names(logged(ratio__first=1e-4, ratio__max=3.0)) == []


def test_groups_engines_and_components() -> None:
    assert names(logged(groups__zero_variance=[0.5] * 9 + [1.0])) == ["no_variance"]
    assert names(logged(groups__zero_variance=[1.0, 0.9])) == []
    assert names(logged(mismatch__kl=[1e-3] * 9 + [0.02])) == ["mismatch"]
    assert names(logged(mismatch__kl=[1e-5] * 9 + [1e-3])) == []
    assert names(logged(mismatch__kl=0.2)) == ["mismatch"]
    up, down = [0.1] * 9 + [0.9], [0.8] * 9 + [0.2]
    lines = logged(reward__model=up, reward__length=down)
    assert (
        "reward/model from 0.1 to 0.9, while reward/length from 0.8 to 0.2"
        in alarms_of(lines)[0].seen
    )
    assert names(logged(reward__model=up, reward__length=0.8)) == []
    assert names(logged(reward__model=up, reward__std=down, reward__group_std=down)) == []


def test_alarms_begin_and_end() -> None:
    limits = ThresholdsRecipe(patience=2)
    alarms = Alarms(limits)
    values = [30.0] * 9 + [70.0] * 8 + [30.0] * 20
    lines = logged(len(values), length__mean=values)
    changes = [a for line in lines for a in alarms.add(line["step"], line)]
    assert [(a.state, a.step) for a in changes] == [("begins", 12), ("ends", 28)]
    assert alarms.active == set()
    # A single line is an outlier.
    assert names(logged(40, length__mean=[30.0] * 9 + [300.0] + [30.0])) == []


@pytest.mark.parametrize("alarm", ["entropy_collapse", "kl_explosion", "value_divergence"])
def test_a_resumed_watch_goes_on_as_it_was(alarm: str) -> None:
    lines = [x for x in failing(alarm, 1) if x["split"] == "train"]

    def heard(alarms: Alarms, part: list[Line]) -> list[AlarmRecord]:
        return [
            record
            for x in part
            for record in alarms.add(x["step"], {k: v for k, v in x.items() if type(v) is float})
        ]

    whole = Alarms()
    expected = heard(whole, lines)
    assert expected
    # Also one line before it begins, where its rule has held twice.
    for cut in (3, expected[0].step - 1, len(lines) - 2):
        first, second = Alarms(), Alarms()
        before = heard(first, lines[:cut])
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert before + heard(second, lines[cut:]) == expected
        assert second.state() == whole.state()


def test_the_history_is_bounded_and_knows_its_half() -> None:
    history = History()
    for i in range(5000):
        history.add({"x": float(i)})
    state = history.state()
    assert len(state["past"]) < 2 * PAST and len(state["last"]) == LAST
    assert history.then("x") == 2.0 and history.now("x") == 4998.0
    assert abs((history.halfway("x") or 0) - 2500) < 5000 / PAST
    low, high = history.extremes("x") or (0.0, 0.0)
    assert low < 100 and high > 4900
    assert history.now("y") is None and history.extremes("y") is None
    short = History()
    for _ in range(BEGINNING + RECENT - 1):
        short.add({"x": 1.0})
        assert short.then("x") is None
    short.add({"x": 1.0})
    assert short.change("x") == (1.0, 1.0, 0.0)


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def log_alarm(self, alarm: AlarmRecord) -> None:
        with (self.path / "alarms.jsonl").open("a") as file:
            file.write(json.dumps(alarm.document()) + "\n")


def test_the_watch_writes_says_and_stops(tmp_path: Path) -> None:
    said = io.StringIO()
    recipe = AlarmsRecipe(stop_on=("eos_collapse",))
    watch = AlarmWatch(Folder(tmp_path), recipe, Console(file=said, width=80))  # type: ignore[arg-type]
    loop = SimpleNamespace(step=0, should_stop=False)
    lines = logged(30, eos__rate=[0.9] * 9 + [0.1], length__mean=[30.0] * 8 + [90.0])
    for line in lines:
        loop.step = line["step"]
        watch.on_log(loop, "eval", {"eos/rate": 0.0})  # type: ignore[arg-type]
        watch.on_log(loop, "train", line)  # type: ignore[arg-type]
        if loop.should_stop:
            break
    assert loop.step == 13
    written = read_lines(tmp_path / "alarms.jsonl", AlarmRecord).records
    assert [(a.alarm, a.step, a.stops) for a in written] == [
        ("length_growth", 12, False),
        ("eos_collapse", 13, True),
    ]
    first, second = said.getvalue().splitlines()  # one line each, whatever the width
    assert first.startswith(
        "step 12, alarm: Responses grow long: mean length from 30.0 to 90.0 tokens. "
    )
    assert second.endswith("The run ends after a checkpoint (alarms.stop_on).")
    # Resumed while the alarm lasts, the run ends again.
    again = AlarmWatch(Folder(tmp_path), recipe, Console(file=io.StringIO()))  # type: ignore[arg-type]
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    loop = SimpleNamespace(step=14, should_stop=False)
    again.on_log(loop, "train", lines[13])  # type: ignore[arg-type]
    assert loop.should_stop


def test_recipes_name_alarms_that_there_are() -> None:
    with pytest.raises(ValidationError, match="entropy_collapse"):
        AlarmsRecipe.model_validate({"stop_on": ["entropy"]})
    with pytest.raises(ValidationError, match="twice"):
        AlarmsRecipe(stop_on=("mismatch", "mismatch"))
    with pytest.raises(ValidationError, match="above mismatch_most"):
        ThresholdsRecipe(mismatch_from=0.2)
    with pytest.raises(ValidationError, match="above entropy_of_same"):
        ThresholdsRecipe(entropy=0.6)
    loose = ThresholdsRecipe(length_growth=4.0)
    assert names(logged(length__mean=[30.0] * 9 + [61.0]), loose) == []


def test_the_line_that_people_watch() -> None:
    line = {"loss": 0.1, "reward": 0.25, "kl/k1": 3.0, "kl/k3": 3.5, "length/mean": 41.6}
    assert figures(line | {"entropy/sampled": 1.5, "eos/rate": 0.5}) == (
        "loss 0.1000  reward 0.250  KL 3.00  entropy 1.50  length 42  ended 50%"
    )
