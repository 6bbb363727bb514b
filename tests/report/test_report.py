"""The report as a file: complete, self-contained, escaped, and tolerant of what is missing."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from palate.errors import RunError
from palate.report import figure_png, write_report
from synthetic_runs import demo, evaluation_run, training_run

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> $\\frac{1}{2}$ \ud800 \x00"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; void elements aside, every tag must close."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return Page(write_report(demo(tmp_path_factory.mktemp("runs"))))


def test_default_place_is_the_folder_that_holds_all_runs(tmp_path):
    runs = [training_run(tmp_path / name, name, steps=6) for name in ("dpo", "tdpo2")]
    assert write_report(runs) == tmp_path / "report.html"
    assert write_report(runs[:1]) == runs[0] / "report.html"
    elsewhere = training_run(tmp_path / "other" / "tdpo1", "tdpo1", steps=6)
    with pytest.raises(RunError, match="different places"):
        write_report([runs[0], elsewhere])
    assert write_report([runs[0], elsewhere], tmp_path / "both.html").is_file()


def test_page_asks_the_network_for_nothing_and_runs_nothing(page):
    assert page.tags["script"] == page.tags["iframe"] == page.tags["img"] == 0
    assert not [n for _, n, _ in page.attributes if n.startswith("on") or n == "src"]
    for target in page.values("href", "xlink:href"):
        assert target.startswith("#") or target == "data:,"
    css = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL) + page.values("style")
    for text in css:
        assert "@import" not in text and "http" not in text
        assert all(inner.startswith("#") for inner in re.findall(r"url\(([^)]*)\)", text))
    for inner in re.findall(r"url\(([^)]*)\)", " ".join(page.values("clip-path"))):
        assert inner.startswith("#")
    assert "default-src 'none'" in page.source


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = Counter(page.values("id"))
    assert [name for name, n in ids.items() if n > 1] == []
    used = [value[1:] for value in page.values("href") if value.startswith("#")]
    used += page.values("aria-labelledby")
    used += re.findall(r"url\(#([^)]*)\)", page.source)
    assert set(used) <= set(ids)


def test_figures_say_what_they_show_and_take_the_page_colours(page):
    charts = [v for t, n, v in page.attributes if t == "svg" and n == "aria-label"]
    assert len(charts) > 12 and all(charts)
    assert page.values("class").count("chart") == len(charts)
    drawn = " ".join(page.values("style"))
    assert "var(--s0)" in drawn and "var(--ink)" in drawn
    assert not re.findall(r"#0[1-5]\d{4}|#0500[0-9a-f]{2}", page.source)


def test_rows_reconcile_in_words(page):
    assert (
        "sentiment: 1,024 read = 960 kept + 3 malformed JSON + 6 missing field "
        "+ 38 identical pair + 17 prompt over the limit" in page.text
    )
    assert "21 response cut at the limit" in page.text
    assert (
        "the longer answer is the chosen one in 71% of 960 pairs (95% interval 68% to 74%): "
        "length alone predicts the label" in page.text
    )
    assert (
        "The longer answer is the chosen one in 52% of 240 pairs (95% interval 46% to 58%): "
        "length tells little about the label" in page.text
    )


def test_results_are_on_the_page(page):
    text = page.text
    assert "TDPO1 and DPO cannot be told apart with 256 prompts." in text
    assert "Chosen responses have become less likely than under the reference" in text
    assert "67.5% [61.6, 73.4]" in text
    assert "loss.alpha" in text and "Gemma Terms of Use" in text
    assert "The second film in the series opens with" in text
    assert "4f1c2d9a7be0" in text and "3.1e-06 nats" in text
    assert page.tags["th"] == sum(n == "scope" for t, n, _ in page.attributes if t == "th")


def test_text_of_users_and_models_is_escaped(tmp_path):
    run = training_run(tmp_path / "dpo", "dpo", steps=6)
    folder = evaluation_run(tmp_path / "evaluation", [run])
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"prompt": HOSTILE, "response": HOSTILE, "policy": HOSTILE}
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = json.loads((folder / "evaluation.json").read_text())
    for policy in record["policies"]:
        policy |= {"label": HOSTILE, "name": HOSTILE, "loss": HOSTILE, "run": HOSTILE}
        policy["preference"][HOSTILE] = policy["preference"]["all"]
    (folder / "evaluation.json").write_text(json.dumps(record))
    data = json.loads((run / "data.json").read_text())
    data["sources"][0] |= {"name": HOSTILE, "dropped": {HOSTILE: 55}}
    (run / "data.json").write_text(json.dumps(data))
    (run / "conclusion.json").write_text(json.dumps({"lines": [HOSTILE]}))
    (run / "recipe.yaml").write_text("# palate tune\nloss: {type: '<b>&'}\n</pre><script>")
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace('"loss"', json.dumps(HOSTILE)))
    page = Page(write_report([run, folder], title=HOSTILE))
    assert page.tags["script"] == page.tags["img"] == page.tags["b"] - page.source.count("<b>") == 0
    assert page.text.count("<script>alert('x')</script>") > 10
    assert [v for v, n in Counter(page.values("id")).items() if n > 1] == []
    assert "\0" not in page.source


@pytest.mark.parametrize(
    "missing",
    [
        ("evaluation.json",),
        ("metrics.jsonl",),
        ("data.json", "lineage.json", "status.json"),
        ("recipe.yaml",),
        ("recipe.yaml", "metrics.jsonl", "data.json", "lineage.json", "evaluation.json"),
    ],
)
def test_missing_files_leave_their_parts_out(tmp_path, missing):
    run = training_run(tmp_path / "dpo", "dpo", steps=6)
    for name in missing:
        (run / name).unlink()
    page = Page(write_report([run]))
    assert ('id="evaluation"' in page.source) == ("evaluation.json" not in missing)
    assert ('id="curves"' in page.source) == ("metrics.jsonl" not in missing)
    assert ('id="data"' in page.source) == ("data.json" not in missing)


def test_damaged_files_are_named(tmp_path):
    run = training_run(tmp_path / "dpo", "dpo", steps=60)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = "{broken"
    row = json.loads(lines[20]) | {"loss": float("nan"), "grad_norm": None, "kl/chosen": "inf"}
    lines[20] = json.dumps(row)
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:25])
    (run / "evaluation.json").write_text('{"policies": [{"checkpoint": "soon"}]}')
    (run / "data.json").write_text("{")
    status = json.loads((run / "status.json").read_text()) | {"state": "interrupted", "step": 59}
    (run / "status.json").write_text(json.dumps(status))
    text = Page(write_report([run])).text
    assert "The last line of metrics.jsonl is cut off" in text
    assert "1 line of metrics.jsonl cannot be read" in text
    assert "loss (1)" in text and "grad_norm (1)" in text and "kl/chosen (1)" in text
    assert "Evaluation.json is left out: policies.0.checkpoint" in text
    assert "Data.json is left out" in text
    assert "The run was interrupted at step 59" in text


def test_counts_that_do_not_add_up_are_said(tmp_path):
    run = training_run(tmp_path / "dpo", "dpo", steps=6)
    data = json.loads((run / "data.json").read_text())
    data["sources"][0]["kept"] -= 1
    (run / "data.json").write_text(json.dumps(data))
    text = Page(write_report([run])).text
    assert "The counts of sentiment do not add up: 1,024 rows read, 959 kept, 64 left out" in text
    assert "does not add up" in text


def test_further_answers_what_a_mixture_leaves_and_left_out_responses_are_told(tmp_path):
    run = training_run(tmp_path / "dpo", "dpo", steps=6)
    data = json.loads((run / "data.json").read_text())
    more = {"merged": 3, "not_selected": 2, "responses_left_out": {"response without a token": 1}}
    data["sources"][0] |= more
    data["sources"][0]["read"] += 5
    (run / "data.json").write_text(json.dumps(data))
    text = Page(write_report([run])).text
    assert "+ 3 further answers to a prompt + 2 not in the mixture" in text
    assert "of kept rows 1 response left out: response without a token" in text
    assert "not add up" not in text


def test_folders_that_are_no_runs_are_one_line(tmp_path):
    training_run(tmp_path / "runs" / "dpo", "dpo", steps=6)
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "is no run folder"),
        (tmp_path / "runs", "it holds run folders: dpo"),
        (tmp_path / "runs" / "dpo" / "recipe.yaml", "is a file"),
    ):
        with pytest.raises(RunError, match=words) as caught:
            write_report([folder])
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="given twice"):
        write_report([tmp_path / "runs" / "dpo"] * 2)
    with pytest.raises(RunError, match="no run folder given"):
        write_report([])


def test_same_runs_give_the_same_file(tmp_path):
    run = training_run(tmp_path / "dpo", "dpo", steps=6)
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first


@pytest.mark.parametrize("kind", ["frontier", "kl"])
def test_figures_as_png(tmp_path, kind):
    run = training_run(tmp_path / "tdpo2", "tdpo2", steps=50)
    folder = evaluation_run(tmp_path / "evaluation", [run])
    path = figure_png([run, folder], tmp_path / "figures" / "plot.png", kind)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(RunError, match=r"no frontier|nothing to draw"):
        figure_png([run] if kind == "frontier" else [folder], path, kind)
