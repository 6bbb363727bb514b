"""Benchmarks of pairs about images: counts, groups and means by a few lines of their own."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate.data.images import ImageStore
from palate.data.schema import ImageRef, images_in, text_in
from palate.errors import DataError
from palate.evaluate.reward.candidates import read_candidates
from palate.evaluate.reward.images import EvalImages, spread
from palate.evaluate.reward.items import compare, units_of
from palate.evaluate.reward.mm_rlhf_rewardbench import MmRlhfRewardBench
from palate.evaluate.reward.multimodal_rewardbench import MultimodalRewardBench
from palate.evaluate.reward.pairs import Pairs
from palate.evaluate.reward.reading import benchmark_of
from palate.evaluate.reward.vl_rewardbench import VlRewardBench
from palate.recipes.pairing import PairingRecipe
from palate.recipes.reward_eval import VlRewardBenchRecipe
from palate.recipes.schema import DataSource
from stand_in_images import huge_png, png

_SHARED = "shared/data/vision_reward_benches"
BENCHES = next(
    (folder / _SHARED for folder in Path(__file__).parents if (folder / _SHARED).is_dir()),
    Path(_SHARED),
)
needs_data = pytest.mark.skipif(not BENCHES.exists(), reason=f"no {_SHARED} above the tests")


def write(path: Path, rows: list[dict]) -> DataSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return DataSource(path=str(path))


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def drawn_scores(n: int) -> list[list[float]]:
    """Few values, so that some are equal."""
    rng = np.random.default_rng(7)
    return rng.integers(0, 5, (n, 2)).astype(float).tolist()


def sample(name: str) -> list[dict]:
    with gzip.open(BENCHES / f"{name}_sample.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def all_ids(name: str) -> list:
    return json.loads((BENCHES / "ids.json").read_text())[name]


def vl_rows() -> list[dict]:
    """All 1,250 ids as the published file has them; every seventh has its better response last."""
    rows = []
    for n, row_id in enumerate(all_ids("vl_rewardbench")):
        first = n % 7 > 0
        rows.append(
            {
                "id": row_id,
                "query": f"<image>\nWhat is it, {n}?",
                "response": [f"good {n}", f"bad {n}"] if first else [f"bad {n}", f"good {n}"],
                "human_ranking": [0, 1] if first else [1, 0],
                "image": {"bytes": png(n % 20), "path": None},
            }
        )
    return rows


@needs_data
def test_vl_rewardbench_of_the_published_ids(tmp_path):
    file = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(vl_rows()), file)
    store = ImageStore(tmp_path / "images")
    rules = benchmark_of(VlRewardBenchRecipe(data=(DataSource(path=str(file)),)), store)
    read = rules.read([DataSource(path=str(file))], 0)
    items = read.items
    assert len(items) == 1250 and not read.quarantine
    assert [text.split()[0] for item in items for text in item.responses] == ["good", "bad"] * 1250
    assert len(list((tmp_path / "images").iterdir())) == 20
    assert all(image.data is None for item in items for image in images_in(item.prompt))
    # An id that stands twice is two pairs, and one unit.
    assert len({item.id for item in items}) == 1250 and len(set(units_of(items))) == 1225

    ids = [row["id"] for row in vl_rows()]
    scores = drawn_scores(1250)
    right = np.array([a > b for a, b in scores])

    def mean(*beginnings: str) -> tuple[float, int]:
        chosen = [row_id.startswith(beginnings) for row_id in ids]
        return float(right[chosen].mean()), sum(chosen)

    reasoning = ("mathverse", "mmmu")
    hallucination = ("RLAIF", "RLHF", "hallucination_pair")
    general = tuple({i for i in ids if not i.startswith(reasoning + hallucination)})
    by_hand = {
        "reasoning": mean(*reasoning),
        "hallucination": mean(*hallucination),
        "general": mean(*general),
    }
    assert [n for _, n in by_hand.values()] == [318, 749, 183]
    found = rules.official(items, scores, 0.95)
    columns = {column.name: column for column in found.columns}
    for name, (value, n) in by_hand.items():
        assert (columns[name].value, columns[name].n) == (pytest.approx(value), n)
    assert found.value == found.detail["micro"] == columns["micro"].value == right.mean()
    macro = np.mean([value for value, _ in by_hand.values()])
    assert found.detail["macro"] == columns["macro"].value == pytest.approx(macro)
    assert columns["micro"].ties == sum(a == b for a, b in scores) > 100
    assert columns["macro"].ci[0] < macro < columns["macro"].ci[1]
    assert found.notes == ()

    legacy = found.detail["legacy"]["groups"]
    assert {name: group["n"] for name, group in legacy.items()} == {
        "general": 484,
        "hallucination": 448,
        "reasoning": 318,
    }
    old_general, _ = mean(*general, "RLAIF", "RLHF")
    assert legacy["general"]["value"] == pytest.approx(old_general)
    old_macro = np.mean([old_general, mean("hallucination_pair")[0], by_hand["reasoning"][0]])
    assert found.detail["legacy_macro"] == pytest.approx(old_macro) != pytest.approx(macro)


@needs_data
def test_vl_rewardbench_as_r1_rewards_evaluator_has_it(tmp_path):
    rows = sample("vl_rewardbench")
    for n, row in enumerate(rows):
        put(tmp_path / row["image"], png(n))
    source = write(tmp_path / "vl.jsonl", rows)
    read = VlRewardBench().read([source], 0)
    assert len(read.items) == 120 and {item.source for item in read.items} == {"hallucination"}
    assert read.items[3].responses == (rows[3]["chosen"], rows[3]["rejected"])
    found = VlRewardBench().official(read.items, drawn_scores(120), 0.95)
    assert found.value is None and "lacks general" in found.notes
    assert "120 distinct ids, not 1,225" in found.notes
    # From elsewhere than beside the file.
    moved = write(tmp_path / "elsewhere" / "vl.jsonl", rows)
    with pytest.raises(DataError, match="'image': no such file"):
        VlRewardBench().read([moved], 0)
    again = VlRewardBench(EvalImages(root=tmp_path)).read([moved], 0)
    assert [item.prompt for item in again.items] == [item.prompt for item in read.items]


def mm_rlhf_rows(folder: Path) -> list[dict]:
    rows = []
    for n, (row_id, category, kind) in enumerate(all_ids("mm_rlhf_rewardbench")):
        row = {"id": row_id, "prompt": f"About {row_id}?"}
        row |= {"chosen": f"yes {n}", "rejected": f"no {n}"}
        if kind == "video":
            row["video"] = f"{category}/{row_id}"
            if not (folder / row["video"]).exists():
                for k in range(40):
                    put(folder / row["video"] / f"frame_{k}.png", png(k))
        else:
            row["image"] = f"{category}/{row_id}.png"
            put(folder / row["image"], png(n))
        rows.append(row)
    return rows


@needs_data
def test_mm_rlhf_rewardbench_of_the_published_ids(tmp_path):
    rows = mm_rlhf_rows(tmp_path)
    read = MmRlhfRewardBench().read([write(tmp_path / "bench.jsonl", rows)], 0)
    items = read.items
    assert len(items) == 170 and not read.quarantine
    counts = Counter(item.source for item in items)
    assert counts == {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
    video = next(item for item in items if item.source == "video")
    frames = [Path(str(image.path)).stem for image in images_in(video.prompt)]
    places = np.linspace(0, 39, 32).astype(int)
    assert frames == [f"frame_{k}" for k in places] and frames[-1] == "frame_39"

    scores = drawn_scores(170)
    right = [a > b for a, b in scores]
    by_id = defaultdict(list)
    for row, verdict in zip(rows, right, strict=True):
        by_id[row["id"]].append(verdict)
    found = MmRlhfRewardBench().official(items, scores, 0.95)
    columns = {column.name: column for column in found.columns}
    assert found.value == columns["Acc"].value == pytest.approx(sum(right) / 170)
    assert columns["Acc+"].value == pytest.approx(sum(map(all, by_id.values())) / 46)
    assert (columns["Acc"].n, columns["Acc+"].n, columns["Acc+"].of) == (170, 46, "ids")
    assert found.notes == ("25 videos are given as up to 32 images each",)
    # An equal score among the pairs of an id costs the id.
    flat = [[1.0, 0.0]] * 169 + [[1.0, 1.0]]
    acc_plus = MmRlhfRewardBench().official(items, flat, 0.95).columns[1]
    assert acc_plus.value == pytest.approx(45 / 46)
    # Pairs of one question are one unit: the interval of Acc is wider than that of 170 pairs.
    assert compare(items, scores).group.max() == 45


@needs_data
def test_the_sample_of_mm_rlhf_rewardbench(tmp_path):
    rows = sample("mm_rlhf_rewardbench")
    for n, name in enumerate({row["image"] for row in rows}):
        put(tmp_path / "media" / name, png(n))
    source = write(tmp_path / "mm.jsonl", rows)
    read = MmRlhfRewardBench(EvalImages(root=tmp_path / "media")).read([source], 0)
    by_hand = Counter(row["image"].split("/")[0] for row in rows)
    assert Counter(item.source for item in read.items) == by_hand and len(read.items) == 120
    assert len(set(units_of(read.items))) == len({row["id"] for row in rows}) == 32


def test_frames_of_a_video():
    names = [f"v/f{k}.jpg" for k in range(100)]
    shuffled = [ImageRef(path=name) for name in sorted(names)]  # f0, f1, f10, f11 ...
    chosen = [image.path for image in spread(shuffled)]
    assert chosen == [names[k] for k in np.linspace(0, 99, 32, dtype=int)]
    assert spread(shuffled[:5]) == sorted(shuffled[:5], key=lambda i: int(i.path[3:-4]))


MMRB = {
    "open_generation/correctness_task": ("nocaps", 623, "correctness"),
    "open_generation/preference_task": ("visitbench", 654, "preference"),
    "knowledge": ("mmmu-s", 630, "knowledge"),
    "reasoning": ("MathVista", 514, "math"),
    "Reasoning": ("image2struct", 584, "coding"),
    "safety": ("pairs", 508, "safety"),
    "vqa": ("SEED-Bench", 1198, "vqa"),
}


def test_multimodal_rewardbench_by_its_published_counts(tmp_path):
    rows = []
    for category, (dataset, count, _) in MMRB.items():
        put(tmp_path / f"images/{dataset}/0.png", png(len(rows)))
        for n in range(count):
            better = n % 2 + 1
            texts = ["good", "bad"] if better == 1 else ["bad", "good"]
            rows.append(
                {
                    "ID": f"{dataset}_{n}",
                    "Category": category,
                    "Text": f"{dataset} {n}?",
                    "Image": f"images/{dataset}/0.png",
                    "Output1": texts[0],
                    "Output2": texts[1],
                    "Better": f"Output{better}",
                }
            )
    rng = np.random.default_rng(0)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    rules = MultimodalRewardBench()
    read = rules.read([write(tmp_path / "all_data.json", rows)], 0)
    assert len(read.items) == 4711 and {item.responses for item in read.items} == {("good", "bad")}
    scores = drawn_scores(4711)
    found = rules.official(read.items, scores, 0.95)
    columns = {column.name: column for column in found.columns}
    right = defaultdict(list)
    for row, (a, b) in zip(rows, scores, strict=True):
        right[MMRB[row["Category"]][2]].append(a > b)
    for _, count, name in MMRB.values():
        assert (columns[name].n, columns[name].value) == (
            count,
            pytest.approx(np.mean(right[name])),
        )
    micro = np.mean([verdict for verdicts in right.values() for verdict in verdicts])
    macro = np.mean([np.mean(verdicts) for verdicts in right.values()])
    assert found.value == found.detail["micro"] == pytest.approx(micro)
    assert found.detail["macro"] == pytest.approx(macro) and abs(micro - macro) > 1e-4
    assert found.notes == ("the 500 pairs of Hateful Memes are not public",)


def test_images_that_cannot_be_read_cost_their_row_and_are_counted(tmp_path):
    put(tmp_path / "good.png", png(1))
    put(tmp_path / "cut.png", png(2)[:60])
    put(tmp_path / "huge.png", huge_png())
    put(tmp_path / "empty.png", b"")
    put(tmp_path / "text.png", b"no picture")
    put(tmp_path.parent / "outside.png", png(3))
    bad = {
        "image: no such file": "none.png",
        "image: broken or cut short": "cut.png",
        "image: too many pixels to be decoded": "huge.png",
        "image: empty file": "empty.png",
        "image: not an image of a known format": "text.png",
        "image: a path that leads out of the image folder": "../outside.png",
        "image: an address: images are not fetched": "https://x.org/a.png",
        "image: a video, not read by this format": "a.mp4",
        "image: no image": None,
    }
    rows = [
        {"id": f"mmmu_{n}", "query": "q?", "response": ["a", "b"], "human_ranking": [0, 1]}
        | {"image": name}
        for n, name in enumerate(["good.png", *bad.values()])
    ]
    more = {
        "query: missing": {"prompt": "q?", "chosen": "a", "rejected": "b", "query": None},
        "human_ranking: neither [0, 1] nor [1, 0]": {"human_ranking": [1, 1]},
        "response: 3, not two": {"response": ["a", "b", "c"]},
        "image: not as many as there are <image> in the turns": {"query": "<image><image> q?"},
    }
    rows += [rows[0] | {"id": f"wildvision-{n}"} | row for n, row in enumerate(more.values())]
    read = VlRewardBench().read([write(tmp_path / "vl.jsonl", rows)], 0)
    assert [item.id for item in read.items] == ["mmmu_0"]
    (entry,) = read.entries
    expected = dict.fromkeys([*bad, *more], 1)
    expected["query: null"] = expected.pop("query: missing")
    assert entry["rejected"] == expected and (entry["read"], entry["kept"]) == (14, 1)
    assert read.quarantine[0] == {
        "source": "vl",
        "file": str(tmp_path / "vl.jsonl"),
        "row": 2,
        "field": "image",
        "reason": "no such file",
    }
    with pytest.raises(DataError, match=r"no usable row of 1 as VL-RewardBench .*'image': broken"):
        VlRewardBench().read([write(tmp_path / "one.jsonl", rows[2:3])], 0)


def test_videos_that_cannot_be_read(tmp_path):
    put(tmp_path / "video/broken/f0.png", png(0)[:50])
    (tmp_path / "video/empty").mkdir()
    put(tmp_path / "video/v/f0.png", png(1))
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    videos = ["video/none.mp4", "video/empty", "video/broken", ["video/v/f0.png"], "../video/v"]
    rows = [row | {"id": str(n), "video": video} for n, video in enumerate(videos)]
    rows.append(row | {"id": "9", "image": "video/../other.png"})
    rows.append(row | {"id": "10", "video": "video/v", "prompt": "<video>\nWhat happens?"})
    put(tmp_path / "other/x.png", png(2))
    rows.append(row | {"id": "11", "image": "other/x.png"})
    read = MmRlhfRewardBench().read([write(tmp_path / "mm.jsonl", rows)], 0)
    assert [item.id for item in read.items] == ["3", "10"]
    assert read.items[1].prompt[0]["content"][1] == {"type": "text", "text": "\nWhat happens?"}
    reasons = {line["row"]: (line["field"], line["reason"]) for line in read.quarantine}
    assert (
        reasons[1] == reasons[2] == ("video", "no folder of frames: unpack the video into pictures")
    )
    assert reasons[3] == ("video", "broken or cut short")
    assert reasons[5][0] == "video" and len(reasons) == 6
    assert reasons[8][1].startswith("a path with none of the categories in it: mcq, long")


def trl_row(image: str | None, n: int = 0) -> dict:
    parts = [{"type": "image"}] if image else []
    asked = [{"role": "user", "content": [*parts, {"type": "text", "text": f"What is it, {n}?"}]}]
    row = {
        "prompt": asked,
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}],
    }
    return row | {"images": [image] if image else []}


def test_pairs_with_images_are_kept_and_broken_ones_counted(tmp_path):
    put(tmp_path / "pictures/a.png", png(1))
    put(tmp_path / "pictures/same.png", png(1))
    put(tmp_path / "pictures/cut.png", png(2)[:60])
    put(tmp_path / "pictures/huge.png", huge_png())
    names = ["a.png", "same.png", "cut.png", "huge.png", "none.png"]
    rows = [trl_row(name) for name in names] + [trl_row(None)]
    source = write(tmp_path / "pairs.jsonl", rows)
    read = Pairs(images=EvalImages(root=tmp_path / "pictures")).read([source], 0)
    assert [len(images_in(item.prompt)) for item in read.items] == [1, 1, 0]
    # The same picture under two names is one prompt.
    assert units_of(read.items) == [0, 0, 1]
    (image,) = images_in(read.items[0].prompt)
    assert image.digest and image.root == tmp_path / "pictures"
    assert text_in(read.items[0].prompt[0]["content"]) == "What is it, 0?"
    (entry,) = read.entries
    assert entry["kept"] == 3 and entry["dropped"] == {
        "image: broken or cut short": 1,
        "image: too many pixels to be decoded": 1,
        "image: no such file": 1,
    }
    assert [line["row"] for line in read.quarantine] == [3, 4, 5]


NAMES = ("a.png", "none.png")


def test_candidates_with_images(tmp_path):
    put(tmp_path / "a.png", png(1))
    aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    answers = [
        {"model": "m", "response": f"Answer {rating}."}
        | {"annotations": {aspect: {"Rating": rating, "Rationale": "r"} for aspect in aspects}}
        for rating in "35"
    ]
    rows = [{"id": name, "prompt": "What is it?", "models": [], "img_path": name} for name in NAMES]
    source = write(tmp_path / "rated.jsonl", [row | {"completions": answers} for row in rows])
    found = read_candidates([source], PairingRecipe(preset="ultrafeedback_all"), 0)
    (item,) = found.items
    (image,) = images_in(item.prompt)
    assert image.digest and image.root == tmp_path and found.gold == [[3.0, 5.0]]
    assert found.entries[0]["dropped"] == {"image: no such file": 1}
