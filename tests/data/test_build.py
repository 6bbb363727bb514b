"""The whole way from a recipe to encoded data: every row accounted for, every split clean."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from palate.data.build import Dataset, build
from palate.data.encode import Encoder
from palate.data.items import Desirable, Item, Ranks
from palate.data.split import with_mismatched
from palate.data.truncate import LONG_RESPONSE
from palate.errors import DataError, RecipeError
from palate.recipes.schema import DataRecipe, DataSource, LengthRecipe, PairingRecipe, SftDataRecipe
from palate.store.digests import sha256_file
from tiny_chat import CHATML, byte_tokenizer

LENGTH = LengthRecipe(max_prompt_tokens=24, max_response_tokens=12)


def write(path: Path, rows: list[Any]) -> DataSource:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    return DataSource(path=str(path))


def recipe(*train: DataSource, **more: Any) -> DataRecipe:
    return DataRecipe(train=train, length=LENGTH, **more)


def made(data: DataRecipe, kind: Any = "pair", seed: int = 0) -> Dataset[Any]:
    found = build(data, Encoder(byte_tokenizer(), length=LENGTH), kind=kind, seed=seed)
    for source in found.report["sources"]:
        lost = sum(source["rejected"].values()) + sum(source["dropped"].values())
        assert source["read"] == source["kept"] + lost + source["not_selected"]
    items, rows = [*found.train, *found.eval], [*found.train_rows, *found.eval_rows]
    assert [item.id for item in items] == [row.id for row in rows]
    assert [item.index for item in items] == list(range(len(items)))
    json.dumps(found.report, allow_nan=False)
    return found


def pairs(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(n)]


def test_report_and_quarantine(tmp_path: Path) -> None:
    rows: list[Any] = [
        *pairs(5),
        "not json",
        {"prompt": "Q", "chosen": "a"},
        {"prompt": "long" * 9, "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": "the same, good", "rejected": "the same, bad"},
        {"prompt": "Q", "chosen": "ten letters and more", "rejected": "short"},
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    found = made(recipe(source))
    (entry,) = found.report["sources"]
    assert entry == {
        "name": "rows",
        "path": source.path,
        "format": "trl_preference",
        "recognised": "columns chosen and rejected, with a prompt",
        "split_role": "train",
        "sha256": sha256_file(source.path),
        "available": 10,
        "read": 10,
        "kept": 7,
        "rejected": {"not JSON: Expecting value": 1, "rejected: missing": 1},
        "dropped": {"prompt longer than max_prompt_tokens": 1},
        "merged": 0,
        "not_selected": 0,
        "truncated": {"chosen, rejected cut": 1, "chosen cut": 1},
        "responses_left_out": {},
        "items": 7,
        "items_dropped": {},
        "items_not_selected": 0,
        "scored_by": {},
        "flips": {},
        "quarantine": "quarantine.jsonl",
    }
    assert [(line["row"], line["field"]) for line in found.quarantine] == [
        (6, None),
        (7, "rejected"),
        (8, None),
    ]
    assert found.quarantine[1] == {
        "source": "rows",
        "file": source.path,
        "row": 7,
        "field": "rejected",
        "reason": "missing",
    }
    train = found.report["train"]
    assert train["pairs"] == 7
    assert train["prompts"] == 6
    assert train["tokens"]["prompt"] == 5 * 3 + 2 * 2
    assert train["length"]["chosen"] == {"mean": 54 / 7, "p50": 6.0, "p95": 12.0, "max": 12.0}
    assert found.report["eval"] is None


def test_length_tells_the_label_or_does_not(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": "longer", "rejected": "short"},
        {"prompt": "Q", "chosen": "even", "rejected": "size"},
        {"prompt": "Q", "chosen": "long", "rejected": "longer"},
        {"prompt": "Q", "chosen": "longer", "rejected": "least"},
    ]
    report = made(recipe(write(tmp_path / "rows.jsonl", rows))).report
    assert report["train"]["longer_is_chosen"] == (1 + 0.5 + 0 + 1) / 4
    assert report["train"]["cut_even"] == 0
    # Cut to four tokens responses are equally long, and "long" and "longer" the same (that pair is
    # dropped); what is left counts as it was written.
    length = LengthRecipe(max_response_tokens=4)
    data = DataRecipe(train=(DataSource(path=str(tmp_path / "rows.jsonl")),), length=length)
    report = build(data, Encoder(byte_tokenizer(), length=length), kind="pair", seed=0).report
    assert report["train"]["pairs"] == 3 and report["train"]["length"]["chosen"]["max"] == 4
    assert report["train"]["longer_is_chosen"] == (1 + 0.5 + 1) / 3
    assert report["train"]["cut_even"] == 2


def test_rated_rows(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Q{i}",
            "responses": [{"text": f"answer {k}", "rating": k} for k in range(4)],
        }
        for i in range(6)
    ]
    rows.append({"prompt": "Q", "responses": [{"text": "a", "rating": 1}] * 2})
    rows.append({"prompt": "Q", "responses": [{"text": "a", "rating": 1}, {"text": ""}]})
    source = write(tmp_path / "rows.jsonl", rows)
    found = made(recipe(source, pairing=PairingRecipe(pairs_per_prompt=2)))
    (entry,) = found.report["sources"]
    assert (entry["read"], entry["kept"], entry["items"], len(found.train)) == (8, 6, 12, 12)
    assert entry["dropped"] == {"no response lower than the best by more than min_gap": 1}
    assert entry["rejected"] == {"responses: fewer than two usable rated answers": 1}
    assert all(item.pair.margin in (1.0, 2.0, 3.0) for item in found.train)
    # One demonstration a row, however many pairs; KTO counts the shared best answer once.
    twice = recipe(source, pairing=PairingRecipe(pairs_per_prompt=2))
    assert len(made(twice, "demonstration").train) == 6
    apart = made(twice, "unpaired")
    assert [item.label.desirable for item in apart.train] == [True, False, False] * 6
    with pytest.raises(RecipeError, match="'rows' holds ratings, not pairs: add `pairing: "):
        made(recipe(source))
    other = write(tmp_path / "pairs.jsonl", pairs(3))
    with pytest.raises(RecipeError, match="no source holds ratings; delete the key"):
        made(recipe(other, pairing=PairingRecipe()))
    assert made(recipe(source, other, pairing=PairingRecipe())).report["train"]["pairs"] == 9


def test_part_of_a_row_may_be_dropped(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "good", "rejected": "bad<eos>d"}, *pairs(3)]
    found = made(recipe(write(tmp_path / "rows.jsonl", rows)), "unpaired")
    (entry,) = found.report["sources"]
    assert (entry["kept"], entry["items"]) == (4, 7)
    assert entry["items_dropped"] == {"text holds the special token <eos>": 1}
    assert found.report["train"]["examples"] == 7
    assert found.report["train"]["desirable"] == 4


def test_kinds_that_do_not_fit(tmp_path: Path) -> None:
    labelled = [{"prompt": f"Q{i}", "completion": f"a{i}", "label": i % 2 == 0} for i in range(6)]
    unpaired = write(tmp_path / "thumbs.jsonl", labelled)
    shown = write(tmp_path / "shown.jsonl", [{"messages": []}, {"prompt": "Q", "completion": "a"}])
    with pytest.raises(DataError, match=r"'thumbs' holds unpaired feedback, .*`loss\.type: kto`"):
        made(recipe(unpaired))
    with pytest.raises(DataError, match="'shown' holds demonstrations, and this needs pairs"):
        made(recipe(shown))
    with pytest.raises(DataError, match="'shown' holds demonstrations, and this needs unpaired"):
        made(recipe(shown), "unpaired")
    answers = write(tmp_path / "said.jsonl", [{"prompt": "Q", "responses": ["a", "b"]}])
    with pytest.raises(DataError, match=r"'said' holds answers that nobody judged, .*needs pairs"):
        made(recipe(answers))
    with pytest.raises(DataError, match="call the field `completion` where they are to be imit"):
        made(recipe(answers), "demonstration")
    found = made(recipe(unpaired), "demonstration")
    assert len(found.train) == 3
    dropped = found.report["sources"][0]["dropped"]
    assert dropped == {"labelled undesirable: not imitated": 3}


def test_nothing_left_is_one_line(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 99, "chosen": "a", "rejected": "b"}]
    source = write(tmp_path / "rows.jsonl", rows)
    expected = r"nothing usable is left of the train data \(rows\): prompt longer than .* \(1\)"
    with pytest.raises(DataError, match=expected):
        made(recipe(source))
    good = write(tmp_path / "good.jsonl", pairs(3))
    with pytest.raises(DataError, match=r"nothing usable is left of the eval data \(rows\)"):
        made(recipe(good, eval=(source,)))


def test_held_out_prompts_are_in_one_split_alone(tmp_path: Path) -> None:
    rows = pairs(30) + [row | {"chosen": "yes again"} for row in pairs(30)]
    found = made(recipe(write(tmp_path / "rows.jsonl", rows), eval_fraction=0.2))
    assert (len(found.train), len(found.eval)) == (48, 12)
    assert not {p.prompts[0].ids for p in found.train} & {p.prompts[0].ids for p in found.eval}
    assert found.report["eval"]["prompts_in_train"] == 0
    assert found.report["sources"][0]["kept"] == 60
    # Neither the order of the rows nor the file's name matters; the seed does.
    random.Random(1).shuffle(rows)
    again = made(recipe(write(tmp_path / "other.jsonl", rows), eval_fraction=0.2))
    assert {p.prompts[0].ids for p in again.eval} == {p.prompts[0].ids for p in found.eval}
    other = made(recipe(write(tmp_path / "rows.jsonl", rows), eval_fraction=0.2), seed=1)
    assert {p.prompts[0].ids for p in other.eval} != {p.prompts[0].ids for p in found.eval}


def test_prompts_that_truncation_makes_equal_stay_together(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x" * 40 + f" {i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(9)
    ] + pairs(9)
    length = LENGTH.model_copy(update={"prompt": "keep_start"})
    data = DataRecipe(
        train=(write(tmp_path / "rows.jsonl", rows),), length=length, eval_fraction=0.5
    )
    found = build(data, Encoder(byte_tokenizer(), length=length), kind="pair", seed=0)
    assert not {p.prompts[0].ids for p in found.train} & {p.prompts[0].ids for p in found.eval}
    assert found.report["train"]["prompts"] + found.report["eval"]["prompts"] == 10


def test_too_few_prompts_to_hold_any_out(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(1) * 4)
    with pytest.raises(RecipeError, match=r"`data\.eval_fraction`: 0\.1 of 1 prompts leaves none"):
        made(recipe(source, eval_fraction=0.1))


def test_overlap_of_eval_sources_is_reported(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs(10))
    held = write(tmp_path / "test.jsonl", pairs(13)[8:])
    found = made(recipe(train, eval=(held,)))
    assert found.report["eval"]["prompts_in_train"] == 2
    assert found.report["eval"]["pairs"] == 5
    roles = [source["split_role"] for source in found.report["sources"]]
    assert roles == ["train", "eval"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    sources = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sources.append(write(tmp_path / folder / "train.jsonl", pairs(2)))
    found = made(recipe(*sources))
    assert {item.source for item in found.train} == {"a/train", "b/train"}
    assert len({item.id for item in found.train}) == 4
    named = [source.model_copy(update={"name": "both"}) for source in sources]
    assert {item.source for item in made(recipe(*named)).train} == {"both"}


def test_the_same_seed_gives_the_same_data(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(20)).model_copy(update={"limit": 12})
    data = recipe(source, eval_fraction=0.25)
    one, two = made(data, "unpaired", seed=4), made(data, "unpaired", seed=4)
    assert (one.train, one.eval, one.report) == (two.train, two.eval, two.report)


def test_kto_gets_responses_of_other_prompts(tmp_path: Path) -> None:
    found = made(recipe(write(tmp_path / "rows.jsonl", pairs(12)), eval_fraction=0.25), "unpaired")
    for split in (found.train, found.eval):
        mine = {item.responses[0].ids: item.prompts[0].ids for item in split}
        for item in split:
            assert mine[item.label.mismatched.ids] != item.prompts[0].ids
    with pytest.raises(DataError, match="KTO needs two or more different prompts"):
        made(recipe(write(tmp_path / "one.jsonl", pairs(1))), "unpaired")
    plain = made(recipe(write(tmp_path / "rows.jsonl", pairs(3))), "demonstration")
    assert all(item.label is None for item in plain.train)


@pytest.mark.parametrize("seed", range(5))
def test_mismatched_responses_with_uneven_prompts(seed: int) -> None:
    prompts = [1] * 9 + [2] * 2 + [3]
    examples = [
        Item.of((p, p), (10 + i, 5, 6), label=Desirable(desirable=True), id=str(i))
        for i, p in enumerate(prompts)
    ]
    found = with_mismatched(examples, seed, max_tokens=4, split="train")
    for item in found:
        assert isinstance(item.label, Desirable) and item.label.mismatched is not None
        assert len(item.label.mismatched.ids) == 2
        assert prompts[item.label.mismatched.ids[0] - 10] != item.prompts[0].ids[0]


def test_answers_too_long_leave_their_lists(tmp_path: Path) -> None:
    """With `response: drop`, as reward models read them."""
    length = LengthRecipe(max_prompt_tokens=24, max_response_tokens=12, response="drop")
    said = [["short", "a good deal too long", "brief"], ["one", "two"], ["a" * 30, "b"]]
    rows = [
        {"prompt": f"Q{i}", "responses": own, "rankings": list(range(1, len(own) + 1))}
        for i, own in enumerate(said)
    ]
    data = recipe(write(tmp_path / "rows.jsonl", rows)).model_copy(update={"length": length})
    encoder = Encoder(byte_tokenizer(template=CHATML), length=length)
    found = build(data, encoder, kind="rated", seed=0)
    (entry,) = found.report["sources"]
    assert [item.label for item in found.train] == [Ranks((1, 3)), Ranks((1, 2))]
    assert (entry["kept"], entry["dropped"]) == (2, {LONG_RESPONSE: 1})
    assert entry["responses_left_out"] == {LONG_RESPONSE: 1}
    assert [(line["row"], line["field"]) for line in found.quarantine] == [
        (1, "responses"),
        (3, None),
    ]


def test_every_answer_of_a_conversation(tmp_path: Path) -> None:
    """`turns: all` learns the tokens that the conversation's answers are, and no others."""
    chats = [
        [
            {"role": role, "content": f"{text}{n}"}
            for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
        ]
        for n in range(6)
    ]
    source = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML

    def learnt(data: DataRecipe) -> tuple[list[str], list[str]]:
        encoder = Encoder(tokenizer, length=data.length)
        dataset = build(data, encoder, kind="demonstration", seed=0)
        texts = [
            [encoder.decode(item.responses[0].ids).strip() for item in part]
            for part in (dataset.train, dataset.eval)
        ]
        assert len({item.id for item in dataset.train}) == len(dataset.train)
        return texts[0], texts[1]

    length = LengthRecipe(max_prompt_tokens=512)
    last = SftDataRecipe(train=(source,), length=length)
    every = SftDataRecipe(train=(source,), length=length, turns="all")
    assert learnt(last) == ([f"d{n}" for n in range(6)], [])
    assert learnt(every) == ([f"{x}{n}" for n in range(6) for x in "bd"], [])
    train, held = learnt(
        SftDataRecipe(train=(source,), length=length, turns="all", eval_fraction=0.34)
    )
    assert len(held) == 4 and {text[1] for text in held} & {text[1] for text in train} == set()
    weighted = [[{**turn, "weight": int(turn["content"] != "b1")} for turn in c] for c in chats]
    for more in ({}, {"system": "s"}):
        source = write(tmp_path / "weighted.jsonl", [{"messages": c, **more} for c in weighted])
        learnt_texts, _ = learnt(SftDataRecipe(train=(source,), length=length, turns="all"))
        assert learnt_texts == [f"{x}{n}" for n in range(6) for x in "bd" if f"{x}{n}" != "b1"]
    split = write(tmp_path / "split.jsonl", [{"prompt": c[:3], "completion": c[3:]} for c in chats])
    assert learnt(SftDataRecipe(train=(split,), length=length, turns="all"))[0] == [
        f"d{n}" for n in range(6)
    ]
