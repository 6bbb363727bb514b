"""What data says of its labels, what a loss asks of them, and what can be learnt of ties alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from palate.errors import DataError, PalateError, RecipeError
from palate.models.reward_files import load_reward_model
from palate.train import reward
from tiny_rewards import log_of, recipe
from tiny_runs import WORDS, write_rows


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.report.write_report", lambda runs: runs[0] / "report.html")


def pair(i: int, **more: Any) -> dict[str, Any]:
    """As `palate data build` writes them."""
    own = {"prompt": f"{i} q: ", "chosen": "red blue", "rejected": f"cat dog {i}"}
    return own | {"tie": False, "source": "s", "id": f"row {i}"} | more


def ranked(i: int, ranks: list[int]) -> dict[str, Any]:
    said = [f"{word} {i}" for word in WORDS[: len(ranks)]]
    return {"prompt": f"{i} q: ", "responses": said, "rankings": ranks}


def data(folder: Path, rows: list[Any], held: list[Any] | None = None, **pairing: Any) -> Any:
    write_rows(folder / "train.jsonl", rows)
    found: dict[str, Any] = {"train": [{"path": str(folder / "train.jsonl")}]}
    if held is not None:
        write_rows(folder / "own.jsonl", held)
        found["eval"] = [{"path": str(folder / "own.jsonl")}]
    return found | ({"pairing": pairing} if pairing else {})


@pytest.mark.parametrize(
    "loss, rows, error, words",
    [
        (
            {"type": "bradley_terry", "margin": True},
            [pair(0), pair(1, margin=None)],
            RecipeError,
            "no pair .* has a margin",
        ),
        (
            {"type": "bradley_terry", "soft_labels": True},
            [pair(0, margin=1.0)],
            RecipeError,
            "no pair .* has votes",
        ),
        (
            {"type": "plackett_luce"},
            [ranked(0, [1, 1, 1]), ranked(1, [2, 2])],
            DataError,
            "equal ranks alone",
        ),
    ],
    ids=["margin", "votes", "ranks"],
)
def test_a_loss_that_asks_for_what_is_not_there_is_refused(
    loss: Any, rows: list[Any], error: type[PalateError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        reward(recipe(tmp_path, data=data(tmp_path, rows), loss=loss), quiet=True)


def test_labels_are_counted(tmp_path: Path) -> None:
    rows = [pair(0, margin=1.5), pair(1, margin=-2.0), pair(2), pair(3, tie=True)]
    own = data(tmp_path, rows, [pair(9)], ties="as_ties")
    run = reward(
        recipe(tmp_path, data=own, loss={"type": "davidson", "margin": True}), quiet=True
    ).path
    document = json.loads((run / "data.json").read_text())
    assert document["train"]["labels"] == {"ties": 1, "margins": 2, "votes": 0}
    assert document["eval"]["labels"] == {"ties": 0, "margins": 0, "votes": 0}
    lists = data(tmp_path, [ranked(0, [1, 2, 2]), ranked(1, [1, 1]), ranked(2, [2, 1])])
    settings: dict[str, Any] = {"loss": {"type": "plackett_luce"}, "data": lists}
    run = reward(recipe(tmp_path, out="lists", **settings), quiet=True).path
    assert json.loads((run / "data.json").read_text())["train"]["labels"] == {"undecided": 1}


@pytest.mark.parametrize("loss", ["bradley_terry", "rao_kupper", "davidson", "plackett_luce"])
@pytest.mark.parametrize("heads", [1, 2])
def test_ties_alone(loss: str, heads: int, tmp_path: Path) -> None:
    """They pull rewards together; there is nothing to be right about, and no accuracy is told."""
    lists = loss == "plackett_luce"
    rows = [ranked(i, [1, 1, 1]) if lists else pair(i, tie=True) for i in range(6)]
    ties = {} if lists else {"ties": "as_ties"}
    settings: dict[str, Any] = {
        "loss": {"type": loss} | ({"ties": "breslow"} if lists else {}),
        "ensemble": {"heads": heads} if heads > 1 else None,
        "data": data(tmp_path, rows, rows, **ties),
        "train": {"epochs": 10.0},
    }
    result = reward(recipe(tmp_path, **settings), quiet=True)
    log = log_of(result.path)
    assert log[-1]["loss"] < log[0]["loss"]
    assert "accuracy" not in log[-1] and "preference/accuracy" not in result.metrics
    assert not (result.path / "evaluation.json").exists()
    spec = load_reward_model(result.path / "model").spec
    assert spec.scale is not None and spec.scale.n == 6 * (3 if lists else 2)


def test_rows_of_ones_own_are_ties_and_have_soft_labels(tmp_path: Path) -> None:
    own = [{"prompt": f"{i} q: ", "chosen": "red", "rejected": "red "} for i in range(4)]
    own[0]["probability"], own[1]["tie"] = 0.8, True
    tied = recipe(
        tmp_path,
        data=data(tmp_path, own, ties="as_ties"),
        loss={"type": "bradley_terry", "soft_labels": True},
    )
    run = reward(tied, quiet=True)
    counted = json.loads((run.path / "data.json").read_text())["train"]["labels"]
    assert counted == {"ties": 1, "margins": 0, "votes": 1}


def test_the_likelihood_term_takes_no_side_of_a_tie(tmp_path: Path) -> None:
    """With ties alone it adds nothing, whichever side stands first."""
    rows = [pair(i, tie=True) for i in range(4)]
    settings: dict[str, Any] = {
        "loss": {"type": "rao_kupper"},
        "regularise": {"likelihood": {"weight": 1.0}},
    }
    run = reward(
        recipe(tmp_path, data=data(tmp_path, rows, ties="as_ties"), **settings), quiet=True
    ).path
    assert {line["loss/likelihood"] for line in log_of(run)} == {0.0}
    rows[0]["tie"] = False
    found = recipe(tmp_path, out="one", data=data(tmp_path, rows, ties="as_ties"), **settings)
    assert max(line["loss/likelihood"] for line in log_of(reward(found, quiet=True).path)) > 0
