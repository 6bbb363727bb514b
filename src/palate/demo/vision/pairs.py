"""The demonstration's files: pictures, captions to align with, pairs to learn from and to test on.

Held-out pairs are of easy-VQA's own test images. Three sets of them differ in what training left
out: images alone, also the pairing of colour and shape, also the wording of the question. Two more
are the first again without images, and with the images of other rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from palate.demo.vision import easy_vqa
from palate.demo.vision.easy_vqa import UNSEEN_THINGS, UNSEEN_WORDINGS, Pair, Question, questions
from palate.demo.vision.presets import Preset
from palate.demo.vision.scenes import PROMPT, scene_rows, scene_twins
from palate.store.files import write_bytes, write_text

Row = dict[str, Any]

CAPTIONS, TRAIN, SCENES = "captions", "train", "train-scenes"
POLICY, POLICY_BLIND = "policy", "policy-blind"
HELD_OUT, UNSEEN_THING, UNSEEN_WORDING = "heldout", "unseen-things", "unseen-wordings"
HELD_OUT_SCENES, BLIND, SHUFFLED = "heldout-scenes", "blind", "shuffled"
TITLES = {
    HELD_OUT: "held-out images",
    UNSEEN_THING: "unseen colour and shape",
    UNSEEN_WORDING: "unseen wordings",
    HELD_OUT_SCENES: "held-out scenes",
    BLIND: "without images",
    SHUFFLED: "images of other rows",
}
"""File of held-out pairs -> name in metrics and reports."""


def write_pairs(folder: Path, preset: Preset, *, seed: int) -> dict[str, int]:
    """Writes every file below `folder`; the same arguments give the same bytes.

    Returns:
        Name of each file -> its rows.
    """
    train, test = questions("train"), questions("test")
    known = [q for q in train if not is_unseen(q)]
    pairs = easy_vqa.twins(known, seed=seed)[: preset.pairs]
    policy = easy_vqa.twins(known, seed=seed + 1)[: preset.policy_pairs]
    half = preset.held_out // 2
    files: dict[str, list[Row]] = {
        CAPTIONS: [
            *_captions(folder, known, preset.captions, seed),
            *_scenes(folder, preset.scene_pairs, "captions", seed),
        ],
        TRAIN: _rows(folder, pairs),
        SCENES: _scenes(folder, preset.scene_pairs, "train", seed),
        POLICY: _rows(folder, policy),
        HELD_OUT: _rows(folder, easy_vqa.twins(select(test, False, False), seed=seed)[: 2 * half]),
        UNSEEN_THING: _rows(folder, easy_vqa.twins(select(test, True, False), seed=seed)[:half]),
        UNSEEN_WORDING: _rows(folder, easy_vqa.twins(select(test, False, True), seed=seed)[:half]),
        HELD_OUT_SCENES: _scenes(folder, half, "held out", seed),
    }
    files[POLICY_BLIND] = [blind(row) for row in files[POLICY]]
    files[BLIND] = [blind(row) for row in files[HELD_OUT]]
    files[SHUFFLED] = shuffled(files[HELD_OUT], seed=seed)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", text)
    return {name: len(rows) for name, rows in files.items()}


def is_unseen(question: Question) -> bool:
    return question.subject in UNSEEN_THINGS or question.wording in UNSEEN_WORDINGS


def select(asked: Sequence[Question], subject: bool, wording: bool) -> list[Question]:
    """Questions whose image, and whose wording, training leaves out, or does not."""
    return [
        q
        for q in asked
        if (q.subject in UNSEEN_THINGS) == subject and (q.wording in UNSEEN_WORDINGS) == wording
    ]


def blind(row: Row) -> Row:
    """A row without its image: the question alone."""
    (turn,) = row["prompt"]
    text = "".join(part["text"] for part in turn["content"] if part["type"] == "text")
    bare = {name: value for name, value in row.items() if name != "images"}
    return bare | {"id": f"{row['id']}-blind", "prompt": [turn | {"content": text}]}


def shuffled(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """The rows, each with the image of another, drawn at random; none with its own."""
    order = list(range(len(rows)))
    random.Random(f"{seed}|shuffled").shuffle(order)
    images = [rows[i]["images"] for i in order]
    # Along one ring a step that no row meets its own image by; most rings have 1.
    steps = range(1, len(rows))
    step = next(s for s in steps if all(images[i] != images[i - s] for i in range(len(rows))))
    return [
        rows[place] | {"id": f"{rows[place]['id']}-shuffled", "images": images[i - step]}
        for i, place in enumerate(order)
    ]


def _rows(folder: Path, pairs: Iterable[Pair]) -> list[Row]:
    return [pair.row(_easy_image(folder, pair.question)) for pair in pairs]


def _captions(folder: Path, asked: Sequence[Question], count: int, seed: int) -> list[Row]:
    """A caption of each of `count` images; what is rejected is another thing's."""
    things = sorted({q.path: q for q in asked}.values(), key=lambda q: q.path)
    rng = random.Random(f"{seed}|captions")
    rng.shuffle(things)
    everything = sorted({q.subject for q in things})
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    rows = []
    for question in things[:count]:
        false = rng.choice([subject for subject in everything if subject != question.subject])
        chosen, rejected = (f"There is a {' '.join(words)}." for words in (question.subject, false))
        row = {
            "id": f"caption-{question.image}",
            "prompt": [{"role": "user", "content": content}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "images": [_easy_image(folder, question)],
        }
        rows.append(row)
    return rows


def _easy_image(folder: Path, question: Question) -> str:
    """Copies an image of easy-VQA; gives its path below `folder`."""
    path = f"images/easy-vqa/{question.path}"
    if not (folder / path).exists():
        write_bytes(folder / path, (easy_vqa.data_folder() / question.path).read_bytes())
    return path


def _scenes(folder: Path, count: int, split: str, seed: int) -> list[Row]:
    """Rows of `count` scenes, of each kind as many to within two."""
    twins = list(scene_twins(count // 2, split=split, seed=seed))
    images = []
    for number, scenes in enumerate(twins):
        paths = [f"images/scenes/{split.replace(' ', '-')}/{number}-{side}.png" for side in "ab"]
        for path, scene in zip(paths, scenes, strict=True):
            write_bytes(folder / path, scene.png)
        images.append((paths[0], paths[1]))
    return scene_rows(twins, images, split)
