"""Formats with images, their odd cases: two columns of images, videos, copies, built rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_formats import MINE, SOURCES, records
from palate.data.content import bare
from palate.data.images import check
from palate.data.images import load as load_image
from palate.data.pairing import pair_row
from palate.data.readers import RowError, readers
from palate.data.readers.pictures import image_refs, place_images
from palate.data.readers.registry import recognise
from palate.data.schema import ImageRef, Message, Preference, images_in, text_in
from palate.data.stream import read_source
from palate.recipes.images import ImagesRecipe
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from text_formats import FIXTURES, load, read_one, said, talk, user

IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def asked(*parts: Any) -> list[dict[str, Any]]:
    """One turn of the user, of parts."""
    return [{"role": "user", "content": list(parts)}]


def first(name: str) -> dict[str, Any]:
    """The first record of a reader's fixtures."""
    return records(name)[0].value


def refusal(name: str, record: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        read_one(name, record)
    return str(caught.value)


# Of these the first record has one image, in `image`.
SHOWN = ["rlaif_v", "rlhf_v", "mm_rlhf", "povid", "mmpr"]


@pytest.mark.parametrize("name", SHOWN)
def test_other_images_beside_the_image_are_refused(name: str) -> None:
    record = first(name)
    assert refusal(name, record | {"images": ["other.png"]}) == "images: beside image"
    # What says no more than the other column, and what is empty, is no second image.
    for images in (record["image"], [record["image"]], [], None, ""):
        assert read_one(name, record | {"images": images}) == read_one(name, record)


def test_images_of_other_columns_are_not_dropped_in_silence() -> None:
    record = first("vlfeedback")
    assert refusal("vlfeedback", record | {"images": ["b.png"]}) == "images: beside img_path"
    row = first("mmpr") | {"image": None, "images": ["b.png"]}
    assert read_one("mmpr", row).images == (ImageRef(path="b.png"),)
    plain = first("rlaif_v") | {"image": None, "images": ["b.png"]}
    assert refusal("rlaif_v", plain) == "image: no image"


@pytest.mark.parametrize("name", SHOWN)
def test_videos_in_the_place_of_images_are_refused(name: str) -> None:
    record = first(name) | {"image": ["clips/A.MP4"]}
    assert refusal(name, record) == "image: a video, not read by this format"


@pytest.mark.parametrize("path", [s[1] for s in SOURCES if s[0] in (*SHOWN, "vlfeedback")])
def test_images_of_the_fixtures_are_found_and_sound(path: str) -> None:
    limits = ImagesRecipe()
    found = [image for row in load(path).rows for image in row.images if not row.has_videos]
    assert found
    for image in found:
        data = load_image(image, (FIXTURES / path).parent, limits)
        assert check(data, limits).width


@pytest.mark.parametrize("name", [*SHOWN, "vlfeedback"])
def test_hub_names_and_folders_named_after_them_are_told(name: str) -> None:
    sample = [record.value for record in records(name)]
    for hub in readers()[name].hub:
        for source in (hub, f"/data/{hub.lower()}/train.parquet"):
            reader, why = recognise(sample, source)
            assert (reader.name, why.rpartition("; ")[2]) == (name, f"named as {hub}")


def test_a_question_of_nothing_but_an_image_asks_nothing() -> None:
    record = first("rlaif_v") | {"question": " <image>\n"}
    assert refusal("rlaif_v", record) == "question.0.content: empty"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[1]", "text: text, not an object in JSON"),
        ("[" * 100_000, "text: text, not an object in JSON"),
        (3, "text: a number, not an object in JSON"),
        ('{"question": null}', "text.question: null"),
        ('{"question": "Q"}', "text.chosen: missing"),
        ('{"question": "Q", "chosen": "\\ud800"}',
         "text.chosen: half of a surrogate pair: no Unicode text"),
    ],
)  # fmt: skip
def test_rlhf_v_texts_that_are_none(value: Any, why: str) -> None:
    assert refusal("rlhf_v", first("rlhf_v") | {"text": value}) == why


def test_rlhf_v_texts_that_are_objects_already() -> None:
    record = first("rlhf_v")
    plain = record | {"text": json.loads(record["text"])}
    assert read_one("rlhf_v", plain) == read_one("rlhf_v", record)


def test_vlfeedback_answers_in_lists_of_unequal_length() -> None:
    record = records("vlfeedback")[1].value
    changes: list[dict[str, Any]] = [{"model": ["a"]}, {"response": []}]
    for change in changes:
        uneven = record | {"completions": record["completions"] | change}
        assert refusal("vlfeedback", uneven) == "completions: lists that are not equally long"
    assert refusal("vlfeedback", record | {"completions": {"model": "a"}}) == (
        "completions: an object, not one of lists"
    )


def test_vlfeedback_pairs_of_the_mean_aspect() -> None:
    best, equal = load("vlfeedback/vlfeedback_80k.jsonl").rows
    assert all(response.rating is None for response in best.responses)
    recipe = PairingRecipe.model_validate({"score": "mean", "rejected": "worst"})
    (pair,) = pair_row(best, recipe, 0).pairs
    assert (said(pair), pair.margin) == (["A yellow box on blue.", "A dog."], 3.5)
    assert (pair.images, pair.prompt) == (best.images, best.prompt)
    assert pair_row(equal, recipe, 0).pairs == ()


def test_mm_rlhf_ties() -> None:
    record = first("mm_rlhf")
    assert read_one("mm_rlhf", record | {"is_tie": 1}).tie
    for is_tie in (None, False, 0):
        assert not read_one("mm_rlhf", record | {"is_tie": is_tie}).tie
    assert refusal("mm_rlhf", record | {"is_tie": "maybe"}) == "is_tie: text, not true or false"


def test_povid_turns_that_are_none() -> None:
    record = first("povid")
    for turns, why in (
        ([], "conversations: empty"),
        ([{"from": "stranger", "value": "x"}], "conversations.0.from: nobody who is known"),
        ([{"from": "human"}], "conversations.0.value: missing"),
        (record["conversations"][:1], "conversations: wrong role order: a response is one"),
    ):
        both = {"conversations": turns, "rejected_conversations": turns}
        assert refusal("povid", record | both).startswith(why)


def mmpr_rows(folder: Path, meta: Any) -> list[Preference]:
    """Rows of an annotation file below a meta.json."""
    (folder / "annotations").mkdir(parents=True)
    file = folder / "annotations" / "part.jsonl"
    images = ("x.png", "../x.png", r"\x.png")
    rows = [{"image": i, "question": "Q?", "chosen": "a", "rejected": "b"} for i in images]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return read_source(DataSource(path=str(file)), seed=0).rows


def test_mmpr_roots_hide_no_way_out(tmp_path: Path) -> None:
    entry = {"root": "clevr/", "annotation": "MMPR/annotations/part.jsonl"}
    rows = mmpr_rows(tmp_path / "one", {"clevr": entry})
    assert [r.images[0].path for r in rows] == ["clevr/x.png", "clevr/../x.png", r"\x.png"]
    # Of two roots for one file neither is taken.
    two = {"clevr": entry, "again": entry | {"root": "elsewhere"}}
    assert mmpr_rows(tmp_path / "two", two)[0].images == (ImageRef(path="x.png"),)


@pytest.mark.parametrize("meta", ["", "{", "[]", '{"a": 1}', '{"a": {"root": 1}}', "[" * 100_000])
def test_a_meta_json_that_is_none(tmp_path: Path, meta: str) -> None:
    assert mmpr_rows(tmp_path, meta)[0].images == (ImageRef(path="x.png"),)


def test_texts_of_trl_without_images_keep_what_they_say() -> None:
    row = {"prompt": "What is <image> in HTML?", "chosen": "a", "rejected": "b", "images": None}
    assert read_one("trl_preference", row).prompt == "What is <image> in HTML?"


@pytest.mark.parametrize("value", [None, "", []])
def test_no_images(value: Any) -> None:
    assert image_refs(value, "image") == ()


def test_images_without_a_place_go_before_the_first_question() -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    chat = [system, *talk("Hi.", "Yes?", "Go.")]
    two = [ImageRef(path="a.png"), ImageRef(path="b.png")]
    placed = place_images(chat, two, "images")
    assert images_in(placed) == two
    assert bare(placed) == [system, *asked(IMAGE, IMAGE, text("Hi.")), *chat[2:]]
    # Texts around a place keep their spaces and line breaks.
    marked = place_images(user(" <image>\n a<image>"), two, "images")
    assert images_in(marked) == two
    assert bare(marked) == asked(text(" "), IMAGE, text("\n a"), IMAGE)
    with pytest.raises(RowError, match="no turn of the user for them"):
        place_images([system], two, "images")


BUILT: list[dict[str, Any]] = [
    {
        "prompt": asked(IMAGE, text("What is it?\n")),
        "chosen": [{"role": "assistant", "content": "A box."}],
        "rejected": [{"role": "assistant", "content": "A bird."}],
        "images": ["images/0a.png"],
        "tie": False,
        "margin": 1.5,
        "source": "rlaif_v",
        "id": "rlaif_v:1",
    },
    {
        "prompt": user("Name a tree."),
        "chosen": [{"role": "assistant", "content": "An oak."}],
        "rejected": [{"role": "assistant", "content": "A boat."}],
        "images": [],
        "tie": True,
        "margin": None,
        "source": "plain",
        "id": "plain:7",
    },
]


def test_built_rows_are_read_back() -> None:
    assert recognise(BUILT, "rows")[0].name == "palate_pairs"
    shown, plain = (read_one("palate_pairs", row) for row in BUILT)
    assert (bare(shown.prompt), said(shown)) == (BUILT[0]["prompt"], ["A box.", "A bird."])
    assert (shown.images, shown.margin) == ((ImageRef(path="images/0a.png"),), 1.5)
    assert (shown.source, shown.id, shown.tie) == ("rlaif_v", "rlaif_v:1", False)
    assert (plain.prompt, plain.images, plain.tie) == (user("Name a tree."), (), True)
    inside = BUILT[0] | {"images": [{"bytes": b"\x89PNG", "path": None}]}
    assert read_one("palate_pairs", inside).images == (ImageRef(data=b"\x89PNG"),)
    for images in ([], ["a.png", "b.png"], None):
        assert refusal("palate_pairs", BUILT[0] | {"images": images}) == (
            "images: not as many as the prompt has places for"
        )


WORDS = ["", "<image>", "a.png", "a.mp4", "\ud800", "data:image/png;base64,AAAA", "iVBORw0KGgo!"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "image", "path", "bytes"]), inner)
    ),
    max_leaves=5,
)
COLUMNS = ["image", "images", "video", "img_path", "margin", "prompt", "question", "tie", "id"]


@pytest.mark.parametrize("name", [*MINE, "palate_pairs"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_anything_in_two_columns_is_a_row_or_a_named_refusal(
    name: str, data: st.DataObject
) -> None:
    known = BUILT if name == "palate_pairs" else [record.value for record in records(name)]
    record = data.draw(st.sampled_from(known)) | data.draw(
        st.dictionaries(st.sampled_from([*COLUMNS, *known[0]]), ANYTHING, max_size=2)
    )
    before = repr(record)
    try:
        row = read_one(name, record)
    except RowError as error:
        assert error.reason and "\n" not in error.reason
        return
    finally:
        assert repr(record) == before
    places = 0
    for turn in row.prompt if isinstance(row.prompt, list) else ():
        if isinstance(turn["content"], list):
            # Parts are for turns with an image or a video: a text stays a text.
            here = sum(part["type"] == "image" for part in turn["content"])
            here += sum(len(p["video"].refs) for p in turn["content"] if p["type"] == "video")
            assert here
            places += here
    assert places == len(row.images)
    for response in row.responses:
        assert isinstance(response.content, str) == isinstance(row.prompt, str)
        for answer in response.content if isinstance(response.content, list) else ():
            assert isinstance(answer["content"], str) and text_in(answer["content"]).strip()
