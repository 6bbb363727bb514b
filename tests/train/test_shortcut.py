"""Weights by a text-only model's scores: whose they are, what they come to, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.items import PlacedImage
from palate.errors import DataError, RecipeError
from palate.evaluate.reward.score import score_files
from palate.losses import LossOutput, apply_weight
from palate.recipes.reward import RewardRecipe, ShortcutRecipe
from palate.recipes.schema import DataRecipe
from palate.recipes.serving import ScoreRecipe
from palate.store.files import read_json
from palate.train import reward
from palate.train.shortcut import with_shortcut_weights
from tiny_chat import byte_tokenizer
from tiny_rewards import log_of, recipe
from tiny_runs import lines, write_rows


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")


def pair(i: int, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"{i} q: ", "chosen": f"red {i}", "rejected": f"cat {i}"}
    return row | {"tie": False, "source": "s", "id": f"row {i}"} | more


def line(i: int, response: int, score: float | None, **more: Any) -> dict[str, Any]:
    return {"id": f"row {i}", "source": "s", "row": i, "response": response, "score": score} | more


def built(folder: Path, rows: list[Any], **data: Any) -> Dataset:
    write_rows(folder / "rows.jsonl", rows)
    document = {"train": [{"path": str(folder / "rows.jsonl")}]} | data
    recipe = DataRecipe.model_validate(document)
    return build(recipe, Encoder(byte_tokenizer(), "plain"), kind="pair", seed=0, ties=True)


def weighted(folder: Path, data: Dataset, scores: list[Any], **more: Any) -> Dataset:
    write_rows(folder / "scores.jsonl", scores)
    shortcut = ShortcutRecipe.model_validate({"scores": str(folder / "scores.jsonl")} | more)
    return with_shortcut_weights(data, shortcut)


MARGINS = (2.0, -1.0, 0.5, 0.0)
SCORES = [line(i, r, 0.25 + (m if r == 0 else 0.0)) for i, m in enumerate(MARGINS) for r in (1, 0)]


def test_pairs_that_text_gets_wrong_count_more(tmp_path: Path) -> None:
    tie = pair(9, tie=True)
    data = built(tmp_path, [*(pair(i) for i in range(4)), tie], pairing={"ties": "as_ties"})
    # Rows that are not trained on may be in the file too, in any order.
    after = weighted(tmp_path, data, [line(7, 0, 1.0), *SCORES[::-1]], temperature=0.5)
    raw = [1 / (1 + math.exp(m / 0.5)) for m in MARGINS]
    want = {f"row {i}": 4 * value / sum(raw) for i, value in enumerate(raw)} | {"row 9": 1.0}
    assert {item.id: item.weight for item in after.train} == pytest.approx(want)
    assert max(want, key=want.__getitem__) == "row 1"
    assert all(item.weight == 1.0 for item in data.train)
    report = after.report["shortcut"]
    assert (report["pairs"], report["same_text"], report["ties"]) == (4, 0, 1)
    assert report["text_accuracy"] == (2 + 0.5) / 4
    assert report["weight"]["max"] == pytest.approx(want["row 1"])


def test_one_answer_under_two_images_needs_no_score(tmp_path: Path) -> None:
    data = built(tmp_path, [pair(0), pair(1)])
    item = data.train[1]
    own = replace(item.prompts[0], images=(PlacedImage(0, 1, "a"),))
    shown = replace(item.prompts[0], images=(PlacedImage(0, 1, "b"),))
    contrast = replace(
        item, id="row 1/image", prompts=(own, shown), responses=(item.responses[0],) * 2
    )
    data = replace(data, train=[data.train[0], contrast])
    after = weighted(tmp_path, data, [line(0, 0, 3.0), line(0, 1, 0.0)])
    text, half = 1 / (1 + math.exp(3.0)), 0.5
    assert [item.weight for item in after.train] == pytest.approx(
        [2 * text / (text + half), 2 * half / (text + half)]
    )
    assert after.report["shortcut"]["same_text"] == 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([line(i, 0, 1.0, source="t") for i in range(4)], r"other data \(sources: t; here: s\)"),
        ([], r"other data \(sources: none"),
        (SCORES[2:], r"1 of 4 training pairs are not in it, the first is 'row 0' of 's'"),
        ([*SCORES[:7], line(3, 0, None, reason="images")], r"a response of 'row 3' has no score"),
        ([*SCORES, line(2, 2, 1.0)], r"3 responses of 'row 2', which is a pair"),
        ([*SCORES, line(2, 0, 1.0)], r"row 9: response 0 of 'row 2' twice"),
        ([{"id": "row 0", "score": 1.0}], r"row 1: no line of the scores.jsonl"),
        ([line(0, 0, True)], r"row 1: no line of the scores.jsonl"),
        ([3], r"row 1: no line of the scores.jsonl"),
    ],
)
def test_scores_of_something_else_are_refused(tmp_path: Path, scores: Any, words: str) -> None:
    data = built(tmp_path, [pair(i) for i in range(4)])
    with pytest.raises(DataError, match=words) as error:
        weighted(tmp_path, data, scores)
    assert "scores.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    data = built(tmp_path, [pair(0)])
    (tmp_path / "scores.parquet").write_bytes(b"PAR1\xff\xfe")
    for name in ("absent.jsonl", "scores.parquet"):
        with pytest.raises(DataError, match=f"{name}.*`shortcut.scores` takes the scores.jsonl"):
            with_shortcut_weights(data, ShortcutRecipe(scores=tmp_path / name))


def test_pairs_made_of_ratings_are_refused(tmp_path: Path) -> None:
    """Which of the file's responses was chosen is not known: the first may be the worse one."""
    rated = {"prompt": "q", "responses": ["red", "blue"], "rankings": [2, 1]}
    data = built(tmp_path, [rated], pairing={"rejected": "worst"})
    with pytest.raises(RecipeError, match="`shortcut`: 'rows' holds ratings"):
        weighted(tmp_path, data, SCORES)


def test_a_run_weights_its_loss_by_the_scores_of_palate_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a text-only model over its file of scores to the loss of the next one."""
    first = recipe(tmp_path, out="text", n=8, train={"batch_size_pairs": 8, "max_steps": 2})
    reward(first, quiet=True)
    rows = tmp_path / "rows8.jsonl"
    document = {
        "output_dir": str(tmp_path / "scores"),
        "scorer": {"type": "model", "path": str(tmp_path / "text" / "model")},
        "data": [{"path": str(rows)}],
    }
    scores = score_files(ScoreRecipe.model_validate(document)).scores
    values = {(s["id"], s["response"]): s["score"] for s in lines(scores)}
    margins = [values[id, 0] - values[id, 1] for id in sorted({id for id, _ in values})]
    # Of a temperature at which the model of two steps is sure enough.
    spread = max(map(abs, margins))
    one_step = {"batch_size_pairs": 8, "micro_batch_size_pairs": 8, "max_steps": 1}
    again = recipe(
        tmp_path,
        out="weighted",
        n=8,
        train=one_step,
        shortcut={"scores": str(scores), "temperature": spread / 4},
    )
    seen: list[tuple[Any, Any]] = []

    def seeing(output: LossOutput, weight: Any) -> LossOutput:
        seen.append((output.terms[0].losses.tolist(), weight.tolist()))
        return apply_weight(output, weight)

    with monkeypatch.context() as patch:
        patch.setattr("palate.train.objectives.reward.apply_weight", seeing)
        reward(again, quiet=True)
    plain = recipe(tmp_path, out="plain", n=8, train=one_step)
    reward(plain, quiet=True)
    raw = [1 / (1 + math.exp(4 * m / spread)) for m in margins]
    want = sorted(8 * value / sum(raw) for value in raw)
    losses, weights = seen[0]
    assert sorted(weights) == pytest.approx(want, rel=1e-5) and want[-1] > 2 * want[0]
    before, after = (log_of(tmp_path / name)[0] for name in ("plain", "weighted"))
    assert before["accuracy"] == after["accuracy"]
    assert before["loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)
    loss = sum(x * weight for x, weight in zip(losses, weights, strict=True)) / 8
    assert after["loss"] == pytest.approx(loss, rel=1e-5) and after["loss"] != before["loss"]
    # Held-out pairs have no weight.
    held_losses, held_weights = seen[-1]
    assert len(held_losses) == 7 and set(held_weights) == {1.0}
    report = read_json(tmp_path / "weighted" / "data.json")["shortcut"]
    assert (report["pairs"], report["scores"]) == (8, str(scores))


def test_settings_that_contradict_it_are_refused(tmp_path: Path) -> None:
    document = json.loads(recipe(tmp_path).model_dump_json()) | {"shortcut": {"scores": "s.jsonl"}}
    kept = document | {"data": document["data"] | {"pairing": {"ties": "keep"}}}
    lists = document | {"loss": {"type": "plackett_luce"}}
    for values, words in ((kept, "drawn by chance"), (lists, "plackett_luce takes lists")):
        with pytest.raises(ValueError, match=words):
            RewardRecipe.model_validate(values)
