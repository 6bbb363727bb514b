"""From files to policy prompts: what is read of a row, what is refused, what is held out."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate.data.prompts import PolicyPrompts
from palate.data.schema import Content
from palate.data.truncate import LONG_PROMPT
from palate.errors import DataError, RecipeError
from palate.recipes.load import check_recipe
from palate.recipes.prompts import PromptsRecipe
from palate.recipes.schema import LengthRecipe
from prompting import dropped, encoder, read, write
from stand_in_images import png

DATA = Path(
    os.environ.get("PALATE_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data"
)
real = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no public data at {DATA}: set PALATE_DATA to its folder"
)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def contents(prompts: PolicyPrompts) -> list[Content]:
    return [prompt.content for prompt in prompts.train]


# Files of prompts


def test_texts_chats_and_questions(tmp_path: Path) -> None:
    rows = [
        {"id": "first", "prompt": "The sky is", "answer": "blue"},
        {"prompt": user("Why?"), "answer": "So."},
        {"messages": [*user("1"), {"role": "assistant", "content": "2"}, *user("3")]},
        {"question": "How many?", "answer": None},
        {"problem": "Solve.", "answer": 7, "system_prompt": "Be brief."},
    ]
    path = write(tmp_path / "p.jsonl", rows)
    prompts = read({"path": path, "columns": ["answer"]})
    assert contents(prompts) == [
        "The sky is",
        user("Why?"),
        rows[2]["messages"],
        user("How many?"),
        [{"role": "system", "content": "Be brief."}, *user("Solve.")],
    ]
    assert [dict(p.columns) for p in prompts.train] == [
        {"answer": "blue"},
        {"answer": "So."},
        {},
        {},
        {"answer": 7},
    ]
    assert [p.id for p in prompts.train[:2]] == ["p:first", "p:2"]
    assert prompts.report["sources"][0]["columns"] == {"answer": 3}
    # What the policy is given is what training on the prompt would see.
    tokenizer = encoder()
    for prompt in prompts.train:
        assert prompt.tokens == tokenizer.encode_prompt(prompt.content)
        asked = prompt.to_sample()
        assert (asked.tokens, asked.content) == (prompt.tokens, prompt.content)
    assert tokenizer.decode(prompts.train[0].tokens.ids) == "The sky is"
    assert tokenizer.tokens.tokenizer.decode(prompts.train[1].tokens.ids) == (
        "<bos><start>user\nWhy?<end>\n<start>assistant\n"
    )


@pytest.mark.parametrize("ending", ["json", "csv", "parquet", "jsonl.gz"])
def test_every_container(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(4)]
    path = tmp_path / f"p.{ending}"
    if ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        path.write_text("prompt,answer\n" + "".join(f"p{i},a{i}\n" for i in range(4)))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    prompts = read({"path": str(path), "columns": ["answer"]})
    assert [(p.content, p.columns["answer"]) for p in prompts.train] == [
        (f"p{i}", f"a{i}") for i in range(4)
    ]


def test_a_column_that_nothing_reads_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": 3, "answer": "1", "level": None}, {"prompt": "b", "level": 5}]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="columns that nothing reads: answer, level; name them"):
        read({"path": path})
    with pytest.raises(DataError, match="nothing reads: level;"):
        read({"path": path, "columns": ["answer"]})
    ignored = read({"path": path, "columns": ["answer"], "ignore": ["level"]})
    assert [dict(p.columns) for p in ignored.train] == [{"answer": "1"}, {}]
    every = read({"path": path, "columns": "all"})
    assert [dict(p.columns) for p in every.train] == [{"answer": "1"}, {"level": 5}]
    with pytest.raises(RecipeError, match=r"no row of .* has 'anwser'; there are answer, level"):
        read({"path": path, "columns": ["anwser"]})


def test_a_column_with_meaning_is_for_rewards_where_it_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "label": "yes", "context": "long ago"}]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match="field 'context': not read by this format"):
        read({"path": path, "columns": ["label"]})
    prompts = read({"path": path, "columns": ["label", "context"]})
    assert prompts.train[0].columns == {"label": "yes", "context": "long ago"}


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": "good"},
        "not json",
        {"prompt": ""},
        {"prompt": 5},
        {"prompt": [*user("a"), {"role": "assistant", "content": "b"}]},
        {"messages": "[]"},
        {"prompt": "one", "question": "another"},
        {"prompt": "x" * 401},
        {"prompt": "good"},
        {"answer": "alone"},
    ]
    prompts = read({"path": write(tmp_path / "p.jsonl", rows), "ignore": ["answer"]})
    assert contents(prompts) == ["good"]
    (entry,) = prompts.report["sources"]
    assert entry["rejected"] == {
        "not JSON: Expecting value": 1,
        "prompt: empty": 1,
        "prompt: a number, not text": 1,
        "prompt: wrong role order: ends with the assistant's turn": 1,
        "messages: text, not a list of turns": 1,
        "question: not read by this format": 1,
        "prompt: missing": 1,
    }
    assert entry["dropped"] == {LONG_PROMPT: 1, "equal to an earlier prompt": 1}
    assert [line["row"] for line in prompts.quarantine] == [2, 3, 4, 5, 6, 7, 10, 8, 9]


def test_a_long_prompt_is_cut_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "abcdefgh"}, {"prompt": "abc"}])
    length = LengthRecipe(max_prompt_tokens=5, prompt="keep_end")
    prompts = read({"path": path}, length=length)
    texts = [encoder().decode(p.tokens.ids) for p in prompts.train]
    assert texts == ["efgh", "abc"]
    assert prompts.report["sources"][0]["truncated"] == {"prompt cut": 1}
    # Prompts that the limit has made equal are one prompt.
    path = write(tmp_path / "q.jsonl", [{"prompt": "1efgh"}, {"prompt": "2efgh"}])
    assert len(read({"path": path}, length=length).train) == 1


def test_equal_prompts_count_once(tmp_path: Path) -> None:
    first = [{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 1}, {"prompt": "b"}]
    second = [{"prompt": "a", "answer": 2}, {"prompt": "c", "answer": 2}]
    paths = [write(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((first, second))]
    prompts = read(*({"path": path, "columns": ["answer"]} for path in paths))
    assert contents(prompts) == ["a", "b", "c"]
    assert prompts.train[0].columns == {"answer": 1}
    assert dropped(prompts) == {"equal to an earlier prompt": 1}
    assert dropped(prompts, 1) == {"equal to an earlier prompt, with other columns": 1}


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(50)])
    drawn = [contents(read({"path": path, "limit": n}, seed=1)) for n in (5, 10)]
    assert [len(texts) for texts in drawn] == [5, 10]
    assert set(map(str, drawn[0])) < set(map(str, drawn[1]))
    assert contents(read({"path": path, "limit": 5}, seed=2)) != drawn[0]


# Preference data


def test_preference_data_gives_its_prompts_alone(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "truth": str(i)} for i in range(3)
    ]
    rated = [
        {
            "instruction": "do it",
            "completions": [{"text": "a", "rating": 1.0}, {"text": "b", "rating": 2.0}],
        }
    ]
    told = [{"messages": [*user("hi"), {"role": "assistant", "content": "hello"}]}]
    lone = [{"text": "no prompt at all"}, {"text": "nor here"}]
    paths = [
        write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("pairs", pairs), ("rated", rated), ("told", told))
    ]
    prompts = read({"path": paths[0], "columns": ["truth"]}, {"path": paths[1]}, {"path": paths[2]})
    assert contents(prompts) == ["q0", "q1", "q2", user("do it"), user("hi")]
    assert prompts.train[2].columns == {"truth": "2"}
    formats = [source["format"] for source in prompts.report["sources"]]
    assert formats[0] == "trl_preference" and formats[2] == "demonstrations"
    with pytest.raises(DataError, match=r"nothing usable is left of the train prompts .* \(2\)"):
        read({"path": write(tmp_path / "lone.jsonl", lone)})
    with pytest.raises(RecipeError, match="no file of prompts, so `all` would be its answers"):
        read({"path": paths[0], "columns": "all"})


def test_messages_that_end_with_the_user_are_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"messages": user("hi"), "truth": "yes"}])
    prompts = read({"path": path, "columns": ["truth"]})
    assert prompts.report["sources"][0]["format"] == "prompts"
    assert (contents(prompts), prompts.train[0].columns) == ([user("hi")], {"truth": "yes"})


def test_a_named_format_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}])
    named = read({"path": path, "format": "prompts", "columns": ["completion"]})
    assert named.train[0].columns == {"completion": "b"}
    told = read({"path": path, "columns": ["completion"]})
    assert told.report["sources"][0]["format"] == "demonstrations"
    assert told.train[0].columns == {"completion": "b"}
    with pytest.raises(RecipeError, match="no format 'promts'"):
        read({"path": path, "format": "promts"})


# How prompts are put to the policy


def test_texts_around_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    assert contents(read({"path": path, "prefix": "Q: ", "suffix": "\nA:"})) == ["Q: a\nA:"]
    chat = read({"path": path, "suffix": "!", "as_chat": True, "system": "Be kind."})
    assert contents(chat) == [[{"role": "system", "content": "Be kind."}, *user("a!")]]
    with pytest.raises(RecipeError, match=r"`system`: .* 'p' holds texts: say `as_chat: true`"):
        read({"path": path, "system": "Be kind."})


def test_texts_around_chats_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": user("a")}])
    for key in ("prefix", "suffix"):
        with pytest.raises(RecipeError, match=f"`{key}`: goes around texts, and 'p' holds chats"):
            read({"path": path, key: "x"})
    rows = [{"prompt": user("a")}, {"prompt": [{"role": "system", "content": "No."}, *user("b")]}]
    prompts = read({"path": write(tmp_path / "p.jsonl", rows), "system": "Be kind."})
    assert len(prompts.train) == 1
    assert dropped(prompts) == {"has a system turn of its own, beside `system`": 1}


# Held out, mixed


def test_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"prompt": t} for t in ("a", "b", "c")])
    held = write(tmp_path / "h.jsonl", [{"prompt": user("b")}, {"prompt": "d"}, {"prompt": "d"}])
    prompts = read({"path": train}, eval=[{"path": held}])
    assert contents(prompts) == ["a", "c"]  # a text and a chat of one turn with it are one prompt
    assert [p.content for p in prompts.eval] == [user("b"), "d"]
    assert dropped(prompts) == {"also a held-out prompt": 1}
    assert dropped(prompts, 1) == {"equal to an earlier prompt": 1}
    with pytest.raises(DataError, match=r"every prompt of `prompts\.train` is also a held-out"):
        read({"path": train}, eval=[{"path": train}])


def test_a_held_out_share_is_by_prompt_and_the_same_each_time(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}"} for i in range(40)]
    rows += [{"prompt": user(f"p{i}")} for i in range(40)]
    path = write(tmp_path / "p.jsonl", rows)
    prompts = read({"path": path}, eval_fraction=0.25)
    assert (len(prompts.train), len(prompts.eval)) == (60, 20)

    def text(content: Any) -> str:
        return content if isinstance(content, str) else content[0]["content"]

    held = {text(p.content) for p in prompts.eval}
    assert not held & {text(p.content) for p in prompts.train}
    # Neither more rows nor another order changes on which side a prompt is, but for the border.
    path = write(tmp_path / "p.jsonl", rows[::-1])
    assert {text(p.content) for p in read({"path": path}, eval_fraction=0.25).eval} == held
    with pytest.raises(RecipeError, match=r"prompts\.eval_fraction"):
        read({"path": write(tmp_path / "q.jsonl", rows[:1])}, eval_fraction=0.5)


def test_a_mixture_takes_shares_of_sources(tmp_path: Path) -> None:
    paths = {n: write(tmp_path / f"{n}.jsonl", [{"prompt": f"{n}{i}"} for i in range(20)])
             for n in ("a", "b")}  # fmt: skip
    sources = [{"path": path} for path in paths.values()]
    few = read(*sources, mixture={"take": {"a": 4, "b": 0.5}})
    assert few.report["train"]["by_source"] == {"a": 4, "b": 10}
    assert few.report["mixture"]["unit"] == "prompts"
    assert [s["not_selected"] for s in few.report["sources"]] == [16, 10]
    more = read(*sources, mixture={"take": {"a": 8, "b": "all"}})
    assert {p.id for p in few.train} < {p.id for p in more.train}
    tokens = read(*sources, mixture={"weights": "equal", "total": 40, "unit": "tokens"})
    assert 34 <= tokens.report["train"]["tokens"]["prompt"] <= 40
    with pytest.raises(RecipeError, match=r"`prompts\.mixture`: 30 prompts of 'a' are asked for"):
        read(*sources, mixture={"take": {"a": 30, "b": 1}})


def test_ids_are_unique_over_sources_of_one_stem(tmp_path: Path) -> None:
    for folder, word in (("x", "a"), ("y", "b")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "p.jsonl", [{"prompt": f"{word}{i}", "id": i} for i in range(3)])
    prompts = read(
        {"path": str(tmp_path / "x" / "p.jsonl")}, eval=[{"path": str(tmp_path / "y" / "p.jsonl")}]
    )
    assert [p.id for p in prompts.train] == ["p:0", "p:1", "p:2"]
    assert [p.id for p in prompts.eval] == ["p:0#2", "p:1#2", "p:2#2"]


# Images


def test_images_are_found_beside_the_file_and_cost_tokens(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    rows = [
        {"prompt": "What is here?", "images": ["0.png"], "answer": "a"},
        {"prompt": [{"role": "user", "content": parts}], "image": "1.png", "answer": "b"},
        {"prompt": "What is here?", "images": ["gone.png"], "answer": "c"},
        {"prompt": "Nothing to see.", "answer": "d"},
        {"prompt": "What is here?", "images": ["0.png"], "answer": "a"},
    ]  # fmt: skip
    path = write(tmp_path / "p.jsonl", rows)
    prompts = read({"path": path, "columns": ["answer"]}, sees=True)
    assert [p.columns["answer"] for p in prompts.train] == ["a", "b", "d"]
    assert dropped(prompts) == {"no such file": 1, "equal to an earlier prompt": 1}
    assert prompts.report["images"]["rows"] == 2
    assert prompts.report["images"]["tokens"]["total"] == 4
    assert [len(p.tokens.images) for p in prompts.train] == [1, 1, 0]
    # Scorers open the images from anywhere.
    (part, _) = prompts.train[0].content[0]["content"]  # type: ignore[index, misc]
    assert part["image"].root == tmp_path
    blind = read({"path": path, "columns": ["answer"]})
    assert dropped(blind)["holds images, and the model reads none"] == 4


# The recipe


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"train": []}, "`train`"),
        ({"train": [{"path": "a", "colums": ["x"]}]}, "did you mean `train.0.columns`?"),
        ({"train": [{"type": "generatd", "task": "a"}]}, "did you mean generated?"),
        ({"train": [{"type": "generated", "size": 3}]}, "`train.0.task` is missing"),
        ({"train": [{"path": "a", "size": 3}]}, "file has no size"),
        (
            {"train": [{"path": "a", "columns": ["x"], "ignore": ["x"]}]},
            "`train.0.columns`: x is also in `ignore`",
        ),
        (
            {"train": [{"path": "a"}], "eval": [{"path": "b"}], "eval_fraction": 0.1},
            "`eval_fraction`: only without `eval`",
        ),
        (
            {"train": [{"path": "a"}], "order": "file", "curriculum": {}},
            "`order`: only without `curriculum`",
        ),
        ({"train": [{"path": "a"}], "curriculum": {"min": 0.9, "max": 0.1}}, "`curriculum.min`"),
        ({"train": [{"path": "a"}], "curriculum": {"outside": 0.0}}, "`curriculum.outside`"),
        (
            {"train": [{"path": "a", "select": {"like": {"path": "b"}}}]},
            "`train.0.select.keep`: give either",
        ),
        (
            {"train": [{"path": "a", "select": {"scorer": {"type": "lexicon"}, "keep": 1.5}}]},
            "a fraction is between 0 and 1",
        ),
    ],
)
def test_mistakes_are_one_line(value: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(PromptsRecipe, value, "recipe")
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Public data


@real
def test_prompts_of_public_pairs_and_ratings() -> None:
    folder = DATA / "hh_rlhf" / "harmless-base"
    ratings = DATA / "alpaca_eval_ratings" / "train.jsonl.gz"
    length = LengthRecipe(max_prompt_tokens=600)
    prompts = read(
        {"path": str(folder), "split": "train", "name": "hh"},
        {"path": str(ratings)},
        eval=[{"path": str(folder), "split": "test", "name": "hh test"}],
        length=length,
    )
    hh, alpaca, _ = prompts.report["sources"]
    assert (hh["read"], alpaca["read"]) == (1475, 502)
    with gzip.open(folder / "train.jsonl.gz", "rt") as file:
        raw = [json.loads(line) for line in file]
    for prompt in prompts.train:
        if prompt.source == "hh":
            assert not isinstance(prompt.content, str)
            row = raw[int(prompt.id.rpartition(":")[2]) - 1]
            assert str(prompt.content[-1]["content"]) in row["chosen"]
            assert len(prompt.tokens) <= 600
    with gzip.open(ratings, "rt") as file:
        instructions = {json.loads(line)["instruction"] for line in file}
    asked = {p.content[-1]["content"] for p in prompts.train if p.source != "hh"}
    assert asked and asked <= instructions
