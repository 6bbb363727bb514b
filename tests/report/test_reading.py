"""Curves, notes and words that the report is made of."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

from palate.report import read_run, read_runs, words
from palate.report.curves import read_metrics, smooth, thin
from palate.report.notes import length_note
from palate.report.schema import Split
from palate.report.style import Styles
from synthetic_runs import training_run


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_later_line_of_a_step_counts_and_gaps_stay(tmp_path):
    rows = [{"step": s, "examples": 8 * s, "split": "train", "loss": 1.0 / s} for s in (1, 2, 3)]
    rows += [{"step": 2, "examples": 16, "split": "train", "loss": float("-inf")}]
    rows += [{"step": 3, "split": "eval", "loss": 0.25, "time": "now", "flag": True}]
    metrics = read_metrics(write_lines(tmp_path / "m.jsonl", rows))
    curve = metrics.train["loss"]
    assert curve.step.tolist() == [1, 2, 3] and curve.examples.tolist() == [8, 16, 24]
    assert math.isnan(curve.value[1]) and metrics.not_finite == {"loss": 1}
    assert metrics.eval["loss"].examples is None and metrics.best("loss").last() == 0.25
    assert not metrics.cut_off and metrics.unreadable == 0


def test_an_unfinished_line_is_cut_off_and_a_whole_one_without_newline_is_not(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    metrics = read_metrics(path)
    assert metrics.cut_off and metrics.lines == 1 and metrics.unreadable == 0
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n\xff\xfe\n{"step": 2, "loss": 0.5}')
    metrics = read_metrics(path)
    assert not metrics.cut_off and metrics.lines == 2 and metrics.unreadable == 1


def test_thinned_curves_keep_their_mean_and_their_gaps():
    y = np.sin(np.arange(100_000) / 9000)
    y[50_000:51_000] = np.nan
    x, thinned = thin(np.arange(100_000.0), y)
    assert len(x) == len(thinned) == 400
    assert np.nanmean(thinned) == pytest.approx(np.nanmean(y), abs=1e-3)
    assert 2 <= np.isnan(thinned).sum() <= 4
    assert thin(x, thinned)[0] is x


def test_running_mean_is_centred_and_leaves_constants_alone():
    assert smooth(np.ones(10)) is None
    y = np.full(80, 3.0)
    y[7] = np.nan
    mean = smooth(y)
    assert math.isnan(mean[7]) and np.allclose(np.delete(mean, 7), 3.0)
    line = np.arange(81.0)
    assert smooth(line)[40] == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("share", "n", "word"),
    [(0.71, 960, "longer"), (0.3, 960, "shorter"), (0.54, 960, None), (0.71, 10, None)],
)
def test_length_is_named_where_it_predicts_the_label(share, n, word):
    note = length_note(Split(pairs=n, longer_is_chosen=share))
    assert (note is None) if word is None else f"the {word} answer is the chosen one" in note


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [training_run(tmp_path / part / "dpo", "dpo", steps=6) for part in "ab"]
    assert [run.name for run in read_runs(paths)] == ["a/dpo", "b/dpo"]


def test_colours_are_by_loss_and_by_run_where_the_loss_is_one(tmp_path):
    names = ("dpo", "tdpo1", "tdpo2")
    runs = [read_run(training_run(tmp_path / name, name, steps=6)) for name in names]
    styles = Styles.of(runs)
    assert [styles.by_run[name].colour for name in names] == [0, 1, 2]
    again = [training_run(tmp_path / f"dpo{i}", "dpo", steps=6, seed=i) for i in range(2)]
    both = Styles.of([*runs, *map(read_run, again)]).by_run
    assert both["dpo"].colour == both["dpo0"].colour and both["dpo"].dash != both["dpo0"].dash
    alone = Styles.of([read_run(path) for path in again]).by_run
    assert alone["dpo0"].colour != alone["dpo1"].colour


def test_numbers_in_words():
    assert doctest.testmod(words).failed == 0
    assert words.number(-12.3456) == "\u221212.3" and words.number(None) == "\u2013"
    assert words.fixed(-0.001) == "0.00" and words.number(float("nan")) == "NaN"
    assert words.span((0.5, None)) == "" and words.span((0.61, 0.725), share=True) == "[61.0, 72.5]"
