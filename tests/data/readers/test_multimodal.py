"""Multimodal formats: recognised from their columns, read exactly, images in their places."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from image_formats import IDS, MINE, SOURCES, records
from palate.data.content import bare
from palate.data.pairing import pair_row
from palate.data.readers import RowError, readers
from palate.data.readers.fields import turns
from palate.data.readers.pictures import image_refs, place_images
from palate.data.readers.registry import recognise
from palate.data.schema import ImageRef, Preference, images_in
from palate.data.stream import read_source
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource
from text_formats import FIXTURES, load, read_one, reasons, said, talk, user

IMAGE = {"type": "image"}
PNG = (FIXTURES / "mmpr/annotations/a.png").read_bytes()
IN_BASE64 = base64.b64encode(PNG).decode()


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def shown(*parts: Any) -> list[dict[str, Any]]:
    """One turn of the user about images."""
    return [{"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}]


def paths(row: Preference) -> list[str | None]:
    return [image.path for image in row.images]


@pytest.mark.parametrize(("name", "path", "why", "rows", "refused"), SOURCES, ids=IDS)
def test_recognised_and_reconciled(
    name: str, path: str, why: str, rows: int, refused: dict[str, int]
) -> None:
    result = load(path)
    assert (result.format, len(result.rows)) == (name, rows)
    assert result.why.startswith(why)
    assert reasons(result) == refused
    assert result.read == len(result.rows) + len(result.rejected)
    assert all(row.kind == readers()[name].kind for row in result.rows)


@pytest.mark.parametrize("name", MINE)
def test_readers_say_where_they_are_from(name: str) -> None:
    reader = readers()[name]
    assert reader.licence
    assert all(hub.count("/") == 1 for hub in reader.hub)
    assert reader.hub or name == "trl_preference"


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("field", ["video", "videos", "tools"])
def test_what_a_model_would_see_is_not_dropped_in_silence(name: str, field: str) -> None:
    if field in readers()[name].reads:
        pytest.skip("read")
    for record in records(name):
        try:
            read_one(name, record.value)
        except RowError:
            continue
        with pytest.raises(RowError) as caught:
            read_one(name, record.value | {field: ["a.mp4"]})
        assert str(caught.value) == f"{field}: not read by this format"


def test_rlaif_v() -> None:
    first, second, placed = load("rlaif_v/RLAIF-V-Dataset_000.parquet").rows
    assert bare(first.prompt) == shown(IMAGE, "What is on the table?\n")
    assert said(first) == ["A yellow box. ", "A cat and a box."]
    (image,) = first.images
    assert image.data is not None and image.data.startswith(b"\x89PNG")
    assert first.extra == {"origin_dataset": "VQAv2", "ds_name": "RLAIF-V-a"}
    assert second.images != first.images
    assert bare(placed.prompt) == shown("Is ", IMAGE, " a box?")


def test_rlhf_v() -> None:
    first, second = load("rlhf_v/train.parquet").rows
    assert bare(first.prompt) == shown(IMAGE, "Describe the scene.")
    assert said(second) == ["A square \u00e9.", "A ring."]
    plain = {"image": "a.png", "text": {"question": "Q?", "chosen": "a", "rejected": "b"}}
    assert paths(read_one("rlhf_v", plain)) == ["a.png"]


def test_vlfeedback() -> None:
    result = load("vlfeedback/vlfeedback_80k.jsonl")
    first, second = result.rows
    assert bare(first.prompt) == shown(IMAGE, "What do you see?")
    assert paths(first) == ["merged_images/svit-1.png"]
    assert said(first) == ["A yellow box on blue.", "A box.\n", "A dog."]
    assert first.responses[1].aspects == {
        "helpfulness": 3.0,
        "visual_faithfulness": 4.0,
        "ethical_considerations": 5.0,
    }
    # N/A is no rating; an empty answer costs itself alone.
    assert first.responses[2].aspects == {"helpfulness": 2.0, "visual_faithfulness": 1.0}
    assert [r.generator for r in first.responses] == ["a", "b", "c"]
    assert [item.counted_as for item in result.left_out] == [
        "completions.annotations.Ethical Considerations.Rating: text, not a number",
        "completions.response: empty",
    ]
    # As `datasets` has it: an object of lists.
    assert said(second) == ["The left one.", "The right one."]
    pairs = pair_row(first, PairingRecipe.model_validate({"preset": "ultrafeedback_all"}), 0)
    assert {tuple(said(p)) for p in pairs.pairs} == {
        ("A yellow box on blue.", "A box.\n"),
        ("A yellow box on blue.", "A dog."),
        ("A box.\n", "A dog."),
    }
    assert all(p.images == first.images for p in pairs.pairs)
    hub = records("vlfeedback")[0].value | {"image": {"bytes": PNG, "path": None}}
    assert read_one("vlfeedback", hub).images == (ImageRef(data=PNG),)


def test_mm_rlhf() -> None:
    first, sibling, tied, moving, words = load("mm_rlhf/dpo_pairs.jsonl").rows
    assert bare(moving.prompt) == shown({"type": "video"}, "What happens next?")
    assert moving.has_videos and moving.has_images and not first.has_videos
    assert paths(moving) == ["video/000003"]
    assert (first.id, sibling.id) == ("dpo_pairs:000001_1", "dpo_pairs:000001_1#2")
    assert bare(first.prompt) == bare(sibling.prompt) == shown(IMAGE, "What is the box's colour?")
    assert paths(first) == ["short/000001.png"] and not first.tie
    assert tied.tie and bare(tied.prompt) == shown(
        "Question: ", IMAGE, " Which letter?\nA: x\nB: y"
    )
    assert words.prompt == user("How do I open a lock?") and not words.images


def test_povid() -> None:
    first, several = load("povid/POVID_preference_data_for_VLLMs_version_1.json").rows
    assert bare(first.prompt) == shown(IMAGE, "\nWhat is on the shelf?")
    assert said(first) == ["Three books.", "Three books and a vase."]
    assert bare(several.prompt) == [
        *shown("Is it day?\n", IMAGE),
        {"role": "assistant", "content": "Yes."},
        *user("How do you know?"),
    ]
    assert paths(several) == ["000000000002.jpg"]


def test_mmpr() -> None:
    first, several, words = load("mmpr/annotations/clevr_wo_image.jsonl").rows
    assert bare(first.prompt) == shown(IMAGE, "How many cubes are there? Answer at the end.")
    assert paths(first) == ["a.png"]
    assert bare(several.prompt) == shown(
        "Image-1: ", IMAGE, "\nImage-2: ", IMAGE, "\nWhich has more?"
    )
    assert paths(several) == ["a.png", "b.png"]
    assert words.prompt == user("What is 2 + 2?")


def test_mmpr_roots_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "mmpr/annotations", folder / "annotations")
    file = folder / "annotations" / "clevr_wo_image.jsonl"
    entry = {"root": "MMPR/images/CLEVR/", "annotation": f"/far/away/{file.name}", "length": 6}
    (folder / "meta.json").write_text(json.dumps({"clevr": entry, "other": {"root": 3}}))
    first, several, _ = read_source(DataSource(path=str(file)), seed=0).rows
    assert paths(first) == ["MMPR/images/CLEVR/a.png"]
    assert paths(several) == ["MMPR/images/CLEVR/a.png", "MMPR/images/CLEVR/b.png"]
    # What leads elsewhere is left as it is, to be refused where images are looked up.
    more = {"question": "Q?", "chosen": "a", "rejected": "b"}
    odd = ["/etc/hostname", "https://example.com/a.png"]
    file.write_text("".join(json.dumps({"image": path, **more}) + "\n" for path in odd))
    assert [paths(r) for r in read_source(DataSource(path=str(file)), seed=0).rows] == [
        [path] for path in odd
    ]


def test_r1_reward() -> None:
    first, second, foreign = load("r1_reward/train.parquet").rows
    assert bare(first.prompt) == shown(IMAGE, "Describe it.")
    # The answer's own line breaks and spaces stay; those of the template go.
    assert said(first) == ["A yellow box.\n\nOn blue.", "A print of a dog.  "]
    assert first.images[0].data is not None
    assert said(second) == ["One.", "Two."]
    assert paths(foreign) == ["/data/1.jpg"]


def test_wildvision() -> None:
    first, second, bad = load("wildvision/test.parquet").rows
    assert bare(first.prompt) == shown(IMAGE, "What is this?")
    assert [r.generator for r in first.responses] == ["model-x", "model-y"]
    assert said(second) == ["It says X.", "X."]
    assert [r.generator for r in second.responses] == ["model-y", "model-x"]
    assert bad.tie and bad.extra is not None and bad.extra["winner"] == "tie (bothbad)"
    votes = {"leftvote": "A.", "rightvote": "B.", "tievote": None, "bothbad_vote": None}
    row = {
        "conversation_a": talk("Q?", "A."),
        "conversation_b": talk("Q?", "B."),
        "image": "a.png",
    }
    for winner, best in votes.items():
        found = read_one("wildvision", row | {"winner": winner})
        assert found.tie is (best is None) and (best is None or said(found)[0] == best)


def test_ixc() -> None:
    first, several, words = load("ixc/example.json").rows
    assert bare(first.prompt) == shown(IMAGE, "Parse it to JSON.")
    assert paths(first) == ["./one.png"]
    assert [r.generator for r in first.responses] == ["model-x", "model-y"]
    assert bare(several.prompt) == shown("Image1 ", IMAGE, "; Image2 ", IMAGE, "; Which is wider?")
    assert words.prompt == [{"role": "system", "content": "Be short."}, *user("Hi.")]
    # `<image>` is nothing special here.
    row = {"conversations_a": [], "conversations_b": [], "image": "a.png"}
    for name, answer in (("conversations_a", "a"), ("conversations_b", "b")):
        row[name] = [{"from": "human", "value": "<image>?"}, {"from": "bot", "value": answer}]
    assert bare(read_one("ixc", row).prompt) == shown(IMAGE, "<image>?")


def test_llava_critic_comparisons() -> None:
    first, second, tied = load("llava_critic/pairwise.parquet").rows
    assert bare(first.prompt) == shown(IMAGE, "What is it?")
    assert said(first) == ["A box [yellow].", "A dog.\n"]
    assert said(second) == ["One.", "Two."]
    assert (tied.tie, said(tied)) == (True, ["Yes.", "It is blue."])
    arena, scored, alike = load("llava_critic/pointwise.parquet").rows
    assert said(arena) == ["A boat.", "A box,\nyellow."]
    assert bare(arena.prompt) == shown(IMAGE, "Name it.")
    assert (said(scored), scored.tie) == (["A box.", "A sea."], False)
    assert alike.tie
    one, two = load("llava_critic/unified_reward.json").rows
    assert (said(one), paths(one)) == (["A box.", "A bird."], ["pictures/u1.png"])
    assert said(two) == ["A bird.", "A box."]


@pytest.mark.parametrize(
    "reply",
    [
        "The better response: [1] ... no: The better response: [2]",
        "The better response: [3]",
        "<answer>Answer 1 is better</answer><answer>Answer 2 is better</answer>",
        "I like the first response best.",
        "Answer 1 is better at this, Answer 2 is better at that.",
    ],
)
def test_no_verdict_is_guessed(reply: str) -> None:
    row = records("llava_critic")[0].value
    prompt, _ = row["conversations"]
    with pytest.raises(RowError, match="no verdict that is understood"):
        read_one(
            "llava_critic",
            row | {"conversations": [prompt, {"from": "gpt", "value": reply}]},
        )


def test_prompts_that_name_the_reply_after_the_answers_are_not_understood() -> None:
    row = records("llava_critic")[0].value
    prompt, reply = row["conversations"]
    prompt = prompt | {"value": prompt["value"] + 'Say "The better response: [1]" or "[2]".'}
    with pytest.raises(RowError, match="no two answers"):
        read_one("llava_critic", row | {"conversations": [prompt, reply]})


def test_trl_images() -> None:
    one, two, words, strings = load("trl_preference/images.parquet").rows
    assert bare(one.prompt) == shown(IMAGE, "How many boxes?")
    assert bare(two.prompt) == shown("Compare ", IMAGE, " with ", IMAGE, ".")
    assert len(two.images) == 2 and all(image.data for image in two.images)
    assert (words.prompt, words.images) == (user("Name a tree."), ())
    # Without a place, images come before the first question, as in TRL.
    assert bare(strings.prompt) == shown(IMAGE, "How many?")
    plain, unplaced = load("trl_preference/unified_reward_images.json").rows
    assert (bare(plain.prompt), paths(plain)) == (
        shown(IMAGE, "\nWhat is it?"),
        ["pictures/v1.png"],
    )
    assert bare(unplaced.prompt) == shown(IMAGE, "What colour is it?")


ASKED = shown(IMAGE, "How many?")
ONE = [{"role": "assistant", "content": "One."}]
SIX = [{"role": "assistant", "content": "Six."}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": ONE, "rejected": SIX, "images": ["a.png"]},
        {"prompt": ASKED, "chosen": ONE, "rejected": SIX, "image": "a.png"},
        {"prompt": ASKED, "chosen": "One.", "rejected": "Six.", "images": ["a.png"]},
        {"chosen": ASKED + ONE, "rejected": ASKED + SIX, "images": ["a.png"]},
        {"prompt": ASKED, "chosen": ASKED + ONE, "rejected": ASKED + SIX, "images": ["a.png"]},
        {"prompt": "How many?", "chosen": ASKED + ONE, "rejected": ASKED + SIX, "image": "a.png"},
        {"prompt": "How many?", "chosen": ONE, "rejected": SIX, "images": [{"path": "a.png"}]},
        {"prompt": user("<image>How many?"), "chosen": ONE, "rejected": SIX, "image": ["a.png"]},
        # Parts that hold their image.
        {"prompt": shown(IMAGE | {"image": "a.png"}, "How many?"), "chosen": ONE, "rejected": SIX},
        {
            "prompt": shown({"type": "image_url", "image_url": {"url": "a.png"}}, "How many?"),
            "chosen": ONE,
            "rejected": SIX,
        },
    ],
)
def test_trl_images_in_all_their_forms_are_one_row(row: dict[str, Any]) -> None:
    found = read_one("trl_preference", row)
    assert (bare(found.prompt), said(found)) == (ASKED, ["One.", "Six."])
    assert found.images == (ImageRef(path="a.png"),)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": []}, "images: not as many as the turns have places for"),
        ({"images": ["a.png", "b.png"]}, "images: not as many as the turns have places for"),
        ({"images": ["a.png"], "image": "b.png"}, "image: beside images"),
        ({"images": [3]}, "images.0: a number, neither a path nor an image"),
        ({"images": [""]}, "images.0: empty"),
        ({"chosen": [{"role": "assistant", "content": [IMAGE, text("x")]}]},
         "chosen: an image in an answer"),
        ({"prompt": shown(IMAGE, {"type": "audio"}, "x")},
         "prompt.0.content.1: neither a text nor an image part"),
        ({"prompt": shown(IMAGE, {"type": "video"}, "x")},
         "videos: not as many as the turns have places for"),
        ({"prompt": shown(IMAGE | {"text": "x"}, "x")},
         "prompt.0.content.0.text: a text in an image part"),
        ({"prompt": shown(IMAGE)}, "prompt.0.content: empty"),
    ],
)  # fmt: skip
def test_bad_trl_images(change: dict[str, Any], expected: str) -> None:
    row = {"prompt": ASKED, "chosen": ONE, "rejected": SIX, "images": ["a.png"]}
    with pytest.raises(RowError) as caught:
        read_one("trl_preference", row | change)
    assert str(caught.value) == expected


def test_repeated_prompts_must_show_the_same_images() -> None:
    mine, other = (shown(IMAGE | {"image": path}, "How many?") for path in ("a.png", "b.png"))
    with pytest.raises(RowError, match="with other images than the prompt"):
        read_one("trl_preference", {"chosen": mine + ONE, "rejected": other + SIX})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", ImageRef(path="a.png")),
        ({"path": "a.png"}, ImageRef(path="a.png")),
        ({"bytes": PNG, "path": "a.png"}, ImageRef(path="a.png", data=PNG)),
        ({"bytes": IN_BASE64}, ImageRef(data=PNG)),
        (PNG, ImageRef(data=PNG)),
        (IN_BASE64, ImageRef(data=PNG)),
        (f"data:image/png;base64,{IN_BASE64}", ImageRef(data=PNG)),
    ],
)
def test_images_as_they_are_written(value: Any, expected: ImageRef) -> None:
    assert image_refs(value, "image") == (expected,)
    assert image_refs([value, value], "image") == (expected, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("data:image/png,abc", "image: a data address that is not in base64"),
        ("data:image/png;base64", "image: a data address that is not in base64"),
        (f"data:image/png;base64,{IN_BASE64}*", "image: not base64"),
        ("iVBORw0KGgo\u00e9", "image: not base64"),
        ({"bytes": 3}, "image.bytes: a number, not bytes"),
        ({}, "image: an object, neither a path nor an image"),
        ("half \ud800", "image: half of a surrogate pair: no Unicode text"),
    ],
)
def test_images_that_are_none(value: Any, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        image_refs(value, "image")
    assert str(caught.value) == expected


def pictures(count: int) -> list[ImageRef]:
    return [ImageRef(path=f"{i}.png") for i in range(count)]


def test_places_of_images() -> None:
    chat = turns([*talk("A <image>", "B"), *user("C <image><image>")], "messages")
    placed = place_images(chat, pictures(3), "images")
    assert images_in(placed) == pictures(3)
    assert bare(placed) == [
        *shown("A ", IMAGE),
        {"role": "assistant", "content": "B"},
        *shown("C ", IMAGE, IMAGE),
    ]
    assert place_images(chat, (), "images") == chat
    for count in (1, 2, 4):
        with pytest.raises(RowError, match="not as many as there are <image>"):
            place_images(chat, pictures(count), "images")


def test_formats_are_told_apart() -> None:
    for name in MINE:
        for record in records(name):
            reader, _ = recognise([record.value for record in records(name)], "rows")
            assert reader.name == name, record.row


@pytest.mark.parametrize("sample", ["vl_rewardbench", "mm_rlhf_rewardbench"])
def test_real_samples_of_benchmarks(sample: str) -> None:
    file = Path("../shared/data/vision_reward_benches") / f"{sample}_sample.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    result = read_source(DataSource(path=str(file)), seed=0)
    assert (result.format, result.read, len(result.rows)) == ("mm_rlhf", 120, 120)
    assert all(len(row.images) == 1 and row.images[0].path for row in result.rows)
