"""The pairs of the demonstration that sees: what they are balanced in, by construction."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from palate.demo.vision import scenes
from palate.demo.vision.easy_vqa import (
    COLOURS,
    SHAPES,
    UNSEEN_THINGS,
    UNSEEN_WORDINGS,
    Question,
    questions,
    sentence,
    things_of,
    twins,
)
from palate.demo.vision.pairs import (
    BLIND,
    HELD_OUT,
    POLICY,
    SHUFFLED,
    TRAIN,
    UNSEEN_THING,
    UNSEEN_WORDING,
    blind,
    shuffled,
    write_pairs,
)
from palate.demo.vision.presets import Preset
from palate.store.files import read_jsonl

needs_easy_vqa = pytest.mark.skipif(find_spec("easy_vqa") is None, reason="easy-vqa is missing")
SMALL = Preset(captions=20, pairs=60, scene_pairs=20, policy_pairs=20, held_out=40)


def asked() -> list[Question]:
    """Questions about images of known things, some answers rarer than others."""
    rng = np.random.default_rng(0)
    made = []
    for image in range(60):
        thing = (COLOURS[rng.integers(3)], SHAPES[rng.integers(3)])
        red = "yes" if thing[0] == "black" else "no"
        made += [
            Question("what color is the shape?", thing[0], "train", image, thing),
            Question("is there a black shape?", red, "train", image, thing),
            Question("what shape is present?", thing[1], "train", image, thing),
        ]
    return made


def test_each_answer_of_a_question_is_chosen_as_often_as_rejected() -> None:
    pairs = twins(asked(), seed=0)
    assert len(pairs) > 100
    balance: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        assert pair.rejected != pair.question.answer
        balance[pair.question.text, pair.question.answer] += 1
        balance[pair.question.text, pair.rejected] -= 1
    assert not +balance and not -balance
    # No image is asked the same question twice.
    assert len({(p.question.text, p.question.image) for p in pairs}) == len(pairs)


def test_who_does_not_look_is_right_half_of_the_time() -> None:
    """Any score of question and answer alone, be it random, is right about one of two twins."""

    def score(question: str, answer: str) -> int:
        return int(hashlib.sha256(f"{question}|{answer}".encode()).hexdigest(), 16)

    rows = [pair.row("x") for pair in twins(asked(), seed=1)]
    right: Counter[str] = Counter()
    for row in rows:
        question = row["prompt"][0]["content"][1]["text"]  # type: ignore[index]
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))  # type: ignore[index]
        twin = str(row["id"]).rpartition("-")[0]
        right[twin] += score(question, chosen) > score(question, rejected)
    assert set(right.values()) == {1} and 2 * len(right) == len(rows)


def test_twins_use_up_the_answers_as_far_as_they_can() -> None:
    """Of 3 yes and 5 no three pairs of twins; of 2, 2 and 2 answers three."""
    thing = ("red", "circle")
    yes_no = [Question("is there?", a, "train", i, thing) for i, a in enumerate("yyynnnnn")]
    three = [Question("what?", a, "train", i, thing) for i, a in enumerate("aabbcc")]
    for seed in range(5):
        assert len(twins(yes_no, seed=seed)) == 6
        assert len(twins(three, seed=seed)) == 6


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("what color is the triangle?", "teal", "The triangle is teal."),
        ("what is the color of the shape?", "red", "The shape is red."),
        ("what is the blue shape?", "circle", "The blue shape is a circle."),
        ("what shape is present?", "circle", "The shape is a circle."),
        ("is there a red shape?", "yes", "Yes, there is a red shape."),
        ("is there not a red shape in the image?", "yes", "Yes, there is no red shape."),
        ("does the image not contain a circle?", "no", "No, there is a circle."),
        ("is no circle present?", "no", "No, there is a circle."),
    ],
)
def test_answers_say_what_they_claim(question: str, answer: str, said: str) -> None:
    assert sentence(question, answer) == said


def test_things_are_told_by_questions() -> None:
    rows = [
        ("what color is the shape?", "blue", 0),
        ("is there not a circle?", "no", 0),
        ("is there a red shape?", "no", 0),
        ("what is the teal shape?", "triangle", 1),
        ("what color is the shape?", "red", 2),
        ("is there a circle?", "no", 2),
    ]
    assert things_of(rows) == {0: ("blue", "circle"), 1: ("teal", "triangle")}


def test_captions_of_scenes_are_as_often_true_as_not() -> None:
    made = list(scenes.scene_twins(50, split="train", seed=0))
    rows = scenes.scene_rows(made, [(f"{i}a", f"{i}b") for i in range(50)], "train")
    balance: Counter[str] = Counter()
    length = 0
    for row in rows:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))  # type: ignore[index]
        assert chosen != rejected
        balance[chosen] += 1
        balance[rejected] -= 1
        length += len(chosen) - len(rejected)
    assert length == 0 and not +balance and not -balance
    assert {scene.kind for pair in made for scene in pair} == set(scenes.KINDS)
    assert len({row["id"] for row in rows}) == len(rows)


def test_scenes_are_the_same_each_time_and_differ_by_split_and_seed() -> None:
    def pngs(split: str, seed: int) -> list[bytes]:
        made = scenes.scene_twins(10, split=split, seed=seed)
        return [scene.png for pair in made for scene in pair]

    assert pngs("train", 0) == pngs("train", 0)
    assert not set(pngs("train", 0)) & set(pngs("held out", 0))
    assert not set(pngs("train", 0)) & set(pngs("train", 1))


def test_scenes_show_what_captions_say() -> None:
    """Counted in the pixels: things of the named colour, and the colour of the tallest bar."""
    from scipy.ndimage import label

    for pair in scenes.scene_twins(40, split="train", seed=3):
        for scene in pair:
            pixels = np.asarray(Image.open(io.BytesIO(scene.png)).convert("RGB")).astype(int)
            words = scene.caption.rstrip(".").split()

            def of(colour: str, pixels: np.ndarray = pixels) -> np.ndarray:
                return (np.abs(pixels - scenes.COLOURS[colour]).max(-1) <= 2).astype(int)

            if scene.kind == "count":
                number = scenes.NUMBERS.index(words[2]) + 1
                assert label(of(words[3]))[1] == number
            elif scene.kind == "colour":
                assert label(of(words[3]))[1] == 1
            elif scene.kind == "chart":
                heights = {c: int(of(c).sum(0).max()) for c in scenes.COLOURS}
                assert max(heights, key=lambda c: heights[c]) == words[-1]


@needs_easy_vqa
def test_every_image_of_easy_vqa_is_of_one_thing() -> None:
    for split, images in (("train", 4000), ("test", 1000)):
        known = questions(split)  # type: ignore[arg-type]
        assert len({q.image for q in known}) > 0.85 * images
        answers = {"{colour}": COLOURS, "{shape}": SHAPES}
        for q in known:
            for place, words in enumerate(answers.values()):
                assert q.answer not in words or q.answer == q.subject[place]
    assert {q.wording for q in questions("test")} >= UNSEEN_WORDINGS
    assert len({q.wording for q in questions("test")}) == 24


@needs_easy_vqa
def test_what_is_held_out_is_in_no_training_row(tmp_path) -> None:
    sizes = write_pairs(tmp_path, SMALL, seed=0)
    rows = {name: list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in sizes}
    assert all(len(rows[name]) == size > 0 for name, size in sizes.items())
    assert all(
        (tmp_path / image).is_file()
        for of in rows.values()
        for r in of
        for image in r.get("images", ())
    )

    def images(*names: str) -> set[str]:
        return {image for name in names for row in rows[name] for image in row["images"]}

    held_out = images(HELD_OUT, UNSEEN_THING, UNSEEN_WORDING)
    assert not images(TRAIN, POLICY, "captions") & held_out
    by_image = {q.path: q.subject for split in ("train", "test") for q in questions(split)}  # type: ignore[arg-type]

    def things(name: str) -> set[tuple[str, str]]:
        paths = (image.removeprefix("images/easy-vqa/") for image in images(name))
        return {by_image[path] for path in paths if path in by_image}

    for name in (TRAIN, POLICY, "captions", HELD_OUT, UNSEEN_WORDING):
        assert not things(name) & UNSEEN_THINGS
    assert things(UNSEEN_THING) <= UNSEEN_THINGS
    again = tmp_path / "again"
    write_pairs(again, SMALL, seed=0)
    assert all(
        (again / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()
        for name in sizes
    )


@needs_easy_vqa
def test_rows_without_images_and_with_others(tmp_path) -> None:
    write_pairs(tmp_path, dataclasses.replace(SMALL, scene_pairs=0), seed=0)
    rows, bare, other = (
        list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in (HELD_OUT, BLIND, SHUFFLED)
    )
    assert [blind(row) for row in rows] == bare
    assert all(
        "images" not in row and "image" not in str(row["prompt"][0]["content"][:0]) for row in bare
    )
    assert all(isinstance(row["prompt"][0]["content"], str) for row in bare)
    by_id = {row["id"]: row for row in rows}
    for row in other:
        own = by_id[row["id"].removesuffix("-shuffled")]
        assert row["images"] != own["images"] and row["chosen"] == own["chosen"]
    assert sorted(row["images"] for row in other) == sorted(row["images"] for row in rows)
    assert shuffled(rows, seed=1) != other
