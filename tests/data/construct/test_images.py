"""Images: checked, stored by content, in a folder or in the rows; broken ones cost their row."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from build_cases import built, chat_pair, rows_of, text_pair, write_jsonl
from palate.data.content import bare
from palate.data.stream import read_source
from palate.recipes.schema import DataSource


def png(shade: int, size: tuple[int, int] = (4, 3)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(data, "PNG")
    return data.getvalue()


def with_image(i: int, path: Any, **more: Any) -> dict[str, Any]:
    parts = [{"type": "image"}, {"type": "text", "text": f"what is {i}?"}]
    prompt = [{"role": "user", "content": parts}]
    named = {"tie": False, "source": "set", "id": f"set:{i}"}
    return chat_pair(i, prompt=prompt, images=[path], **named, **more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two pictures, one of them twice; a broken one, a missing one, and one outside."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, data in (("a.png", png(1)), ("b.png", png(2)), ("again.png", png(1))):
        (folder / name).write_bytes(data)
    (folder / "broken.png").write_bytes(png(3)[:-30])
    (tmp_path / "secret.png").write_bytes(png(4))
    names = ["a.png", "b.png", "again.png", "broken.png", "none.png", "../secret.png"]
    rows = [with_image(i, name) for i, name in enumerate(names)]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


def test_a_folder_of_images(source: Path, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", [text_pair(0)])
    out = tmp_path / "out"
    report = built(out, [{"path": source, "name": "seen"}, {"path": text}])
    first = report["sources"][0]
    assert (first["read"], first["kept"], first["with_images"]) == (6, 3, 3)
    assert sum(first["dropped"].values()) == 3
    assert all(reason.startswith("image: ") for reason in first["dropped"])
    assert (report["images"]["used"], report["images"]["unique"]) == (3, 2)
    digests = [hashlib.sha256(png(i)).hexdigest() for i in (1, 2)]
    assert {path.name for path in (out / "images").iterdir()} == {f"{d}.png" for d in digests}
    rows = rows_of(out)
    assert [row["images"] for row in rows] == [
        [f"images/{digests[0]}.png"],
        [f"images/{digests[1]}.png"],
        [f"images/{digests[0]}.png"],
        [],
    ]
    assert rows[0]["prompt"][0]["content"] == [
        {"type": "image", "text": None},
        {"type": "text", "text": "what is 0?"},
    ]
    assert rows[3]["prompt"][0]["content"] == [{"type": "text", "text": "q0: "}]
    back = read_source(DataSource(path=str(out)), seed=0).rows
    assert bare(back[0].prompt) == with_image(0, "")["prompt"]
    assert back[0].images[0].path == f"images/{digests[0]}.png"
    # What is built on it finds its images there.
    again = built(tmp_path / "again", [{"path": out}])
    assert again["sources"][0]["kept"] == 4
    assert rows_of(tmp_path / "again") == rows


def test_images_that_no_row_needs_any_more_are_left_behind(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built(out, [{"path": source}], mixture={"take": {"set": 1}})
    assert len(list((out / "images").iterdir())) == 1


def test_embedded_images_are_decoded_by_datasets(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built(out, [{"path": source}], output={"images": "embedded"})
    assert not (out / "images").exists()
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [image.getpixel((0, 0)) for row in rows for image in row["images"]] == [
        (1, 0, 0),
        (2, 0, 0),
        (1, 0, 0),
    ]
    again = built(tmp_path / "again", [{"path": out}], output={"images": "embedded"})
    assert again["sources"][0]["kept"] == 3
    assert rows_of(tmp_path / "again") == rows_of(out)


def test_limits_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "small.png").write_bytes(png(1))
    (folder / "wide.png").write_bytes(png(1, (200, 10)))
    write_jsonl(folder / "rows.jsonl", [with_image(0, "small.png"), with_image(1, "wide.png")])
    report = built(tmp_path / "out", [{"path": folder}], images={"max_pixels": 100})
    assert report["images"]["broken"] == {"too many pixels to be decoded": 1}


def test_an_image_root_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.png").write_bytes(png(1))
    file = write_jsonl(tmp_path / "rows" / "a.jsonl", [with_image(0, "in/a.png")])
    report = built(tmp_path / "out", [{"path": file, "image_root": root}])
    assert report["sources"][0]["kept"] == 1


def test_a_picture_with_another_question_is_another_prompt(source: Path, tmp_path: Path) -> None:
    rows = [with_image(0, name) for name in ("a.png", "b.png", "again.png")]
    write_jsonl(source / "rows.jsonl", rows)
    report = built(tmp_path / "out", [{"path": source}])
    assert report["train"]["prompts"] == 2
    info_rows = built(tmp_path / "lf", [{"path": source}], output={"llamafactory": True})
    assert info_rows["output"]["llamafactory"] == {"rows": {"train": 3}, "left_out": 0}
