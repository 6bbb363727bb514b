"""A study's page and tables: the numbers, what is grey, what lacks, and that it is all data."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from palate.errors import RunError
from palate.report.figures import Ink
from palate.report.study import write_study_report
from palate.report.study_figures import across_steps, draw_scatter, frontiers
from palate.report.study_lineage import lineage_rows
from palate.report.study_tables import Tables
from palate.report.study_views import cut
from palate.store.stages import StageRecord
from palate.store.study_records import StudyAnalysis
from palate.study_cli import app
from synthetic_studies import analysed, recipe_of

MEASURES = [
    {"name": "reward", "step": "evaluation", "value": "reward", "better": "higher"}
    | {"smallest": 0.03},
    {"name": "kl", "step": "evaluation", "value": "kl"},
]
HOSTILE = "</title><script>alert(1)</script>\"'&|_$%{\\"
T_TWO, T_THREE = 12.7062047, 4.3026527
"""Student's t at 97.5%, of 1 and of 2 degrees of freedom."""


def effect(cell: Any, measure: str) -> float:
    better = {"tdpo2": 0.3, "ipo": 0.01}.get(cell.get("algorithm"), 0.0)
    return better + (0.4 if measure == "reward" else 6.0)


ASPECTS = {"algorithm": ["dpo", "tdpo2", "ipo"], "data": ["hh", "ratings"]}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A grid with one seed of one cell missing, and one whole cell failed."""
    expected = {
        "aspect": "algorithm",
        "variant": "tdpo2",
        "measure": "reward",
        "direction": "higher",
        "smallest": 0.03,
        "disagreement": "DPO is ahead.",
    }
    return analysed(
        recipe_of(
            ASPECTS,
            MEASURES,
            expectations=[expected],
            coupled={"ipo": {"policy.train.learning_rate": 1e-5}},
        ),
        effect,
        noise={"reward": 0.05, "kl": 1.0},
        missing=lambda cell, seed: (cell["algorithm"], cell["data"], seed) == ("tdpo2", "hh", 2),
        failed=lambda cell, seed: (cell["algorithm"], cell["data"]) == ("ipo", "ratings"),
    )


def write(folder: Path, document: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(document))
    return write_study_report(folder).read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for run in document["runs"][:2]:
        key = run["stages"]["policy"]
        (folder / key).mkdir()
        (folder / key / "report.html").write_text("a run")
    write(folder, document)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def values(document: dict[str, Any], measure: str, **choices: str) -> dict[int, list[float]]:
    """Seed -> the measure of all runs with these choices."""
    by_seed: dict[int, list[float]] = {}
    for run in document["runs"]:
        if choices.items() <= run["cell"].items() and run["values"][measure] is not None:
            by_seed.setdefault(run["seed"], []).append(run["values"][measure])
    return by_seed


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"[-+]?\d+\.?\d*", text.replace("\u2212", "-"))]


def test_means_and_intervals_are_those_of_the_seeds(document):
    table = next(t for t in Tables(StudyAnalysis.of(document)).by_aspect() if t.title == "data")
    rows = dict(table.rows)
    # Of ratings every algorithm but the failed one; no seed has all three.
    assert rows["ratings"][0].mean == "\u2013" and rows["ratings"][0].notes == ("3 of 9 failed",)
    by_seed = values(document, "reward", data="hh")
    means = [fmean(members) for members in by_seed.values() if len(members) == 3]
    half = T_TWO * stdev(means) / math.sqrt(2)
    entry = rows["hh"][0]
    assert entry.notes[0] == "n=2" and len(means) == 2
    shown = numbers(f"{entry.mean} {entry.interval}")
    assert shown == pytest.approx(
        [fmean(means), fmean(means) - half, fmean(means) + half], abs=6e-4
    )


def test_crossed_cells_and_their_differences(document):
    tables = {t.title: t for t in Tables(StudyAnalysis.of(document)).crossed()}
    rows = dict(tables["algorithm by data, reward ↑"].rows)
    column = tables["algorithm by data, reward ↑"].columns.index("ratings")
    base = [v for (v,) in values(document, "reward", algorithm="dpo", data="ratings").values()]
    tuned = [v for (v,) in values(document, "reward", algorithm="tdpo2", data="ratings").values()]
    entry = rows["tdpo2"][column]
    half = T_THREE * stdev(tuned) / math.sqrt(3)
    assert numbers(entry.mean) == pytest.approx([fmean(tuned)], abs=6e-3)
    assert numbers(entry.interval) == pytest.approx(
        [fmean(tuned) - half, fmean(tuned) + half], abs=6e-3
    )
    assert numbers(entry.difference) == pytest.approx([fmean(tuned) - fmean(base)], abs=6e-3)
    assert rows["tdpo2"][column].notes == () and rows["tdpo2"][1 - column].notes[0] == "n=2"
    assert rows["ipo"][column].tone == "missing" and rows["ipo"][column].notes == ("failed",)
    assert rows["dpo"][column].difference == ""


def test_what_is_not_told_apart_is_grey_and_never_bold(document):
    analysis = StudyAnalysis.of(document)
    by_pair = {
        (c.measure, c.variant, (c.at or {}).get("data")): c
        for c in analysis.comparisons
        if c.aspect == "algorithm" and c.settings == 1 and c.corrected is not None
    }
    seen = set()
    for table in Tables(analysis).crossed():
        measure = table.title.split(", ")[1].split(" ")[0]
        for name, row in table.rows:
            for column, entry in zip(table.columns, row, strict=True):
                comparison = by_pair.get((measure, name, column))
                if comparison is None:
                    continue
                told = comparison.corrected is not None and comparison.corrected.distinguished
                wanted = ("bold" if measure == "reward" else "plain") if told else "grey"
                assert entry.tone == wanted, (measure, name, column)
                seen.add(entry.tone)
    assert {"grey", "bold"} <= seen


def test_the_correction_decides_and_not_the_single_interval(document):
    changed = json.loads(json.dumps(document))
    for c in changed["comparisons"]:
        if c["corrected"]:
            c["corrected"]["distinguished"] = False
    entries = [
        e
        for table in Tables(StudyAnalysis.of(changed)).crossed()
        for _, row in table.rows
        for e in row
        if e.difference
    ]
    assert entries and {e.tone for e in entries} == {"grey"}


def test_lower_may_be_the_better_one(document):
    turned = json.loads(json.dumps(document))
    turned["measures"][0]["better"] = "lower"
    tables = [next(Tables(StudyAnalysis.of(d)).crossed()) for d in (document, turned)]
    before, after = (dict(table.rows)["tdpo2"] for table in tables)
    assert [e.tone for e in before if e.tone != "grey"]
    for was, now in zip(before, after, strict=True):
        assert (was.tone, now.tone) in {("bold", "plain"), ("grey", "grey")}


def test_the_page_answers_first_and_says_what_lacks(page, document):
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page.split("<main>")[1])).split())
    assert text.startswith("Which choice mattered On reward, ")
    assert "3 runs of 18 without a result for that" in text
    assert "failed: out of memory at step 12" in text
    assert "1 run of 18 not finished: tdpo2 · hh seed 2." in text
    assert "n=2" in text and "algorithm ipo also sets policy.train.learning_rate = 1e-05." in text
    verdict = next(
        c for c in document["comparisons"] if c["variant"] == "tdpo2" and c["settings"] > 1
    )
    shown = " ".join(verdict["corrected"]["verdict"].split("; ", 1)[1].split())
    assert shown in text
    assert "algorithm tdpo2 higher than dpo on reward; at least 0.03 would matter" in text
    assert "before any result" in text and "DPO is ahead." in text


def test_an_expectation_written_late_says_so(tmp_path, document):
    late = json.loads(json.dumps(document))
    late["expectations"][0]["before"] = False
    assert "after there were results" in write(tmp_path, late)
    late["expectations"][0] |= {"before": None, "written": None}
    assert "not written down before the runs" in write(tmp_path, late)


class Addresses(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src", "action", "xlink:href") and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.add(value)


def test_links_are_to_files_that_exist_and_nothing_is_loaded(page, folder):
    parsed = Addresses(page)
    assert not parsed.tags & {"script", "iframe", "object", "img"}
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in re.sub(r"url\(#", "", page) and "@import" not in page
    files = [a for a in parsed.addresses if not a.startswith(("#", "data:"))]
    assert {a[1:] for a in parsed.addresses if a.startswith("#")} <= parsed.ids
    assert all((folder / a).is_file() for a in files)
    assert sum(a.endswith("/report.html") for a in files) == 2


def test_a_key_that_leaves_the_folder_is_no_link(tmp_path, document):
    changed = json.loads(json.dumps(document))
    (tmp_path / "report.html").write_text("not of the study")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "report.html").write_text("neither")
    for run, key in zip(changed["runs"], ["..", "../elsewhere", "."], strict=False):
        run["stages"] = {"policy": key}
    page = write(tmp_path / "study", changed)
    assert "elsewhere" not in page and not re.search(r'href="[^"#]*report\.html', page)


def test_a_page_elsewhere_links_back(tmp_path, folder, document):
    target = tmp_path / "out" / "page.html"
    write_study_report(folder, target)
    links = [a for a in Addresses(target.read_text()).addresses if a.endswith("/report.html")]
    assert len(links) == 2 and all((target.parent / a).is_file() for a in links)
    assert (tmp_path / "out" / "tables.csv").is_file()


def test_hostile_names_and_texts_are_data(tmp_path):
    measures = [{"name": f"re{HOSTILE}", "step": "evaluation", "value": "reward"}, MEASURES[1]]
    document = analysed(
        recipe_of(
            {f"a{HOSTILE}": ["dpo", f"v{HOSTILE}"], "data": ["hh", "b|c"]}, measures, seeds=[0, 1]
        ),
        lambda cell, measure: 0.4,
        failed=lambda cell, seed: cell["data"] != "hh" and seed == 1,
    )
    document["samples"][0]["cells"][0]["response"] = HOSTILE + "\x07"
    document["lineage"][0]["steps"]["policy"]["base"] = HOSTILE
    document["failures"] = dict.fromkeys(document["failures"], HOSTILE)
    page = write(tmp_path, document)
    parsed = Addresses(page)
    assert "script" not in parsed.tags and page.count("<title") == page.count("</title>") == 1
    assert "&lt;script&gt;alert(1)" in page and "\x07" not in page
    markdown = (tmp_path / "tables.md").read_text()
    for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "<script>" not in markdown
    rows = lines_of(tmp_path / "tables.csv")
    assert {row[f"a{HOSTILE}"] for row in rows} == {"dpo", f"v{HOSTILE}"}


def test_latex_is_escaped_and_whole(tmp_path):
    names = ["dpo", "50%_of & #1 {x} $y$ ~^\\"]
    document = analysed(recipe_of({"a": names, "data": ["hh", "r"]}, MEASURES), lambda c, m: 0.5)
    write(tmp_path, document)
    text = (tmp_path / "tables.tex").read_text()
    bare = re.sub(r"\\[\\{}$&#%_]", "", "\n".join(text.splitlines()[1:]))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0 and "#" not in bare and "%" not in bare and "_" not in bare
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 4
    for body in re.findall(
        r"\\begin\{tabular\}\{(l r*|l\w*)\}(.*?)\\end\{tabular\}", text, flags=re.S
    ):
        lines = [line for line in body[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(body[0]) - 1}


def test_csv_has_a_line_a_run_and_measure_and_a_line_an_estimand(folder, document):
    rows = lines_of(folder / "tables.csv")
    assert list(rows[0]) == ["algorithm", "data", "seed", "measure", "value"]
    assert len(rows) == 18 * 2
    for run in document["runs"]:
        (row,) = [
            r for r in rows
            if (r["algorithm"], r["data"]) == tuple(run["cell"].values())
            and r["seed"] == str(run["seed"]) and r["measure"] == "reward"
        ]  # fmt: skip
        value = run["values"]["reward"]
        assert row["value"] == "" if value is None else float(row["value"]) == value
    lines = lines_of(folder / "comparisons.csv")
    estimands = sum(max(1, len(c["estimands"])) for c in document["comparisons"])
    assert len(lines) == estimands and None not in lines[0]
    single = next(
        line for line in lines if line["at"] == "data=ratings" and line["variant"] == "tdpo2"
    )
    assert float(single["difference"]) == pytest.approx(
        float(single["mean"]) - float(single["mean_against"])
    )
    nothing = [line for line in lines if not line["estimand"]]
    assert nothing and all(line["verdict"].startswith("no seed") for line in nothing)


def test_comparisons_at_matched_kl_stand_apart(tmp_path, document):
    """With their range of KL, in the page and in the table; without what was expected of ends."""
    span = {"span": [0.0, 2.5]}
    matched = [c | span for c in document["comparisons"] if c["measure"] == "reward"]
    page = write(tmp_path, document | {"matched_kl": matched})
    section = page.partition('id="matched"')[2].partition("</section>")[0]
    assert "Between 0.00 and 2.50 nats of KL" in section
    assert section.count("<li") == len(document["aspects"][0]["variants"]) - 1 + 1
    assert 'href="#expected"' not in section
    lines = lines_of(tmp_path / "comparisons.csv")
    at = [line for line in lines if line["kl_from"]]
    estimands = sum(max(1, len(c["estimands"])) for c in matched)
    assert len(at) == estimands and {line["kl_to"] for line in at} == {"2.5"}
    assert all(line["measure"] == "reward" for line in at)
    assert 'id="matched"' not in write(tmp_path / "without", document)


def test_ratings_are_drawn_and_told(tmp_path, document):
    cells = [run["cell"] for run in document["runs"][::3]][:2]
    rows = [
        {"cell": cell, "points": points, "interval": [points - 40, points + 40]}
        for cell, points in zip(cells, (123.4, -7.0), strict=True)
    ]
    rated = {"step": "evaluation", "by": "judge", "rows": rows, "outcomes": 480, "ties": 12}
    rated |= {"prompts": 40, "confidence": 0.95, "regularised": True}
    unrated = {"step": "other", "by": "reward", "why": "3 items, 3 different"}
    page = write(tmp_path, document | {"ratings": [rated, unrated]})
    section = page.partition('id="ratings"')[2].partition("</section>")[0]
    assert (
        "123 <small>[83, 163]</small>" in section and "each sample met the reference's" in section
    )
    assert "480 outcomes on 40 prompts, 12 of them ties" in section
    assert "half a win each way" in section and "No ratings: 3 items, 3 different." in section
    assert section.count('class="dot"') == 2 and 'class="half"' in section


def test_a_study_with_nothing_finished_says_so(tmp_path):
    nothing = analysed(recipe_of(ASPECTS, MEASURES), effect, missing=lambda cell, seed: True)
    nothing |= {"lineage": [], "samples": [], "cost": {"steps": {}, "together": 0, "apart": 0}}
    page = write(tmp_path, nothing)
    assert "No run of this study is finished" in page and "0 of 18 runs finished" in page
    assert 'id="aspects"' not in page and 'id="differences"' not in page
    assert "n=0" not in page


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"kind": "study", ', "not JSON"),
        ('{"kind": "build"}', "not the analysis of a study"),
        ("[]", "not the analysis of a study"),
        ('{"kind": "study", "runs": [{"seed": "two"}]}', "runs.0.seed"),
    ],
)
def test_a_damaged_analysis_is_one_line(tmp_path, text, why):
    (tmp_path / "analysis.json").write_text(text)
    with pytest.raises(RunError, match=re.escape(why)) as error:
        write_study_report(tmp_path)
    assert "\n" not in str(error.value) and "analysis.json" in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_what_a_later_version_adds_does_not_hinder(tmp_path, document):
    added = document | {"new": {"a": 1}}
    added["runs"] = [run | {"new": [1]} for run in document["runs"]]
    assert "Which choice mattered" in write(tmp_path, added)
    assert StudyAnalysis.of(added).document()["new"] == {"a": 1}


def test_marks_stand_at_the_cells_means_and_points_at_the_runs(document):
    (scatter,) = frontiers(Tables(StudyAnalysis.of(document)))
    axes = Figure().subplots()
    draw_scatter(axes, scatter, Ink(False))
    drawn = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.get_lines()
        if len(line.get_xdata()) == 1
    ]
    finished = [r["values"] for r in document["runs"] if r["values"]["reward"] is not None]
    assert {(v["kl"], v["reward"]) for v in finished} <= set(drawn)
    cells = {tuple(r["cell"].items()) for r in document["runs"]} - {
        (("algorithm", "ipo"), ("data", "ratings"))
    }
    assert len(drawn) == len(finished) + len(cells)
    for cell in cells:
        reward, kl = (
            fmean(v[0] for v in values(document, name, **dict(cell)).values())
            for name in ("reward", "kl")
        )
        assert any((x, y) == pytest.approx((kl, reward)) for x, y in drawn)


def test_measures_of_different_steps_are_drawn_against_each_other():
    accuracy = {"name": "rm accuracy", "step": "rm", "value": "accuracy", "better": "higher"}
    aspects = {"reward_model": ["s", "m"], "data": ["a", "b"], "prompts": ["x", "y"]}
    design = {"type": "one_at_a_time"}
    recipe = recipe_of(aspects, [accuracy, *MEASURES], design=design)
    tables = Tables(StudyAnalysis.of(analysed(recipe, effect)))
    (scatter,) = across_steps(tables)
    assert (scatter.x.name, scatter.y.name) == ("rm accuracy", "reward")
    assert "rm accuracy and reward" in scatter.words
    # Of three aspects each cell has a look of its own, named by what it changes.
    ((title, entries),) = scatter.legends
    assert title == "cell" and len({(m, c) for _, m, c in entries}) == len(entries) == 4
    assert {name for name, *_ in entries} == {
        "all baselines",
        "reward_model m",
        "data b",
        "prompts y",
    }
    assert not list(tables.crossed())


def test_facts_that_differ_are_marked_with_what_they_follow(document):
    rows = {row.fact: row for row in lineage_rows(StudyAnalysis.of(document))}
    assert not rows["base model"].differs
    assert rows["longer is chosen"].values == (("52.0%", "data: hh"), ("57.0%", "data: ratings"))
    changed = json.loads(json.dumps(document))
    changed["lineage"][1]["steps"]["policy"]["commit"] = "beef"
    code = {row.fact: row for row in lineage_rows(StudyAnalysis.of(changed))}["code"]
    assert code.differs and code.values[1][0] == "beef"


def test_one_seed_and_one_measure(tmp_path):
    accuracy = {"name": "accuracy", "step": "evaluation", "value": "accuracy"}
    recipe = recipe_of({"head": ["linear", "mlp"]}, [accuracy], seeds=[0])
    page = write(tmp_path, analysed(recipe, lambda cell, measure: 0.5))
    assert "One seed a cell" in page and 'id="frontier"' not in page and 'id="crossed"' not in page


def test_long_samples_are_cut_and_pages_stay_small(tmp_path, document):
    long = json.loads(json.dumps(document))
    for sample in long["samples"]:
        for entry in sample["cells"]:
            entry["response"] = "word " * 40_000
    page = write(tmp_path, long)
    assert "199,399 more characters" in page and len(page) < 2_000_000
    assert cut("short") == ("short", 0)


def test_the_command_keeps_the_analysis_and_shows_why_stages_failed(
    tmp_path, document, monkeypatch
):
    from palate.study import report

    analysis = {name: value for name, value in document.items() if name != "failures"}
    failed = StageRecord(name="policy-1", key="policy-1", state="failed", error="no memory left")
    monkeypatch.setattr(report, "analyse", lambda study, plan: analysis)
    monkeypatch.setattr(report, "stage_states", lambda study, plan: {"a": None, "policy-1": failed})
    study: Any = SimpleNamespace(root=tmp_path, plan=lambda: None)
    page = report.write_report(study)
    assert page == tmp_path / "report.html" and "failed: no memory left" in page.read_text()
    written = json.loads((tmp_path / "analysis.json").read_text())
    expected = json.loads(json.dumps(analysis))
    assert written == expected | {"failures": {"policy-1": "no memory left"}}


def test_a_folder_without_a_study_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "no study was run in it (study.yaml is missing)" in result.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_narrow_page_does_not_scroll_sideways(tmp_path, page):
    inner = json.dumps(page).replace("</", "<\\/")
    script = (
        "f.onload = () => { o.textContent = 'width ' + f.contentDocument.documentElement"
        f".scrollWidth }}; f.srcdoc = {inner}"
    )
    frame = '<iframe id="f" style="width: 420px; height: 900px; border: 0"></iframe><p id="o"></p>'
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html><body>{frame}<script>{script}</script>")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except subprocess.TimeoutExpired:
        pytest.skip("chromium does not answer here")
    width = re.search(r">width (\d+)<", shown)
    if width is None:
        pytest.skip("chromium does not draw here")
    assert int(width[1]) <= 420
