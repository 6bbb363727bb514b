"""Pictures in reports: embedded, within bounds, and nothing else than pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from build_cases import chat_pair, write_jsonl
from palate.data.schema import ImageRef
from palate.data.thumbnails import BYTES
from palate.data_verbs import inspect_data
from palate.errors import RunError
from palate.evaluate.worst_pairs import Judged, worst_pairs
from palate.report import write_report
from palate.report.words import MINUS
from palate.store.pictures import CHARACTERS, PICTURES


def noisy(number: int) -> bytes:
    """An image whose thumbnail takes all the room that one may take."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures_of(page: str) -> list[str]:
    return re.findall(r'<img[^>]* src="([^"]*)"', page)


def check_page(page: str) -> None:
    """The page loads nothing, and what it shows is within bounds."""
    assert len(page.encode()) < 1_000_000
    # Where the text of data names a place, it is text.
    assert not re.findall(r'(?:src|href|srcset|action)="(?!#|data:,|data:image/jpeg;base64,)', page)
    assert "<script" not in page and "@import" not in page and 'src="http' not in page
    shown = pictures_of(page)
    assert len(shown) <= PICTURES and sum(map(len, shown)) <= CHARACTERS
    for url in shown:
        assert len(base64.b64decode(url.partition(",")[2])) <= BYTES
    assert "img-src data:" in page


def evaluation(folder: Path, lines: list[dict[str, Any]]) -> str:
    """The report of a reward evaluation with these examples."""
    folder.mkdir(exist_ok=True)
    names = dict.fromkeys(name for line in lines for name in line["scores"])
    result = {"official": {"value": 0.5}, "accuracy": {"all": {"n": 4, "accuracy": 0.5}}}
    benchmarks = [
        {"name": name, "items": 4, "pairs": 4, "results": dict.fromkeys(names, result)}
        for name in dict.fromkeys(line["benchmark"] for line in lines)
    ]
    document = {
        "kind": "reward-evaluation",
        "models": [{"name": name, "type": "model"} for name in names],
        "benchmarks": benchmarks,
    }
    (folder / "evaluation.json").write_text(json.dumps(document))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "examples.jsonl").write_text(text)
    return write_report([folder]).read_text()


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """Twelve pairs of four images each, with long responses."""
    words = "many words of a long answer with <b>tags</b> and http://example.org/a.png "
    judged = []
    for n in range(14):
        images = [{"type": "image", "image": ImageRef(data=noisy(4 * n + k))} for k in range(4)]
        content = [*images, {"type": "text", "text": f"What is in picture {n}? " * 20}]
        judged.append(
            Judged(
                id=f"p{n}",
                source="set",
                prompt=[{"role": "user", "content": content}],  # type: ignore[list-item]
                responses=(f"{words * 30} chosen {n}", f"{words * 30} rejected {n}"),
                scores={"m": (0.0, 1.0 + n), "other": (1.0, 0.5)},
            )
        )
    return worst_pairs({"bench": judged}, ["m"])


def test_the_largest_page_is_whole_and_small(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    page = evaluation(tmp_path / "run", lines)
    check_page(page)
    assert len(pictures_of(page)) == PICTURES
    shown = re.findall(r"<small>(p\d+)</small>", page)
    assert "Worst errors" in page and shown == [f"p{n}" for n in range(13, 1, -1)]
    assert f"margin <b>{MINUS}14.0</b>: wrong" in page and "margin <b>0.500</b>: right" in page
    assert "240 by 200 pixels" in page and "&lt;b&gt;tags" in page and "<b>tags" not in page
    # Only what differs is marked.
    marked = re.findall(r"<mark>([^<]*)</mark>", page)
    assert [word.strip() for word in marked[:2]] == ["chosen", "rejected"]


def test_several_runs_share_the_room_of_one_page(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        evaluation(tmp_path / name, lines[:8])
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text()
    check_page(page)
    assert len(pictures_of(page)) == PICTURES
    assert "16 pictures left out to keep the page small" in page


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", 'data:image/jpeg;base64,AA" onload="x', "javascript:x"]
)
def test_an_address_in_place_of_a_picture_costs_its_line(
    lines: list[dict[str, Any]], tmp_path: Path, url: str
) -> None:
    bad = json.loads(json.dumps(lines[0]))
    bad["images"][0]["url"] = url
    page = evaluation(tmp_path / "run", [bad, lines[1]])
    check_page(page)
    assert len(pictures_of(page)) == 4 and "1 line of examples.jsonl cannot be read" in page


def test_a_picture_that_could_not_be_made_says_why(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    line = dict(lines[0], images=[{"problem": "no such file"}], more_images=3)
    page = evaluation(tmp_path / "run", [line])
    assert pictures_of(page) == []
    assert "image 1 of the prompt: no such file" in page and "3 more images" in page


def test_worst_errors_of_a_training_run_and_of_text_alone(tmp_path: Path) -> None:
    judged = [
        Judged(
            id=f"{n}",
            source="set",
            prompt=f"Question {n}?",
            responses=("It is a cat on a mat.", "It is a dog on a mat."),
            scores={"run": (0.0, float(n))},
        )
        for n in range(1, 4)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("# palate reward\noutput_dir: run\n")
    made = worst_pairs({None: judged}, ["run"])
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    page = write_report([folder]).read_text()
    check_page(page)
    assert "Worst errors on held-out pairs" in page and pictures_of(page) == []
    assert page.index("Question 3?") < page.index("Question 2?") < page.index("Question 1?")
    assert re.findall(r"<mark>([^<]*)</mark>", page)[:2] == ["cat ", "dog "]
    # Marks are told apart without colour.
    assert ".lost mark" in page and "underline dotted" in page


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inspection of 60 images, one of them in ten pairs, one broken."""
    folder = tmp_path_factory.mktemp("audited")
    for n in range(60):
        (folder / f"{n}.png").write_bytes(noisy(n))
    (folder / "broken.png").write_bytes(noisy(0)[:500])
    rows = []
    for i, name in enumerate([*map(str, range(60)), *["7"] * 9, "broken"]):
        parts = [{"type": "image"}, {"type": "text", "text": f"What is {i % 5}?"}]
        prompt = [{"role": "user", "content": parts}]
        rows.append(chat_pair(i, prompt=prompt, images=[f"{name}.png"], tie=False, id=f"s:{i}"))
    for row in rows:
        row["source"] = "set"
    write_jsonl(folder / "rows.jsonl", rows)
    inspect_data([folder / "rows.jsonl"], folder / "out", workers=1)
    return folder / "out"


def test_the_page_of_an_audit_shows_images_within_bounds(audited: Path) -> None:
    page = (audited / "report.html").read_text()
    check_page(page)
    record = json.loads((audited / "pictures.json").read_text())
    assert len(record["sample"]) == 20 and len(record["most_seen"]) == 1
    first = record["pictures"][0]
    assert first["times"] == 10 and first["digest"] == record["most_seen"][0]
    assert "10 times" in page and "240 \N{MULTIPLICATION SIGN} 200" in page
    assert len(pictures_of(page)) >= 21
    assert "broken or cut short" in page and "What can be answered without looking" in page
    again = write_report([audited], audited.parent / "again.html").read_text()
    assert again == page


def test_an_audit_without_its_pictures_is_a_page_and_damaged_ones_are_one_line(
    audited: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.json").write_bytes((audited / "data.json").read_bytes())
    page = write_report([tmp_path]).read_text()
    check_page(page)
    assert pictures_of(page) == [] and "Images" in page
    bad = {"pictures": [{"digest": "d", "url": "http://example.org/a.png"}], "sample": ["d"]}
    (tmp_path / "pictures.json").write_text(json.dumps(bad))
    with pytest.raises(RunError, match=r"pictures\.json"):
        write_report([tmp_path])
