"""Curves, notes and words that the report is made of."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

from palate.report import read_run, read_runs, words
from palate.report.curves import read_metrics, smooth, thin
from palate.report.length_notes import length_note, length_sentence
from palate.report.style import Styles
from palate.store.records import Split
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
    ("share", "n", "which", "verdict"),
    [
        (0.71, 960, "longer", "predicts"),
        (0.3, 960, "shorter", "predicts"),
        (0.65, 200, "longer", "predicts"),
        (0.54, 960, "longer", "tells little"),
        # Clear of one half, and not worth a word.
        (0.52, 10_000, "longer", "tells little"),
        (0.49, 400, "shorter", "tells little"),
        # Five of six, and an even share of as few: neither says anything.
        (5 / 6, 6, "longer", "too few"),
        (0.5, 6, "longer", "too few"),
        (0.71, 10, "longer", "too few"),
        (0.56, 150, "longer", "too few"),
        (0.0, 2, "shorter", "too few"),
    ],
)
def test_length_predicts_or_tells_little_or_the_pairs_are_too_few(share, n, which, verdict):
    split = Split(pairs=n, longer_is_chosen=share)
    decided, sentence = length_sentence(split)
    assert decided == verdict
    assert sentence.startswith(f"the {which} answer is the chosen one in ")
    end = {
        "predicts": ": length alone predicts the label",
        "tells little": ": length tells little about the label",
        "too few": ": too few to tell whether length predicts the label",
    }
    assert sentence.endswith(end[verdict])
    # Notes are of what was seen.
    assert length_note(split) == (sentence if verdict == "predicts" else None)


def test_the_sentence_about_length_has_the_interval_of_its_side():
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), by hand: 0.4365, 0.9699.
    _, sentence = length_sentence(Split(pairs=6, longer_is_chosen=1 / 6))
    assert "the shorter answer is the chosen one in 83% of 6 pairs (95% interval 44% to 97%)" in (
        sentence
    )
    for share, n in ((None, 6), (0.5, 0), (float("nan"), 6)):
        assert length_sentence(Split(pairs=n, longer_is_chosen=share)) is None


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
