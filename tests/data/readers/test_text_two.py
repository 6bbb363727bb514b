"""Text formats, part two: recognised from their columns, read exactly, refused by name."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from palate.data.content import bare
from palate.data.pairing import pair_row
from palate.data.readers import RowError, readers
from palate.data.readers.registry import recognise
from palate.data.schema import ImageRef, images_in
from palate.data.stream import read_source
from palate.recipes.construct import DataBuildRecipe
from palate.recipes.load import load_recipe
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from text_formats import load, read_one, reasons, said, talk, user
from text_formats_two import IDS, MINE, SOURCES, plain, records

IMAGE = {"type": "image"}
DATA = Path(
    os.environ.get("PALATE_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data"
)


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(("name", "path", "why", "rows", "refused"), SOURCES, ids=IDS)
def test_recognised_and_reconciled(
    name: str, path: str, why: str, rows: int, refused: dict[str, int]
) -> None:
    result = load(path)
    assert (result.format, len(result.rows)) == (name, rows)
    assert result.why.startswith(why)
    assert reasons(result) == refused
    assert result.read == len(result.rows) + result.merged + len(result.rejected)
    assert all(row.kind == readers()[name].kind for row in result.rows)


@pytest.mark.parametrize("name", MINE)
def test_what_a_model_would_see_is_not_dropped_in_silence(name: str) -> None:
    for record in records(name):
        try:
            read_one(name, record.value)
        except RowError:
            continue
        with pytest.raises(RowError) as caught:
            read_one(name, record.value | {"tools": [{"name": "search"}]})
        assert str(caught.value) == "tools: not read by this format"


@pytest.mark.parametrize("name", MINE)
def test_readers_say_their_licence(name: str) -> None:
    reader = readers()[name]
    assert reader.licence
    assert all(hub.count("/") == 1 for hub in reader.hub)


def test_alpaca_farm() -> None:
    first, second = load("alpaca_farm/alpaca_human_preference.json").rows
    assert first.prompt == user("Name a tree that keeps its leaves.")
    assert (said(first), first.margin, first.tie) == (["A yew.\n", "An oak."], None, False)
    assert second.prompt == user("Say it in one word.\n\nIt rains cats and dogs.")
    assert said(second) == ["Downpour.", "It rains."]
    # What the authors' annotators write for a draw.
    row = {"instruction": "Q", "input": "", "output_1": "a", "output_2": "b"}
    assert read_one("alpaca_farm", row | {"preference": 0}).tie


def test_alpaca_eval_annotations() -> None:
    first, second, *draws = load("alpaca_eval_annotations/annotations.json").rows
    assert said(first) == ["Chlorophyll.\n", "It is painted."]
    assert (first.margin, first.tie) == (0.75, False)
    assert [r.generator for r in first.responses] == ["reference-a", "model-b"]
    assert first.extra == {"dataset": "koala", "annotator": "a_judge"}
    assert (said(second), second.margin) == (["Iron oxide.", "It is."], 1.0)
    assert [r.generator for r in second.responses] == ["model-b", "reference-a"]
    assert [(row.tie, row.margin) for row in draws] == [(True, 0.0), (True, 0.0)]


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data with the published files")
def test_alpaca_eval_annotations_as_published() -> None:
    result = load(str(DATA / "alpaca_eval_annotations" / "annotations.json"))
    assert (result.format, result.read, len(result.rows)) == ("alpaca_eval_annotations", 581, 579)
    assert reasons(result) == {"output_2: identical to the other answer": 2}
    assert all(row.margin is not None and 0 < row.margin <= 1 for row in result.rows)


def test_orca_pairs() -> None:
    plain_, short = load("orca_pairs/intel.jsonl").rows
    assert plain_.prompt == user("Is 7 prime?")
    assert short.prompt == [
        {"role": "system", "content": "You answer in one word."},
        *user("Is 8 prime?"),
    ]
    same, swapped, tied, unrated = load("orca_pairs/distilabel.jsonl").rows
    assert (same.margin, same.tie, same.extra) == (5.0, False, {"in_gsm8k_train": False})
    # The judge saw them in another order; chosen and rejected are exchanged in the file already.
    assert (said(swapped), swapped.margin) == (["1", "2"], 3.0)
    assert swapped.extra == {"in_gsm8k_train": True}
    assert [(row.tie, row.margin) for row in (tied, unrated)] == [(True, 0.0), (True, 0.0)]
    with pytest.raises(RowError, match="status: not one of unchanged, swapped, tie"):
        read_one("orca_pairs", {"question": "Q", "chosen": "a", "rejected": "b", "status": "new"})


def test_capybara() -> None:
    first, tied = load("capybara/train.jsonl").rows
    assert first.prompt == talk(
        "What is a fugue?", "A piece whose voices follow one another.", "Name one."
    )
    assert said(first) == ["The Little Fugue in G minor.\n", "Für Elise."]
    assert (first.margin, [r.rating for r in first.responses]) == (3.0, [5.0, 2.0])
    assert [r.generator for r in first.responses] == ["original", "model-c"]
    assert first.extra == {"source": "Airoboros"}
    assert (tied.tie, tied.margin) == (True, 0.0)


def test_tulu3() -> None:
    result = load("tulu3/mixture.jsonl")
    first, second, third = result.rows
    assert (first.prompt, said(first)[0]) == (user("What is a delta?"), "Land at a river's mouth.")
    assert (first.id, first.extra) == (
        "mixture:sft_0a1b",
        {"source": "ai2-adapt-dev/part_one"},
    )
    assert second.prompt == talk("Write a haiku.", "Rain on the old roof.", "Write it shorter.")
    assert third.prompt == talk("Hi.", "Hello.", "Why?")
    assert Counter(part.counted_as for part in result.left_out) == {
        "prompt: not a turn that chosen and rejected share": 1
    }
    assert load("tulu3/if_augmented.jsonl").rows[0].margin is None
    rated, unrated, tied = load("tulu3/olmo2.jsonl").rows
    assert (rated.margin, rated.responses[1].rating) == (2.25, 2.5)
    assert [r.generator for r in rated.responses] == ["model-a", "model-b"]
    assert (unrated.margin, unrated.tie) == (None, False)
    assert (tied.margin, tied.tie) == (0.0, True)
    persona = load("tulu3/personas.jsonl").rows[0]
    assert [r.generator for r in persona.responses] == ["model-a", "model-b"]


def test_sourced_chats() -> None:
    first, second = load("sourced_chats/skywork.jsonl").rows
    assert (said(first), first.extra) == (["2 = 2 x 1.", "It is."], {"source": "magpie_ultra"})
    assert second.prompt == talk("Hi.", "Hello.", "Who are you?")
    first, second = load("sourced_chats/ultrafeedback_mean_aspects.jsonl").rows
    assert (first.margin, first.tie, second.margin, second.tie) == (2.25, False, 0.0, True)


def test_webgpt() -> None:
    first, second, tied = load("webgpt/train.jsonl").rows
    assert first.prompt == user("Why do leaves fall?")
    assert said(first) == ["To save water [1].\n", "They are tired."]
    assert (first.margin, first.extra) == (1.0, {"dataset": "eli5"})
    assert [r.rating for r in first.responses] == [0.5, -0.5]
    assert (said(second)[0], second.margin) == ("To be found by others [1][2].", 2.0)
    assert (tied.tie, tied.margin) == (True, 0.0)
    assert pair_row(second, PairingRecipe(), 0).flips == ()


def test_summaries() -> None:
    first, second, news = load("summarize_comparisons/train.jsonl").rows
    prompt = (
        "SUBREDDIT: r/relationships\n\nTITLE: Friend [25M] sold my [24F] bike\n\n"
        "POST: I lent a friend my bike.\n\nHe sold it.\n\nTL;DR:"
    )
    assert first.prompt == second.prompt == prompt
    assert first.chosen.content == " A friend sold the bike that I lent him."
    assert [r.generator for r in second.responses] == ["ref", "sup2"]
    assert second.rejected.content == " Bikes."
    assert news.prompt == "Article:\nThe bridge is closed for a year.\n\nTL;DR:"
    assert (news.chosen.content, news.extra) == (
        " The bridge is closed for a year.",
        {"batch": "cnndm0"},
    )
    result = load("summarize_axis/validation.jsonl")
    (row,) = result.rows
    assert (row.prompt, result.merged) == (prompt, 1)
    assert [r.rating for r in row.responses] == [6.0, 2.0]
    assert row.responses[0].aspects == {"accuracy": 7.0, "coverage": 4.0, "coherence": 7.0}
    assert row.responses[1].aspects == {"coverage": 4.0, "coherence": 7.0}
    (pair,) = pair_row(row, PairingRecipe(score="overall"), 0).pairs
    assert (pair.chosen.content, pair.margin) == (" A friend sold my bike.", 4.0)


def test_swe_arena() -> None:
    left, right, bad = load("swe_arena/train.jsonl").rows
    assert left.prompt == user("Write a page with a red button.")
    assert said(left) == ["<button style='color:red'>x</button>\n", "<a>x</a>"]
    assert [r.generator for r in right.responses] == ["model-b", "model-a"]
    assert said(right) == ["<button/>", "<p>x</p>"]
    assert (bad.tie, bad.extra) == (True, {"vote": "vote_both_bad"})
    (row,) = load("swe_arena/bigcodereward.jsonl").rows
    assert (said(row)[0], row.chosen.generator) == ("<button/>", "model-b")


def test_ranked() -> None:
    result = load("ranked/rows.jsonl")
    first, drawn, several, headed = result.rows
    assert (first.prompt, [r.rank for r in first.responses]) == (
        user("Name a mountain."),
        [1, 3, 2],
    )
    assert bare(drawn.prompt) == [{"role": "user", "content": [IMAGE, text("\nHow many boats?")]}]
    assert drawn.images == (ImageRef(path="pictures/harbour.jpg"),)
    pairs = pair_row(drawn, PairingRecipe(chosen="every", rejected="every"), 0).pairs
    # Equal ranks are no pair.
    assert sorted(said(pair)[0] for pair in pairs) == ["2", "Two."]
    assert bare(several.prompt)[2] == {
        "role": "user",
        "content": [text("Compare "), IMAGE, text(" with "), IMAGE, text(".")],
    }
    assert bare(headed.prompt) == [
        {"role": "user", "content": [IMAGE, text("What is drawn here?")]}
    ]
    assert [r.rank for r in headed.responses] == [1, 3]
    assert [part.counted_as for part in result.left_out] == ["responses: empty"]


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "1", None, [1]])
def test_ranks_that_are_none(rank: Any) -> None:
    left: list[str] = []
    row = {"prompt": "Q", "responses": ["a", "b"], "rankings": [rank, 1]}
    with pytest.raises(RowError, match="fewer than two usable ranked answers"):
        read_one("ranked", row, left)
    assert [item.partition(": ")[0] for item in left] == ["rankings.0"]


def test_llamafactory_sharegpt() -> None:
    first, system, column, drawn = load("llamafactory_sharegpt/dpo_demo.json").rows
    assert first.prompt == talk("Name a metal.", "Iron.", "A lighter one?")
    assert said(first) == ["Aluminium.", "Lead."]
    assert system.prompt[0] == {"role": "system", "content": "Be brief."}  # type: ignore[index]
    assert said(system)[0] == "It lowers the freezing point.\n"
    assert column.prompt[0] == {"role": "system", "content": "You are a chemist."}  # type: ignore[index]
    assert bare(drawn.prompt) == [{"role": "user", "content": [IMAGE, text("How many flasks?")]}]
    assert drawn.images == (ImageRef(path="flasks.jpg"),)
    # Its OpenAI variant, told by the turns themselves.
    row = {
        "conversations": user("Q"),
        **dict(zip(("chosen", "rejected"), talk("", "b"), strict=True)),
    }
    row["chosen"] = {"role": "assistant", "content": "a"}
    assert said(read_one("llamafactory_sharegpt", row)) == ["a", "b"]


def test_llamafactory_alpaca() -> None:
    first, second, drawn = load("llamafactory_alpaca/dpo_alpaca.json").rows
    assert (first.prompt, said(first)[0]) == (user("Translate.\nguten Tag"), "good day")
    assert second.prompt == [
        {"role": "system", "content": "You teach grammar."},
        *talk("Name a noun.", "House.", "Name a verb."),
    ]
    assert bare(drawn.prompt) == [
        {"role": "user", "content": [text("What is on "), IMAGE, text("?")]}
    ]


def test_dataset_info_names_columns_and_roles(tmp_path: Path) -> None:
    (chat,) = load("llamafactory_declared/chats.json").rows
    # Where columns are named, only those are read.
    assert (chat.prompt, said(chat)) == (user("Name a poem."), ["The Raven.", "A raven."])
    (row,) = load("llamafactory_declared/texts.json").rows
    assert row.prompt == [{"role": "system", "content": "Be brief."}, *user("Name a novel.")]
    # A folder may be named, from the folder above; two accounts of one file are none.
    info = {"file_name": "rows", "ranking": True, "columns": {"prompt": "q"}}
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "train.jsonl"
    file.write_text(json.dumps({"q": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"one": info}))
    result = read_source(DataSource(path=str(file)), seed=0)
    assert (result.format, result.rows[0].prompt) == ("llamafactory_alpaca", user("Q"))
    other = tmp_path / "rows" / "more.jsonl"
    other.write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    two = {"one": info, "two": info | {"columns": {"prompt": "prompt"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(two))
    assert read_source(DataSource(path=str(other)), seed=0).format == "trl_preference"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"ranking": true}}'])
def test_a_dataset_info_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_info.json").write_text(content)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    assert read_source(DataSource(path=str(file)), seed=0).format == "llamafactory_alpaca"


def test_ms_swift() -> None:
    first, chat, drawn, other, headed, moving = load("ms_swift/rows.jsonl").rows
    assert bare(moving.prompt) == [
        {"role": "user", "content": [{"type": "video"}, text("What moves?")]}
    ]
    assert moving.images == (ImageRef(path="kite.mp4"),) and moving.has_videos
    assert first.prompt[0] == {"role": "system", "content": "You are a helper."}  # type: ignore[index]
    assert said(first) == ["It may.\n", "I do not know."]
    assert (chat.prompt, said(chat)) == (talk("1 + 1?", "2", "And 1 more?"), ["3", "4"])
    assert bare(drawn.prompt) == [{"role": "user", "content": [IMAGE, text("What is this?")]}]
    assert (drawn.images, drawn.margin) == ((ImageRef(path="kitten.png"),), 0.5)
    # The same answer to another picture.
    assert said(other) == ["A kitten.", "A kitten."]
    assert other.chosen.prompt is None
    assert images_in(other.rejected.prompt) == [ImageRef(path="noise.png")]
    assert bare(other.rejected.prompt) == bare(other.prompt)
    assert bare(headed.prompt) == [
        {"role": "user", "content": [IMAGE, IMAGE, text("Which is larger?")]}
    ]
    assert headed.rejected.prompt is None
    older, newest = load("ms_swift/query_response.jsonl").rows
    assert older.prompt == [
        {"role": "system", "content": "Be brief."},
        *talk("Hi.", "Hello.", "Name a boat."),
    ]
    assert said(newest) == ["A jib.", "A jab."]


def test_texts_without_images_keep_what_they_say() -> None:
    row = {
        "messages": talk("What is <image> in HTML?", "A tag of no browser."),
        "rejected_response": "b",
    }
    assert read_one("ms_swift", row).prompt == user("What is <image> in HTML?")


def test_unified_reward_rows_are_trl_pairs() -> None:
    row = load("trl_preference/unified_reward.json").rows[0]
    assert (row.prompt, row.chosen.content) == ("Name a spice.", "Saffron.")


def test_hub_names_decide_between_formats() -> None:
    sample = [record.value for record in records("sourced_chats")]
    for source in (
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        "/data/skywork/skywork-reward-preference-80k-V0.2/data/train.parquet",
    ):
        reader, why = recognise(sample, source)
        assert reader.name == "sourced_chats"
        assert why.endswith("; named as Skywork/Skywork-Reward-Preference-80K-v0.2")
    # A name alone decides nothing.
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert recognise(pairs, "allenai/tulu-2.5-preference-data")[0].name == "trl_preference"
    # Columns of two formats: the one that the name says, and not the more specific one.
    both = [{**records("capybara")[0].value, "system": "", "question": "Q"}]
    assert recognise(both, "rows.jsonl")[0].name == "capybara"
    assert recognise(both, "Intel/orca_dpo_pairs")[0].name == "orca_pairs"


def test_ultrafeedback_all_pairs_and_largest_gap() -> None:
    row = load("ultrafeedback/train.jsonl").rows[0]
    means = {
        r.generator: sum(r.aspects.values()) / len(r.aspects) for r in row.responses if r.aspects
    }
    every = pair_row(row, PairingRecipe.model_validate({"preset": "ultrafeedback_all"}), 0).pairs
    names = list(means)
    wanted = {(a, b) for a in names for b in names if means[a] > means[b]}
    assert {(p.chosen.generator, p.rejected.generator) for p in every} == wanted
    assert len(every) == len(wanted)
    recipe = PairingRecipe.model_validate({"preset": "ultrafeedback_largest_gap"})
    (hard,) = pair_row(row, recipe, 0).pairs
    assert hard.margin == max(means.values()) - min(means.values())
    assert hard.margin == max(p.margin for p in every if p.margin is not None)


def test_the_example_recipe_names_data_of_known_formats() -> None:
    path = Path(__file__).parents[3] / "examples" / "build" / "reward-text.yaml"
    recipe = load_recipe(DataBuildRecipe, path, [])
    hub = {name for reader in readers().values() for name in reader.hub}
    assert {source.path for source in recipe.sources} <= hub


def test_prompts_and_answers_are_the_files_own() -> None:
    for name in MINE:
        for record in records(name):
            try:
                row = read_one(name, record.value)
            except RowError:
                continue
            inside = json.dumps(record.value, ensure_ascii=False)
            for response in row.responses:
                for item in plain(response.content):
                    assert json.dumps(item, ensure_ascii=False)[1:-1] in inside
