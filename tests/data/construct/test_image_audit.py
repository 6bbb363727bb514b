"""Images of a build: sizes counted again, the same sample whatever the order, and leaks by hand."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from build_cases import built, chat_pair, rows_of, write_jsonl
from palate.data.image_counts import ASPECTS, SIDES

KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def sizes_of(folder: Path, n: int) -> dict[str, tuple[int, int]]:
    """Writes n images, and says how large each is."""
    draw = random.Random(2)
    folder.mkdir(parents=True)
    sizes = {}
    for i in range(n):
        kind = draw.choice(list(KINDS))
        size = draw.choice([(40, 300), (64, 64), (128, 127), (255, 30), (256, 300), (700, 300)])
        file = io.BytesIO()
        Image.new("RGB", size, (i, 7, 7)).save(file, KINDS[kind])
        (folder / f"{i}.{kind}").write_bytes(file.getvalue())
        sizes[f"{i}.{kind}"] = size
    return sizes


def row(i: int, image: str) -> dict[str, Any]:
    parts = [{"type": "image"}, {"type": "text", "text": f"what is {i}?"}]
    named = {"tie": False, "source": "set", "id": f"set:{i}"}
    return chat_pair(i, prompt=[{"role": "user", "content": parts}], images=[image], **named)


def test_histograms_are_of_distinct_images(tmp_path: Path) -> None:
    sizes = sizes_of(tmp_path / "set", 25)
    names = [*sizes, *list(sizes)[:6]]
    write_jsonl(tmp_path / "set" / "rows.jsonl", [row(i, name) for i, name in enumerate(names)])
    found = built(tmp_path / "out", [{"path": tmp_path / "set"}])["images"]
    assert (found["used"], found["unique"], found["repeated"], found["most_often"]) == (
        31,
        25,
        6,
        2,
    )
    sides = [max(size) for size in sizes.values()]
    aspects = [width / height for width, height in sizes.values()]
    for bars, edges, values in (
        (found["longer_side"], SIDES, sides),
        (found["aspect"], ASPECTS, aspects),
    ):
        assert bars == [
            [low, below, sum(low <= value < below for value in values)]
            for low, below in itertools.pairwise(edges)
        ]
    assert found["formats"] == {
        KINDS[kind]: sum(name.endswith(kind) for name in sizes)
        for kind in sorted(KINDS, key=lambda kind: -sum(n.endswith(kind) for n in sizes))
    }
    assert found["held_out"] is None


def test_the_sample_is_the_seeds_whatever_the_order(tmp_path: Path) -> None:
    names = list(sizes_of(tmp_path / "set", 40))
    samples = []
    for number, (order, seed) in enumerate(((1, 0), (-1, 0), (1, 5))):
        file = tmp_path / "set" / "rows.jsonl"
        write_jsonl(file, [row(i, name) for i, name in enumerate(names[::order])])
        out = tmp_path / f"out{number}"
        built(out, [{"path": tmp_path / "set"}], seed=seed)
        record = json.loads((out / "pictures.json").read_text())
        samples.append(record["sample"])
        assert len(set(record["sample"])) == 20
        known = {picture["digest"] for picture in record["pictures"]}
        assert set(record["sample"]) <= known and len(record["pictures"]) <= 48
    assert samples[0] == samples[1] != samples[2]


def test_held_out_images_that_are_trained_on(tmp_path: Path) -> None:
    names = list(sizes_of(tmp_path / "set", 12))
    draw = random.Random(4)
    rows = [row(i, draw.choice(names)) for i in range(60)]
    write_jsonl(tmp_path / "set" / "rows.jsonl", rows)
    out = tmp_path / "out"
    report = built(out, [{"path": tmp_path / "set"}], output={"eval_fraction": 0.3})
    trained = {image for one in rows_of(out) for image in one["images"]}
    held = [one["images"][0] for one in rows_of(out, "eval")]
    assert report["images"]["held_out"] == {
        "images": len(set(held)),
        "in_train": len(set(held) & trained),
        "pairs": len(held),
        "pairs_in_train": sum(image in trained for image in held),
    }
    assert set(held) & trained
    # What the mixture leaves out is not trained on.
    more = {"output": {"eval_fraction": 0.3}, "mixture": {"take": {"set": 3}}}
    few = built(tmp_path / "few", [{"path": tmp_path / "set"}], **more)["images"]["held_out"]
    trained = {image for one in rows_of(tmp_path / "few") for image in one["images"]}
    held = [one["images"][0] for one in rows_of(tmp_path / "few", "eval")]
    assert few["in_train"] == len(set(held) & trained) <= 3
    assert few["pairs"] == len(held) and few["images"] > 3
