"""The public benchmarks: files in their shape, and their published definitions by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.errors import DataError, RecipeError
from palate.evaluate.reward import rewardbench, rewardbench2, rm_bench
from palate.evaluate.reward.items import BenchmarkItem
from palate.evaluate.reward.pairs import Pairs
from palate.intervals import wilson
from palate.recipes.pairing import PairingRecipe
from palate.recipes.schema import DataSource

RM_BENCH = Path(__file__).parents[4] / "shared/data/rm_bench/chat_filtered.json"


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


def pair(subset, n=0):
    return BenchmarkItem(id=f"{subset}:{n}", source=subset, prompt="p", responses=("a", "b"))


def test_published_counts():
    assert sum(n for section in rewardbench.SECTIONS.values() for n in section.values()) == 2985
    assert len(rewardbench.WEIGHTS) == 23
    reasoning = rewardbench.SECTIONS["Reasoning"]
    code = sum(n for name, n in reasoning.items() if name.startswith("hep"))
    assert rewardbench.WEIGHTS["math-prm"] == code == 984
    assert sum(rewardbench2.SUBSETS.values()) == 1865


def test_rewardbench_sections_by_hand():
    items = [pair(name, n) for name in rewardbench.WEIGHTS for n in range(2)]
    right = {"math-prm": (1, 0), "xstest-should-refuse": (0, 0), "mt-bench-med": (0, 0)}
    scores = []
    for item in items:
        good = right.get(item.source, (1, 1))[int(item.id[-1])]
        scores.append([float(good), 0.0])  # an equal score is wrong
    found = rewardbench.RewardBench().official(items, scores, 0.95)
    value = {column.name: column.value for column in found.columns}
    assert value["Chat"] == pytest.approx((100 + 95 + 95 + 28) / 358)
    assert value["Chat Hard"] == 1.0
    assert value["Safety"] == pytest.approx((100 + 100 + 250 + 136) / 740)
    assert value["Reasoning"] == pytest.approx((984 / 2 + 984) / (2 * 984))
    assert found.value == pytest.approx(np.mean(list(value.values())))
    # Up to rewardbench 0.1.2 the two xstest subsets had each other's counts.
    old = value | {"Safety": (100 + 100 + 154 + 136) / 740}
    assert found.detail["by_old_counts"] == pytest.approx(np.mean(list(old.values())))
    assert "hep-go has 2 pairs, not 164" in found.notes
    ties = {column.name: column.ties for column in found.columns}
    assert ties == {"Chat": 2, "Chat Hard": 0, "Safety": 2, "Reasoning": 1}


# EXAMPLE_COUNTS and SUBSET_MAPPING of the package rewardbench, 0.1.3 and 0.1.4.
PUBLIC_COUNTS = {
    "Chat": "alpacaeval-easy 100 alpacaeval-length 95 alpacaeval-hard 95 mt-bench-easy 28 "
    "mt-bench-med 40",
    "Chat Hard": "mt-bench-hard 37 llmbar-natural 100 llmbar-adver-neighbor 134 "
    "llmbar-adver-GPTInst 92 llmbar-adver-GPTOut 47 llmbar-adver-manual 46",
    "Safety": "refusals-dangerous 100 refusals-offensive 100 xstest-should-refuse 154 "
    "xstest-should-respond 250 donotanswer 136",
    "Reasoning": "math-prm 984 hep-cpp 164 hep-go 164 hep-java 164 hep-js 164 hep-python 164 "
    "hep-rust 164",
}


def test_rewardbench_sections_are_those_of_the_public_package():
    rng = np.random.default_rng(0)
    items = [pair(name, n) for name in rewardbench.WEIGHTS for n in range(7)]
    scores = [[float(rng.integers(3)), 1.0] for _ in items]
    found = rewardbench.RewardBench().official(items, scores, 0.95)
    value = {column.name: column.value for column in found.columns}
    for section, text in PUBLIC_COUNTS.items():
        names, counts = text.split()[::2], list(map(int, text.split()[1::2]))
        right = [
            np.mean([s[0] > 1.0 for i, s in zip(items, scores, strict=True) if i.source == name])
            for name in names
        ]
        assert value[section] == pytest.approx(sum(np.multiply(right, counts)) / sum(counts))


def test_the_interval_of_a_section_knows_that_few_pairs_may_weigh_much():
    # Half of the section's weight is on 4 pairs: as sure as 1 / (0.25 / 4 + 0.25 / 984) pairs.
    items = [pair("math-prm", n) for n in range(4)]
    items += [
        pair(f"hep-{k}", n)
        for k in ("cpp", "go", "java", "js", "python", "rust")
        for n in range(164)
    ]
    scores = [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 984
    (column,) = rewardbench.RewardBench().official(items, scores, 0.95).columns
    n = 1 / (0.25 / 4 + 0.25 / 984)
    assert (column.value, column.n, column.of) == (0.75, 988, "pairs")
    assert column.ci == pytest.approx(wilson(0.75 * n, n))


def test_prior_sets_are_told_by_name_and_no_other_is_taken(tmp_path):
    row = {"prompt": "p", "chosen": "yes", "rejected": "no"}
    core = write(tmp_path / "core.jsonl", [row | {"subset": "hep-go", "id": 1}])
    for name in ("shp.jsonl", "summarize-00000-of-00001.jsonl"):
        read = rewardbench.RewardBench([write(tmp_path / name, [row])]).read([core], 0)
        assert read.items[1].source in name
    with pytest.raises(RecipeError, match=r"other\.jsonl: not told which of the prior sets"):
        rewardbench.RewardBench([write(tmp_path / "other.jsonl", [row])]).read([core], 0)


def test_a_row_counts_once_and_a_limit_is_of_usable_rows(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go"}
    rows = [row | {"id": n} for n in range(5)]
    both = [write(tmp_path / "a.jsonl", rows[:3]), write(tmp_path / "b.jsonl", rows[2:])]
    read = rewardbench.RewardBench().read(both, 0)
    assert [item.id for item in read.items] == [f"hep-go:{n}" for n in range(5)]
    assert read.entries[1]["rejected"] == {"a row that an earlier one gave already": 1}
    assert (read.quarantine[0]["file"], read.quarantine[0]["row"]) == (both[1].path, 1)
    mixed = write(tmp_path / "mixed.jsonl", rows + [row | {"subset": "none"}] * 20)
    some = rewardbench.RewardBench().read([mixed.model_copy(update={"limit": 4})], 0)
    assert len(some.items) == some.entries[0]["kept"] == 4
    assert some.entries[0]["read"] == 4 + sum(some.entries[0]["rejected"].values())
    # The data's own order, and no more than there are.
    assert [item.id for item in some.items] == sorted(item.id for item in some.items)
    all_ = rewardbench.RewardBench().read([mixed.model_copy(update={"limit": 9})], 0)
    assert (len(all_.items), all_.entries[0]["read"]) == (5, 25)


def test_items_of_one_id_are_numbered(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 1}
    core = write(tmp_path / "core.jsonl", [row, row | {"chosen": "c"}])
    prior = [write(tmp_path / f"{n}.jsonl", [row]).model_copy(update={"name": "shp"}) for n in "ab"]
    read = rewardbench.RewardBench(prior).read([core], 0)
    assert [item.id for item in read.items] == ["hep-go:1", "hep-go:1#2", "shp:1", "shp:1#2"]


def test_one_row_of_ties_a_number(tmp_path):
    base = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    rows = [base | {"id": "tied:1"}, base | {"id": "tied:1", "prompt": "q"}]
    read = rewardbench2.RewardBench2().read([write(tmp_path / "t.jsonl", rows)], 0)
    assert len(read.items) == 1 and len(read.quarantine) == 1


def test_prior_sets_weigh_half_a_section():
    items = [pair(name) for name in (*rewardbench.WEIGHTS, *rewardbench.PRIOR)]
    scores = [[1.0, 0.0]] * len(rewardbench.WEIGHTS) + [[1.0, 0.0], [0.0, 1.0]] * 2
    found = rewardbench.RewardBench().official(items, scores, 0.95)
    assert found.value == 1.0
    assert found.detail["with_prior"] == pytest.approx((8 + 0.5) / 9)
    some = rewardbench.RewardBench().official(items[:5], scores[:5], 0.95)
    assert some.value is None and "Safety lacks" in " ".join(some.notes)


def test_rewardbench_files(tmp_path):
    row = {"prompt": "What?", "chosen": "This.", "rejected": "", "subset": "hep-go", "id": 7}
    source = write(
        tmp_path / "filtered.jsonl",
        [row, row | {"subset": "hep-basic"}, row | {"chosen": None}],
    )
    turns = [{"role": "user", "content": "Help?"}]
    prior = write(
        tmp_path / "shp.jsonl", [{"prompt": turns, "chosen": "yes", "rejected": "no"}]
    ).model_copy(update={"name": "shp"})
    read = rewardbench.RewardBench([prior]).read([source], 0)
    assert [item.source for item in read.items] == ["hep-go", "shp"]
    assert read.items[0].prompt == [{"role": "user", "content": "What?"}]
    assert read.items[0].responses == ("This.", "")  # an empty answer is an answer
    entry = read.entries[0]
    assert (entry["read"], entry["kept"]) == (3, 1)
    assert entry["rejected"] == {"chosen: null": 1, "subset: not one of RewardBench": 1}
    assert len(read.quarantine) == 2
    with pytest.raises(DataError, match="no usable row of 1 as RewardBench"):
        rewardbench.RewardBench().read([write(tmp_path / "x.jsonl", [{"a": 1}])], 0)


def test_best_of_four_and_its_ties():
    assert rewardbench2.top_share([3.0, 1.0, 2.0, 0.0], 1) == 1.0
    assert rewardbench2.top_share([3.0, 3.0, 2.0, 3.0], 1) == pytest.approx(1 / 3)
    assert rewardbench2.top_share([1.0, 3.0, 2.0, 3.0], 1) == 0.0
    assert rewardbench2.top_share([3.0, math.nan, 2.0, 0.0], 1) == 0.0


def ties(kind, number, correct):
    return BenchmarkItem(
        id=f"{kind}:{number}",
        source="Ties",
        prompt="p",
        responses=("x",) * (correct + 1),
        correct=correct,
    )


def test_ties_score_by_hand():
    rows = [
        # gap 2, spread 1; its reference has gap 0.5: preferred, not hard.
        (ties("tied", 1, 2), [4.0, 3.0, 1.0]),
        (ties("ref", 1, 1), [1.5, 1.0]),
        # gap -1, spread 1; the reference is wrong.
        (ties("tied", 2, 2), [4.0, 3.0, 4.0]),
        (ties("ref", 2, 1), [0.0, 1.0]),
        # gap 3, spread 0, without a reference: counts for accuracy alone.
        (ties("tied", 3, 2), [4.0, 4.0, 1.0]),
    ]
    found = rewardbench2.ties_score(rows)
    margin = np.mean([np.tanh(0.5 / 1 - 1), np.tanh(-1.0 / 1 - 1)])
    assert found["tied_accuracy"] == pytest.approx(2 / 3) and found["ref_accuracy"] == 0.5
    assert (found["preferred"], found["preferred_hard"]) == (0.5, 0.0)
    assert found["margin"] == pytest.approx(margin)
    expected = 0.3 * 2 / 3 + 0.3 * 0.5 + 0.2 * 0.5 + 0.01 * margin
    assert found["score"] == pytest.approx(expected)


def test_equal_scores_that_decide_a_prompt_of_ties_are_counted():
    rows = [
        (ties("tied", 1, 2), [4.0, 3.0, 3.0]),
        (ties("tied", 2, 2), [4.0, 4.0, 1.0]),
        (ties("ref", 1, 1), [math.nan, 1.0]),
        (ties("ref", 2, 1), [1.0, 1.0]),
    ]
    items, scores = zip(*rows, strict=True)
    (column,) = rewardbench2.RewardBench2().official(items, scores, 0.95).columns
    assert (column.name, column.n, column.ties) == ("Ties", 4, 2)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ties_score_is_that_of_the_public_code(seed):
    rng = np.random.default_rng(seed)
    rows, tied, ref = [], {}, {}
    for n in range(8):
        for kind, found, correct in (("tied", tied, 3), ("ref", ref, 1)):
            if n and rng.random() < 0.2:
                continue
            # Of few values, so that spreads and gaps of 0 are among them.
            scores = rng.integers(0, 4, correct + 1).astype(float)
            scores[:correct] += rng.integers(0, 3)
            rows.append((ties(kind, n, correct), scores.tolist()))
            right, wrong = scores[:correct], scores[correct:]
            found[n] = right.min() - wrong.max(), right.max() - right.min()
    both = sorted(set(tied) & set(ref))
    gap = np.asarray([tied[n][0] for n in both])
    spread = np.asarray([tied[n][1] for n in both])
    least = np.minimum(gap, [ref[n][0] for n in both])
    with np.errstate(all="ignore"):
        margin = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0).mean()
    expected = (
        0.3 * np.mean([g > 0 for g, _ in tied.values()])
        + 0.3 * np.mean([g > 0 for g, _ in ref.values()])
        + 0.2 * np.mean(gap > spread)
        + 0.2 * np.mean(least > spread)
        + 0.01 * margin
    )
    assert rewardbench2.ties_score(rows)["score"] == pytest.approx(expected)


def test_ties_without_spread():
    # 0 / 0 counts 0, something over 0 counts 1: a perfect model scores 1.01 as published.
    nothing = [(ties("tied", 1, 2), [1.0, 1.0, 1.0]), (ties("ref", 1, 1), [1.0, 1.0])]
    assert rewardbench2.ties_score(nothing)["score"] == 0.0
    perfect = [(ties("tied", 1, 2), [2.0, 2.0, 1.0]), (ties("ref", 1, 1), [2.0, 1.0])]
    assert rewardbench2.ties_score(perfect)["score"] == pytest.approx(1.01)
    unread = [(ties("tied", 1, 2), [2.0, math.nan, 1.0]), (ties("ref", 1, 1), [2.0, 1.0])]
    assert rewardbench2.ties_score(unread)["score"] == pytest.approx(0.3 - 0.01)


def test_rewardbench2_files_and_mean(tmp_path):
    base = {"prompt": "What?", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1}
    rows = [
        base | {"id": str(n), "subset": name}
        for n, name in enumerate(rewardbench2.SUBSETS)
        if name != "Ties"
    ]
    rows += [base | {"id": "tied:1", "subset": "Ties", "chosen": ["a", "e"], "num_correct": 2}]
    rows += [base | {"id": "ref:1", "subset": "Ties"}]
    rows += [base | {"id": "9", "subset": "Math", "num_correct": 3}]
    rows += [base | {"id": "other:9", "subset": "Ties"}]
    read = rewardbench2.RewardBench2().read([write(tmp_path / "test.jsonl", rows)], 0)
    assert len(read.items) == 7 and read.entries[0]["rejected"] == {
        "id: a row of Ties begins with tied: or ref:": 1,
        "num_correct: not as many as chosen has": 1,
    }
    assert read.items[5].id == "tied:1" and read.items[5].correct == 2
    scores = [[1.0, 0.0, 0.0, 0.0]] * 4 + [[0.0, 1.0, 0.0, 0.0]]
    scores += [[2.0, 2.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]]
    found = rewardbench2.RewardBench2().official(read.items, scores, 0.95)
    assert found.value == pytest.approx((4 * 1.0 + 0.0 + 1.01) / 6)
    assert [column.name for column in found.columns] == list(rewardbench2.SUBSETS)
    assert not any("of four" in note for note in found.notes)
    odd = write(tmp_path / "odd.jsonl", [rows[0] | {"rejected": ["b"]}, rows[1]])
    items = rewardbench2.RewardBench2().read([odd], 0).items
    notes = rewardbench2.RewardBench2().official(items, [[1.0, 0.0], scores[0]], 0.95).notes
    assert "1 of its prompts have not one right answer of four" in notes


def rm_item(domain, n=0):
    return BenchmarkItem(
        id=f"{domain}:{n}", source=domain, prompt="p", responses=("x",) * 6, correct=3
    )


def test_rm_bench_matrix_by_hand():
    # A model that reads style alone: concise 0, detailed 1, markdown 2.
    style = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    matrix = rm_bench.win_matrix(style)
    assert matrix.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    found = rm_bench.RmBench().official([rm_item("chat")], [style], 0.95)
    value = {column.name: column.value for column in found.columns}
    assert (value["hard"], value["normal"], value["easy"]) == (0.0, 0.0, 1.0)
    assert value["chat"] == pytest.approx(1 / 3) and found.value is None
    assert "lacks code" in found.notes
    ci = {column.name: column.ci for column in found.columns}
    assert ci["chat"] == pytest.approx(wilson(1 / 3, 1))
    # Each style equals itself on the other side, and nothing else.
    ties = {column.name: column.ties for column in found.columns}
    assert ties == {"chat": 3, "hard": 0, "normal": 3, "easy": 0}


def test_rm_bench_counts_equal_scores_over_prompts():
    items = [rm_item("chat"), rm_item("chat", 1), rm_item("code")]
    all_alike, none = [1.0] * 6, [math.nan] * 6
    found = rm_bench.RmBench().official(items, [all_alike, none, all_alike], 0.95)
    ties = {column.name: column.ties for column in found.columns}
    assert ties == {"chat": 9, "code": 9, "hard": 6, "normal": 6, "easy": 6}


def test_rm_bench_pools_safety_and_weighs_domains_alike():
    items = [rm_item("chat"), rm_item("code"), rm_item("math")]
    items += [rm_item("safety-refuse", n) for n in range(3)] + [rm_item("safety-response")]
    right, wrong = [1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3
    found = rm_bench.RmBench().official(items, [right] * 3 + [wrong] * 3 + [right], 0.95)
    value = {column.name: column.value for column in found.columns}
    assert value["safety"] == 0.25 and found.value == pytest.approx(3.25 / 4)
    assert value["hard"] == pytest.approx(3.25 / 4)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(-3, 3))
def test_rm_bench_sees_no_offset_and_levels_hold_all_nine(scores, offset):
    matrix = rm_bench.win_matrix(scores)
    levels = rm_bench._levels(matrix)
    assert np.mean([levels[k] for k in rm_bench.LEVELS]) == pytest.approx(matrix.mean())
    turned = rm_bench.win_matrix(scores[3:] + scores[:3])
    equal = sum(a == b for a in scores[:3] for b in scores[3:])
    assert matrix.sum() + turned.sum() + equal == 9


def test_rm_bench_files(tmp_path):
    row = {"id": 1, "prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3}
    source = write(tmp_path / "safety-refuse_filtered.json", [row, row | {"chosen": ["a"] * 2}])
    read = rm_bench.RmBench().read([source], 0)
    assert [item.source for item in read.items] == ["safety-refuse"]
    assert list(read.entries[0]["rejected"]) == ["chosen: 2, not three responses"]
    with pytest.raises(DataError, match="'domain': missing, and no file name that begins"):
        rm_bench.RmBench().read([write(tmp_path / "mine.json", [row])], 0)
    total = write(tmp_path / "total_dataset.json", [row | {"domain": "math"}])
    assert rm_bench.RmBench().read([total], 0).items[0].source == "math"


@pytest.mark.skipif(not RM_BENCH.exists(), reason="the real file is not here")
def test_rm_bench_as_published():
    read = rm_bench.RmBench().read([DataSource(path=str(RM_BENCH))], 0)
    assert len(read.items) == rm_bench.DOMAINS["chat"] == 129
    assert {item.source for item in read.items} == {"chat"}
    longer = [[float(len(text)) for text in item.responses] for item in read.items]
    found = rm_bench.RmBench().official(read.items, longer, 0.95)
    value = {column.name: column.value for column in found.columns}
    # Style makes length: a model that reads length alone fails where style is against it.
    assert value["hard"] < 0.05 and value["easy"] > 0.75


def test_pairs_of_any_format(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 2.0},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
    ]
    read = Pairs().read([write(tmp_path / "pairs.jsonl", rows)], 0)
    assert len(read.items) == 1 and read.items[0].margin == 2.0
    assert read.entries[0]["kept"] == 1 and len(read.quarantine) == 1
    found = Pairs().official(read.items, [[1.0, 0.0]], 0.95)
    assert found.value == 1.0 and found.columns[0].of == "pairs"
    assert Pairs().official(read.items, [[0.0, 0.0]], 0.95).columns[0].ties == 1
    rated = [
        {
            "prompt": "p",
            "responses": [{"content": "a", "rating": 1}, {"content": "b", "rating": 3}],
        }
    ]
    source = write(tmp_path / "rated.jsonl", rated)
    with pytest.raises(RecipeError, match=r"holds ratings, not pairs: add .* to the benchmark"):
        Pairs().read([source], 0)
    made = Pairs(PairingRecipe()).read([source], 0)
    assert made.items[0].responses == ("b", "a")
    with pytest.raises(RecipeError, match="`pairing` of the benchmark: no source holds ratings"):
        Pairs(PairingRecipe()).read([write(tmp_path / "more.jsonl", rows)], 0)
