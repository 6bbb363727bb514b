"""`palate data build` end to end: rows, counts, and what does not depend on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from build_cases import (
    built,
    chat_pair,
    checked,
    quarantine_of,
    rated,
    recipe_of,
    rows_of,
    text_pair,
    write_jsonl,
)
from palate.data.construct import ingest
from palate.data.construct.build import build
from palate.data.construct.folder import BuildFolder
from palate.data.containers import indexed
from palate.data.readers import Reader, RowError, registry
from palate.data.schema import Preference, Response
from palate.errors import DataError, RecipeError, RunError


def test_texts_come_out_as_they_went_in(tmp_path: Path) -> None:
    rows = [text_pair(i, chosen=f" good\n\u4e2d {i}\t", margin=i / 2) for i in range(30)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file}])
    found = rows_of(tmp_path / "out")
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    assert list(found[0]) == ["prompt", "chosen", "rejected", "margin", "tie", "source", "id"]
    assert {row["source"] for row in found} == {"a"}
    assert [row["id"] for row in found] == [f"a:{i + 1}" for i in range(30)]
    (source,) = report["sources"]
    assert (source["format"], source["read"], source["kept"]) == ("trl_preference", 30, 30)
    assert report["train"] == {"pairs": 30, "prompts": 30, "by_source": {"a": 30}}


def test_bad_rows_are_counted_and_quarantined(tmp_path: Path) -> None:
    rows = [text_pair(0), "{", text_pair(1, chosen=7), text_pair(2), {"prompt": "p"}]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file, "name": "mine"}])
    (source,) = report["sources"]
    assert sum(source["rejected"].values()) == 3
    lines = quarantine_of(tmp_path / "out")
    assert [(line["row"], line["field"]) for line in lines] == [
        (2, None),
        (3, "chosen"),
        (5, "chosen"),
    ]
    assert all(line["source"] == "mine" and line["file"] == str(file) for line in lines)


def test_where_any_row_is_a_chat_all_are(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [text_pair(i, margin=1.0) for i in range(5)])
    chats = write_jsonl(tmp_path / "chats.jsonl", [chat_pair(i) for i in range(5)])
    report = built(tmp_path / "out", [{"path": texts}, {"path": chats}])
    rows = rows_of(tmp_path / "out")
    assert rows[0]["prompt"] == [{"role": "user", "content": "q0: "}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "good 0"}]
    assert rows[9]["prompt"] == chat_pair(4)["prompt"]
    # TRL takes `margin` for a number in every row.
    assert "margin" not in rows[0]
    assert [row["partial_margin"] for row in rows] == [1.0] * 5 + [None] * 5
    assert report["output"]["margin"] == "partial_margin"


def test_every_step_has_its_line(tmp_path: Path) -> None:
    rows = [text_pair(i % 20) for i in range(30)] + [text_pair(50, chosen="x" * 99)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(
        tmp_path / "out",
        [{"path": file}],
        curate=[
            {"step": "length", "chosen": {"max": 50}},
            {"step": "exact_duplicates"},
            {"step": "length", "chosen": {"min": 7}},
        ],
    )
    names = [(s["name"], s["before"], s["after"]) for s in report["steps"]]
    assert names == [("length 1", 31, 30), ("exact_duplicates", 30, 20), ("length 2", 20, 10)]
    assert report["steps"][1]["by_source"] == {"a": report["steps"][1]["dropped"]}
    (source,) = report["sources"]
    assert source["kept"] == 10
    assert all(name.split(":")[0] in {n for n, *_ in names} for name in source["dropped"])
    lines = quarantine_of(tmp_path / "out")
    assert {line["step"] for line in lines} == {"length 1", "exact_duplicates", "length 2"}
    assert [line["row"] for line in lines if line["step"] == "exact_duplicates"] == [*range(21, 31)]
    assert "exact_duplicates: 30 pairs before, 20 after" in (
        (tmp_path / "out" / "README.md").read_text()
    )


def test_pairs_of_rated_rows_and_rows_that_lose_them(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [rated(i, 2 + i % 3) for i in range(9)])
    report = built(
        tmp_path / "out",
        [{"path": file, "pairing": {"chosen": "every", "rejected": "every"}}],
        curate=[{"step": "margin", "min": 2.0}],
    )
    (source,) = report["sources"]
    assert source["scored_by"] == {"overall": 9}
    assert source["pairs_made"] == 3 * (1 + 3 + 6)
    # Margins of at least two: none of two answers, one of three, three of four.
    assert source["pairs"] == 3 * (0 + 1 + 3)
    assert (source["kept"], sum(source["dropped"].values())) == (6, 3)
    assert all(row["margin"] >= 2 for row in rows_of(tmp_path / "out"))


def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "PIECE_ROWS", 20)
    mixed = [text_pair(i % 70) if i % 9 else "{" for i in range(100)]
    a = write_jsonl(tmp_path / "a.jsonl", mixed)
    b = write_jsonl(tmp_path / "b.jsonl", [rated(i) for i in range(90)])
    keys: dict[str, Any] = {
        "pairing": {"rejected": "random_lower"},
        "curate": [{"step": "exact_duplicates"}],
        "mixture": {"take": {"a": 0.5, "b": 40}},
        "output": {"eval_fraction": 0.2, "llamafactory": True},
    }
    one = built(tmp_path / "one" / "out", [{"path": a}, {"path": b}], **keys)
    two = built(tmp_path / "two" / "out", [{"path": a}, {"path": b}], **keys, workers=2)
    assert one == two
    assert same_files(tmp_path / "one", tmp_path / "two") >= {
        "out/data/train-00000.parquet",
        "out/data/eval-00000.parquet",
        "out/quarantine.jsonl",
    }


def same_files(one: Path, two: Path) -> set[str]:
    """Names of files that are equal byte for byte; both folders hold the same names."""

    def files(root: Path) -> dict[str, bytes]:
        found = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}

    first, second = files(one), files(two)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] == second[name]}


def test_one_seed_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_jsonl(Path("a.jsonl"), [rated(i) for i in range(60)])
        built(
            Path("out"),
            [{"path": "a.jsonl"}],
            seed=1 if name == "three" else 0,
            pairing={"rejected": "random_lower"},
            mixture={"take": {"a": 30}},
            output={"eval_fraction": 0.25},
        )
    same = same_files(tmp_path / "one", tmp_path / "two")
    assert len(same) == len([p for p in (tmp_path / "one").rglob("*") if p.is_file()])
    assert "out/data/train-00000.parquet" not in same_files(tmp_path / "one", tmp_path / "three")


def test_no_prompt_is_in_both_splits(tmp_path: Path) -> None:
    rows = [text_pair(i, prompt=f"p{i % 40}") for i in range(120)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file}], output={"eval_fraction": 0.25})
    train, held = (rows_of(tmp_path / "out", split) for split in ("train", "eval"))
    prompts = {row["prompt"] for row in train}, {row["prompt"] for row in held}
    assert not prompts[0] & prompts[1]
    assert (len(prompts[0]), len(prompts[1])) == (30, 10)
    assert (report["train"]["prompts"], report["eval"]["prompts"]) == (30, 10)
    with pytest.raises(RecipeError, match=r"`output.eval_fraction`: 0.99 of 40 prompts"):
        built(tmp_path / "none", [{"path": file}], output={"eval_fraction": 0.99})


def test_a_smaller_mixture_is_inside_a_larger_one(tmp_path: Path) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", [text_pair(i) for i in range(100)])
    b = write_jsonl(tmp_path / "b.jsonl", [chat_pair(i) for i in range(50)])
    found = []
    for name, total in (("small", 30), ("large", 60)):
        mixture = {"weights": {"a": 2.0, "b": 1.0}, "total": total}
        report = built(tmp_path / name, [{"path": a}, {"path": b}], mixture=mixture)
        assert report["mixture"]["rows_taken"] == total
        assert [s["pairs"] for s in report["sources"]] == [total * 2 // 3, total // 3]
        found.append({row["id"] for row in rows_of(tmp_path / name)})
    assert found[0] < found[1]
    words = {"take": {"a": 100, "b": "all"}, "unit": "tokens"}
    report = built(tmp_path / "words", [{"path": a}, {"path": b}], mixture=words)
    said = [
        sum(len(row[side].split()) for side in ("prompt", "chosen", "rejected"))
        for row in map(text_of, rows_of(tmp_path / "words"))
        if row["source"] == "a"
    ]
    assert 90 < sum(said) <= 100


def text_of(row: dict[str, Any]) -> dict[str, Any]:
    sides = ("prompt", "chosen", "rejected")
    return row | {side: " ".join(turn["content"] for turn in row[side]) for side in sides}


def test_ids_that_repeat_are_told_apart(tmp_path: Path) -> None:
    rows = [text_pair(i, id="x" if i % 2 else f"own {i}") for i in range(8)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    built(tmp_path / "out", [{"path": file}])
    ids = [row["id"] for row in rows_of(tmp_path / "out")]
    assert ids[:6] == ["a:own 0", "a:x", "a:own 2", "a:x#2", "a:own 4", "a:x#3"]
    assert len(set(ids)) == 8


def test_a_limit_draws_usable_rows(tmp_path: Path) -> None:
    rows = [text_pair(i) if i % 3 else "{" for i in range(90)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file, "limit": 20}])
    (source,) = report["sources"]
    assert (source["kept"], source["available"]) == (20, 90)
    assert 20 < source["read"] < 60
    larger = built(tmp_path / "larger", [{"path": file, "limit": 40}])
    assert larger["sources"][0]["kept"] == 40
    ids = [{row["id"] for row in rows_of(tmp_path / name)} for name in ("out", "larger")]
    assert ids[0] < ids[1]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format with one answer a record."""

    def read(record: Any, context: Any) -> Preference:
        value = record.value
        if "score" not in value:
            raise RowError("score", "missing")
        said = Response(content=value["answer"], rating=value["score"])
        return Preference(
            id=context.id,
            source=context.source,
            kind="rated",
            prompt=value["ask"],
            responses=(said,),
            row=record.row,
        )

    reader = Reader(
        name="answers",
        shape="ask, answer, score",
        kind="rated",
        recognise=lambda columns, sample: "columns ask and answer" if "ask" in columns else None,
        read=read,
        grouped=True,
    )
    known = {**registry.readers(), "answers": reader}
    monkeypatch.setattr(registry, "readers", lambda: known)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_answers_of_one_prompt_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: None, piece: int
) -> None:
    monkeypatch.setattr(indexed, "PIECE_ROWS", piece)
    rows: list[Any] = []
    for i, n in enumerate([3, 1, 4, 2, 1, 5, 2]):
        rows += [{"ask": f"q{i}", "answer": f"a{k}", "score": float(k)} for k in range(n)]
    rows.insert(5, {"ask": "q2", "answer": "no score"})
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    report = built(tmp_path / "out", [{"path": file}], pairing={"rejected": "worst"})
    (source,) = report["sources"]
    assert (source["read"], source["kept"], source["merged"]) == (19, 5, 11)
    assert source["rejected"] == {"the only answer to its prompt": 2, "score: missing": 1}
    found = [(r["prompt"], r["chosen"], r["rejected"]) for r in rows_of(tmp_path / "out")]
    assert found == [
        (f"q{i}", f"a{n - 1}", "a0") for i, n in ((0, 3), (2, 4), (3, 2), (5, 5), (6, 2))
    ]
    some = built(tmp_path / "some", [{"path": file, "limit": 2}], pairing={"rejected": "worst"})
    assert (some["sources"][0]["kept"], some["sources"][0]["not_selected"]) == (2, 3)


def test_an_interrupted_build_leaves_nothing_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = write_jsonl(tmp_path / "a.jsonl", [rated(i) for i in range(30)])
    b = write_jsonl(tmp_path / "b.jsonl", [text_pair(i) if i % 5 else "{" for i in range(30)])
    sources = [{"path": a, "pairing": {"rejected": "random_lower"}}, {"path": b}]
    keys: dict[str, Any] = {"curate": [{"step": "exact_duplicates"}]}
    whole = built(tmp_path / "whole", sources, **keys)
    read = ingest.Source.read
    asked: list[str] = []

    def until_b(self: ingest.Source, *args: Any) -> None:
        asked.append(self.spec.name)
        if self.spec.name == "b" and len(asked) == 2:
            raise KeyboardInterrupt
        read(self, *args)

    monkeypatch.setattr(ingest.Source, "read", until_b)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(recipe_of(out, sources, **keys), code={})
    assert not out.exists()
    build(recipe_of(out, sources, **keys, resume=True), code={})
    assert asked == ["a", "b", "b"]
    assert checked(out) == whole
    assert rows_of(out) == rows_of(tmp_path / "whole")
    assert not (tmp_path / ".out.building").exists()
    assert quarantine_of(out) == quarantine_of(tmp_path / "whole")


def test_what_another_recipe_has_left_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [text_pair(i) for i in range(9)])
    sources, out = [{"path": file}], tmp_path / "out"

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("palate.data.construct.build.write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(recipe_of(out, sources, seed=1), code={})
    assert (tmp_path / ".out.building" / "staged" / "stages" / "source000.json").exists()
    write_jsonl(file, [text_pair(i) for i in range(5)])
    build(recipe_of(out, sources, seed=1, resume=True), code={})
    assert checked(out)["train"]["pairs"] == 5


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [text_pair(i) for i in range(5)])

    def fail(folder: Path) -> None:
        assert (folder / "data.json").exists()
        raise RunError("no report")

    with pytest.raises(RunError, match="no report"):
        build(recipe_of(tmp_path / "out", [{"path": file}]), code={}, finish=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_an_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [text_pair(i) for i in range(5)])
    out = tmp_path / "out"
    write_jsonl(out / "mine.jsonl", [])
    with pytest.raises(RunError, match="out is there already: delete it or choose another folder"):
        built(out, [{"path": file}])
    assert [path.name for path in out.iterdir()] == ["mine.jsonl"]
    other = BuildFolder(tmp_path / "held")
    with other.opened(resume=False), pytest.raises(RunError, match="another build is writing it"):
        built(tmp_path / "held", [{"path": file}])


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([rated(0)], {}, "'a' holds ratings, not pairs: add `pairing"),
        ([text_pair(0)], {"pairing": {"rejected": "worst"}}, "no source without its own holds"),
        ([{"prompt": "a", "completion": "b"}], {}, "'a' .demonstrations. holds demonstrations"),
        ([text_pair(0, chosen="")], {}, r"no pair is left of a: chosen: empty \(1\)"),
        (
            [text_pair(0)],
            {"curate": [{"step": "length", "chosen": {"min": 99}}]},
            r"no pair is left of a: length: .* \(1\)",
        ),
        ([text_pair(0)], {"mixture": {"take": {"b": 1}}}, "no share of 'a'"),
    ],
)
def test_one_line_for_what_cannot_be_built(
    tmp_path: Path, rows: list[Any], keys: dict[str, Any], message: str
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises((DataError, RecipeError), match=message) as caught:
        built(tmp_path / "out", [{"path": file}], **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_datasets_loads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [chat_pair(i) for i in range(30)])
    report = built(
        tmp_path / "out",
        [{"path": file, "licence": "MIT"}],
        output={"eval_fraction": 0.2, "rows_per_file": 10, "llamafactory": True},
    )
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 24, "eval": 6}
    assert found["train"][:] == datasets.Dataset.from_list(rows_of(tmp_path / "out"))[:]
    assert report["output"]["rows"] == {"train": 24, "eval": 6}
    names = [path.name for path in sorted((tmp_path / "out" / "data").iterdir())]
    assert names == ["eval-00000.parquet", *(f"train-0000{i}.parquet" for i in range(3))]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert set(lineage["files"]) >= {f"data/{name}" for name in names}


def test_what_llamafactory_reads(tmp_path: Path) -> None:
    chats = [chat_pair(i) for i in range(4)]
    chats[1]["prompt"] = [{"role": "system", "content": "be brief"}, *chats[1]["prompt"]]
    # Two turns of the user on end: it would leave the row out.
    chats[2]["prompt"] = [*chats[2]["prompt"], *chats[2]["prompt"]]
    out = tmp_path / "out"
    source = {"path": write_jsonl(tmp_path / "a.jsonl", chats)}
    report = built(out, [source], output={"llamafactory": True})
    assert report["output"]["llamafactory"] == {"rows": {"train": 3}, "left_out": 1}
    info = json.loads((out / "dataset_info.json").read_text())["out"]
    assert info["ranking"] and info["formatting"] == "sharegpt"
    (file,) = (out / info["file_name"]).iterdir()
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))[:]
    assert rows["conversations"][1] == [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "question 1"},
    ]
    assert rows["chosen"][0] == {"from": "gpt", "value": "good 0"}
    text = {"path": write_jsonl(tmp_path / "b.jsonl", [text_pair(i) for i in range(3)])}
    built(tmp_path / "text", [text], output={"llamafactory": True})
    info = json.loads((tmp_path / "text" / "dataset_info.json").read_text())["text"]
    assert info["formatting"] == "alpaca"
    assert info["columns"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
