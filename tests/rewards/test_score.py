"""`palate score`: every response once, counted, whatever interrupts it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from palate.cli import app
from palate.data.pairing import OWN_PROMPTS
from palate.data.readers import registry
from palate.data.scorer import Score, Traits
from palate.errors import DataError, ModelError, RunError
from palate.evaluate.reward import score as module
from palate.evaluate.reward import score_files
from palate.recipes.serving import ScoreRecipe
from palate.rewards.groups import score_groups
from palate.rewards.judge import ALONE
from palate.rewards.texts import prompt_text, response_text
from palate.store.folders import lock_folder
from scored import Numbers, groups_of

SAID = "too odd"


class Odd(Numbers):
    """Scores by length; what holds an x it cannot score. Remembers what it was asked."""

    name = "odd"
    why = SAID

    def __init__(self, stop_after: int = 1_000_000) -> None:
        self.asked: list[str] = []
        self.calls: list[int] = []
        self.stop_after = stop_after

    def numbers(self, prompts: Any, responses: Any) -> list[float]:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        found = []
        self.calls.append(len(responses))
        for prompt, response in zip(prompts, responses, strict=True):
            text = response_text(response)
            self.asked.append(f"{prompt_text(prompt)}|{text}")
            found.append(math.nan if "x" in text else float(len(text)))
        return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs: list[dict[str, Any]] = [
        {"prompt": f"q{n % 5}", "chosen": "a" * (n + 1), "rejected": "x" if n % 7 == 0 else "b"}
        for n in range(30)
    ]
    pairs[4] = {"prompt": "no answer"}
    rated = [
        {"prompt": p, "responses": [{"content": "y" * n, "rating": n} for n in range(1, 5)]}
        for p in ("one", "two")
    ]
    for name, rows in (("pairs", pairs), ("rated", rated)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(**more: Any) -> ScoreRecipe:
    return ScoreRecipe.model_validate(
        {
            "output_dir": "out",
            "scorer": {"type": "length"},
            "data": [{"path": "pairs.jsonl"}, {"path": "rated.jsonl"}],
            "block_rows": 4,
        }
        | more
    )


def use(monkeypatch: pytest.MonkeyPatch, scorer: Any) -> Any:
    monkeypatch.setattr(module, "make_scorer", lambda *_, **__: scorer)
    return scorer


def lines(path: str = "out/scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_every_response_is_scored_once_and_counts_reconcile(monkeypatch: Any) -> None:
    use(monkeypatch, Odd())
    result = score_files(recipe())
    found = lines()
    assert len(found) == len({(r["source"], r["row"], r["response"]) for r in found}) == 29 * 2 + 8
    assert found[0] == {
        "id": "pairs:1",
        "source": "pairs",
        "row": 1,
        "response": 0,
        "score": 1.0,
    }
    assert found[1] == {**found[0], "response": 1, "score": None, "reason": SAID}
    assert [r["score"] for r in found if r["source"] == "rated"] == [1.0, 2.0, 3.0, 4.0] * 2
    summary = result.summary
    assert summary["responses"] == 66 and summary["unscored"] == {SAID: 5}
    assert summary["scored"] == 61
    numbers = [r["score"] for r in found if r["source"] == "pairs" and r["score"] is not None]
    (pairs, _) = summary["sources"]
    mean = sum(numbers) / len(numbers)
    assert pairs["mean"] == pytest.approx(mean) and pairs["max"] == 30.0
    square = sum((n - mean) ** 2 for n in numbers) / len(numbers)
    assert pairs["deviation"] == pytest.approx(math.sqrt(square))
    (entry, _) = json.loads(Path("out/data.json").read_text())["sources"]
    assert (entry["read"], entry["kept"], entry["merged"]) == (30, 29, 0)
    assert sum(entry["rejected"].values()) == 1
    assert [line["row"] for line in lines("out/quarantine.jsonl")] == [5]
    assert json.loads(Path("out/status.json").read_text())["state"] == "finished"
    assert json.loads(Path("out/lineage.json").read_text())["verb"] == "score"


@pytest.mark.parametrize("stop_after", [1, 9, 25, 50])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_exactly_where_it_was(
    stop_after: int, torn: bool, monkeypatch: Any
) -> None:
    use(monkeypatch, Odd())
    score_files(recipe(output_dir="whole"))
    first = use(monkeypatch, Odd(stop_after))
    with pytest.raises(KeyboardInterrupt):
        score_files(recipe())
    if torn:  # killed between the scores and the journal, and within a line of each
        for name in ("scores.jsonl", "journal.jsonl"):
            with Path("out", name).open("a") as file:
                file.write('{"id": "pai')
    second = use(monkeypatch, Odd())
    result = score_files(recipe(resume=True))
    assert Path("out/scores.jsonl").read_bytes() == Path("whole/scores.jsonl").read_bytes()
    assert Path("out/quarantine.jsonl").read_bytes() == Path("whole/quarantine.jsonl").read_bytes()
    whole = json.loads(Path("whole/summary.json").read_text())
    assert result.summary == whole
    assert len(first.asked) + len(second.asked) <= 66 + 8 + 10  # a block, and questions why
    third = use(monkeypatch, Odd())
    assert score_files(recipe(resume=True)).summary == whole and not third.asked
    with pytest.raises(RunError, match="another recipe"):
        score_files(recipe(resume=True, block_rows=5))


def test_a_limit_draws_the_rows_that_others_draw(monkeypatch: Any) -> None:
    from palate.data.stream import read_source

    source = {"path": "pairs.jsonl", "limit": 7}
    one = recipe(data=[source], seed=3)
    score_files(one)
    rows = read_source(one.data[0], seed=3).rows
    assert [line["id"] for line in lines()[::2]] == [row.id for row in rows]


def test_answers_in_records_of_their_own_are_one_row_across_blocks() -> None:
    rows = [
        {"prompt": f"p{k}", "completion": "z" * n, "label": n % 2 == 0}
        for k in range(3)
        for n in range(1, 4)
    ]
    Path("votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_files(recipe(data=[{"path": "votes.jsonl"}], block_rows=2))
    assert result.summary["responses"] == 9
    assert [line["score"] for line in lines()] == [1.0, 2.0, 3.0] * 3


@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_drawn_answers_are_counted_whole_and_a_killed_run_goes_on(
    stop_after: int, monkeypatch: Any
) -> None:
    votes = replace(registry.readers()["trl_unpaired"], grouped=True)
    known = {**registry.readers(), "trl_unpaired": votes}
    monkeypatch.setattr(registry, "readers", lambda: known)
    rows: list[dict[str, Any]] = [
        {"prompt": f"p{k}", "completion": "z" * n, "label": n % 2 == 0}
        for k in range(9)
        for n in range(1, 2 + k % 3)
    ]
    rows[4:4] = [{"prompt": "p2"}]
    Path("votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"path": "votes.jsonl", "limit": 5}]
    use(monkeypatch, Odd())
    score_files(recipe(output_dir="whole", data=data, block_rows=2))
    (entry,) = json.loads(Path("whole/data.json").read_text())["sources"]
    assert (entry["read"], entry["kept"], entry["not_selected"]) == (19, 5, 4)
    assert (entry["merged"], sum(entry["rejected"].values())) == (9, 1)
    use(monkeypatch, Odd(stop_after))
    with pytest.raises(KeyboardInterrupt):
        score_files(recipe(data=data, block_rows=2))
    use(monkeypatch, Odd())
    score_files(recipe(data=data, block_rows=2, resume=True))
    for name in ("scores.jsonl", "quarantine.jsonl", "data.json"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_parquet_holds_the_same(monkeypatch: Any) -> None:
    use(monkeypatch, Odd())
    score_files(recipe())
    result = score_files(recipe(output_dir="table", format="parquet"))
    rows = pq.read_table(result.scores).to_pylist()
    assert [{k: v for k, v in r.items() if v is not None or k == "score"} for r in rows] == lines()
    assert not Path("table/scores.jsonl").exists()
    again = score_files(recipe(output_dir="table", format="parquet", resume=True))
    assert again.summary == result.summary


def test_exact_asks_one_at_a_time_and_a_lone_response_is_compared_with_none() -> None:
    scorer = Odd()
    score_groups(scorer, groups_of(["a", "b"], [["1", "22"], ["333"]]), exact=True)
    assert scorer.calls == [1, 1, 1]

    class Relative(Odd):
        traits = Traits(relative=True)

        def score(self, groups: Any) -> list[list[Score]]:
            lone = [len(group.responses) == 1 for group in groups]
            scores = [Score(None, ALONE) if alone else Score(0.5) for alone in lone]
            return [[s] * len(g.responses) for s, g in zip(scores, groups, strict=True)]

    many = ["r"] * 20
    ((alone,), whole) = score_groups(Relative(), groups_of(["a", "b"], [["1"], many]), exact=True)
    assert alone.reason == ALONE and [o.value for o in whole] == [0.5] * 20


def test_the_command_takes_files_and_recipes() -> None:
    run = CliRunner().invoke(app, ["score", "pairs.jsonl", "--set", "scorer={type: length}"])
    assert run.exit_code == 0, run.output
    assert run.stdout.strip() == "pairs.scores" and "58 responses: 58 scored" in run.stderr
    assert len(lines("pairs.scores/scores.jsonl")) == 58
    again = CliRunner().invoke(app, ["score", "pairs.jsonl", "--set", "scorer={type: length}"])
    assert again.exit_code == 2 and "resume" in again.stderr
    printed = CliRunner().invoke(
        app, ["score", "pairs.jsonl", "--model", "m", "--output-dir", "o", "--print-recipe"]
    )
    assert "# palate score" in printed.stdout and "path: m" in printed.stdout
    Path("r.yaml").write_text(printed.stdout)
    assert CliRunner().invoke(app, ["score", "r.yaml", "--print-recipe"]).stdout == printed.stdout
    missing = CliRunner().invoke(app, ["score", "pairs.jsonl"])
    assert missing.exit_code == 2 and "`scorer` is missing" in missing.stderr
    assert "block_rows" in CliRunner().invoke(app, ["score", "--help"]).stdout


def test_a_file_without_a_row_is_an_error() -> None:
    Path("bad.jsonl").write_text('{"prompt": "x", "chosen": 3, "rejected": "y"}\n')
    with pytest.raises(DataError):
        score_files(recipe(data=[{"path": "bad.jsonl"}]))


def test_a_run_that_kept_nothing_does_not_hold_its_folder() -> None:
    args = ["score", "pairs.jsonl", "--output-dir", "here"]
    failed = CliRunner().invoke(app, [*args, "--model", "no/where/at/all"])
    assert failed.exit_code == 2 and Path("here/status.json").exists()
    again = CliRunner().invoke(app, [*args, "--set", "scorer={type: length}"])
    assert again.exit_code == 0, again.output


def test_a_missing_file_is_said_to_be_missing() -> None:
    found = CliRunner().invoke(app, ["score", "none.jsonl", "--model", "m"])
    assert found.exit_code == 2 and found.stderr.strip() == "palate: none.jsonl: no such file"


def test_responses_that_cannot_be_read_are_counted_and_named() -> None:
    answers = [{"content": "a", "rating": 1}, {"content": 7, "rating": 2}, {"content": "ccc"}]
    good = [{"content": "dd", "rating": n} for n in range(2)]
    rows = [{"prompt": "p", "responses": answers + good}, {"prompt": "q", "responses": good}]
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_files(recipe(data=[{"path": "some.jsonl"}], block_rows=1))
    assert [(line["row"], line["response"]) for line in lines()] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    (entry,) = json.loads(Path("out/data.json").read_text())["sources"]
    assert entry["responses_left_out"] == {
        "responses.content: a number, not text": 1,
        "responses.rating: missing": 1,
    }
    named = [(line["row"], line["field"]) for line in lines("out/quarantine.jsonl")]
    assert named == [(1, "responses.1.content"), (1, "responses.2.rating")]


def stopped(monkeypatch: Any, **more: Any) -> None:
    use(monkeypatch, Odd(9))
    with pytest.raises(KeyboardInterrupt):
        score_files(recipe(**more))
    use(monkeypatch, Odd())


def test_a_run_goes_on_with_the_same_data_alone(monkeypatch: Any) -> None:
    stopped(monkeypatch)
    text = Path("rated.jsonl").read_text()
    Path("rated.jsonl").write_text(text.replace("yyyy", "zzzz"))
    with pytest.raises(RunError, match="data rated has changed"):
        score_files(recipe(resume=True))
    Path("rated.jsonl").write_text(text)
    whole = score_files(recipe(resume=True))
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text() + "\n")
    with pytest.raises(RunError, match="data pairs has changed"):
        score_files(recipe(resume=True))
    assert whole.scores.exists()


def test_a_run_goes_on_with_the_same_weights_alone(monkeypatch: Any) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    scorer = {"type": "model", "path": "model"}
    stopped(monkeypatch, scorer=scorer)
    Path("model/config.json").write_text('{"other": 1}')
    with pytest.raises(RunError, match="model model has changed"):
        score_files(recipe(resume=True, scorer=scorer))
    Path("model/config.json").write_text("{}")
    score_files(recipe(resume=True, scorer=scorer))


def test_a_run_goes_on_with_the_same_validation_data_alone(monkeypatch: Any) -> None:
    members = [{"scorer": {"type": "length", "prefer": way}} for way in ("longer", "shorter")]
    Path("held.jsonl").write_text('{"prompt": "p", "chosen": "aa", "rejected": "b"}\n')
    scorer = {
        "type": "ensemble",
        "members": members,
        "combine": "zscore",
        "validation": [{"path": "held.jsonl"}],
    }
    stopped(monkeypatch, scorer=scorer)
    Path("held.jsonl").write_text('{"prompt": "p", "chosen": "aaaa", "rejected": "b"}\n')
    with pytest.raises(RunError, match=r"file held\.jsonl has changed"):
        score_files(recipe(resume=True, scorer=scorer))


def test_data_that_changes_under_a_run_is_an_error(monkeypatch: Any) -> None:
    class Writer(Odd):
        def numbers(self, prompts: Any, responses: Any) -> list[float]:
            with Path("rated.jsonl").open("a") as file:
                file.write("\n")
            return super().numbers(prompts, responses)

    use(monkeypatch, Writer())
    with pytest.raises(RunError, match=r"rated\.jsonl: changed while it was scored"):
        score_files(recipe())


def test_a_folder_is_written_by_one_process_at_a_time() -> None:
    with lock_folder(Path("out")), pytest.raises(RunError, match="another process writes to it"):
        score_files(recipe())
    assert score_files(recipe()).scores.exists()


def test_a_scorer_that_gives_up_names_the_rows(monkeypatch: Any) -> None:
    class Refusing(Odd):
        def numbers(self, prompts: Any, responses: Any) -> list[float]:
            raise ModelError("tiny: trained on plain text, and this is a chat")

    use(monkeypatch, Refusing())
    with pytest.raises(ModelError, match=r"^pairs\.jsonl, rows 1 to \d+: tiny: trained on"):
        score_files(recipe())


def test_a_table_that_does_not_fit_on_the_disk_is_one_line(monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", full)
        with pytest.raises(RunError, match=r"cannot write out/scores\.parquet: No space"):
            score_files(recipe(format="parquet"))
    assert not list(Path("out").glob(".*.tmp"))
    result = score_files(recipe(format="parquet", resume=True))
    assert len(pq.read_table(result.scores)) == 66


def test_files_without_a_usable_row_end_with_what_the_first_lacks() -> None:
    Path("bad.jsonl").write_text('{"prompt": "q", "response": 3}\n{"prompt": "q"\n')
    wanted = r"^bad.jsonl, row 1, field 'response': a number, not text; no usable row, 1 more in "
    for resume in (False, True):
        with pytest.raises(DataError, match=wanted + "out/quarantine.jsonl$"):
            score_files(recipe(data=[{"path": "bad.jsonl"}], resume=resume))


@pytest.mark.parametrize(
    "columns",
    [
        {"chosen_image": "cat.png", "rejected_image": "dog.png"},
        {"rejected_images": ["dog.png"]},
        {"images_a": ["cat.png"], "images_b": ["dog.png"]},
        {"answer_0_image_path": "cat.png"},
    ],
)
def test_answers_that_saw_other_images_are_refused_and_counted(columns: dict[str, Any]) -> None:
    asked = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    notes = {"image_id": 7, "answer_length": 3, "chosen_images": []}
    rows = [asked | columns, asked | notes]
    Path("seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_files(recipe(data=[{"path": "seen.jsonl"}]))
    assert [line["row"] for line in lines()] == [2, 2]
    (source,) = json.loads(Path("out/data.json").read_text())["sources"]
    assert source["kept"] == 1 and sum(source["rejected"].values()) == 1
    (fault,) = lines("out/quarantine.jsonl")
    assert fault["field"] == next(iter(columns)) and "not read by this format" in fault["reason"]
    assert result.summary["responses"] == 2


def test_an_answer_to_another_picture_has_no_score_and_is_counted() -> None:
    turns = [
        {"role": "user", "content": "<image>What is this?"},
        {"role": "assistant", "content": "A kitten."},
    ]
    row = {"messages": turns, "images": ["kitten.png"], "rejected_images": ["noise.png"]}
    Path("seen.jsonl").write_text(json.dumps(row) + "\n")
    result = score_files(recipe(data=[{"path": "seen.jsonl"}]))
    assert [line["score"] for line in lines()] == [None, None]
    assert result.summary["unscored"] == {OWN_PROMPTS: 2} and result.summary["scored"] == 0
