"""README.md of a build: a data card that hubs, `datasets` and people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palate.recipes.yaml import dump_yaml

# Licence names as published -> the identifiers that the Hugging Face hub knows.
_IDENTIFIERS = {
    "mit": "mit",
    "apache-2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "odc-by": "odc-by",
    "odc-by-1.0": "odc-by",
    "cc0-1.0": "cc0-1.0",
    "openrail": "openrail",
    "llama2": "llama2",
}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)


def card(report: Mapping[str, Any], *, name: str, splits: Mapping[str, int], recipe: str) -> str:
    """The text of README.md.

    Args:
        report: the content of data.json. splits: rows of each. recipe: the resolved YAML.
    """
    sources = report["sources"]
    head = _header(sources, splits, bool(report.get("images")), name)
    counts = ", ".join(f"{rows:,} in `{split}`" for split, rows in splits.items())
    parts = [
        f"# {name}",
        f"Preference pairs: {counts}. Built with Palate; `recipe.yaml` builds it again.",
        "## Columns",
        _columns(report),
        "## Sources",
        _sources(sources),
        "## How it was built",
        _steps(report),
        "```yaml\n" + recipe.strip() + "\n```",
        "## Files",
        _files(report, splits),
    ]
    if len({source["licence"] for source in sources}) > 1:
        parts.insert(
            5, "The sources have licences of their own: what they ask for together is yours to see."
        )
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def _header(
    sources: Sequence[Mapping[str, Any]], splits: Mapping[str, int], images: bool, name: str
) -> str:
    found = {_IDENTIFIERS.get(str(s["licence"]).lower(), "other") for s in sources if s["licence"]}
    if any(not source["licence"] for source in sources):
        found.add("unknown")
    names = sorted(found)
    rows = sum(splits.values())
    header: dict[str, Any] = {
        "license": names[0] if len(names) == 1 else names,
        "task_categories": ["image-text-to-text" if images else "text-generation"],
        "tags": ["preference", "dpo", "reward-model", "trl", "palate"],
        "size_categories": [next((label for n, label in _SIZES if rows < n), "n>100M")],
        "pretty_name": name,
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in splits
                ],
            }
        ],
    }
    return dump_yaml(header)


def _columns(report: Mapping[str, Any]) -> str:
    output = report["output"]
    said = "chat turns with `role` and `content`" if output["chat"] else "text"
    lines = [f"- `prompt`, `chosen`, `rejected`: {said}"]
    if output["image_column"] == "folder":
        lines.append("- `images`: paths of the prompt's images, from this folder on")
    elif output["image_column"] == "embedded":
        lines.append("- `images`: the prompt's images, in the order of their places in the prompt")
    if output["margin"] == "margin":
        lines.append("- `margin`: chosen score minus rejected score")
    elif output["margin"] is not None:
        lines.append(
            f"- `{output['margin']}`: chosen score minus rejected score, where there are scores"
        )
    lines += [f"- `{name}`: bucket of difficulty, 0 the hardest" for name in output["buckets"]]
    lines.append("- `tie`: the annotator saw no difference, and the order means nothing")
    lines.append("- `source`, `id`: the data set a row is from, and its name in it")
    return "\n".join(lines)


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| source | format | licence | read | pairs |", "|---|---|---|---|---|"]
    for source in sources:
        licence = source["licence"] or "not stated"
        cells = (source["name"], source["format"], licence)
        lines.append(
            "| " + " | ".join(_cell(c) for c in cells) + f" | {source['read']:,} "
            f"| {source['pairs']:,} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _steps(report: Mapping[str, Any]) -> str:
    lines = []
    for step in report["steps"]:
        lines.append(f"- {step['step']}: {step['before']:,} pairs before, {step['after']:,} after")
    mixture = report["mixture"]
    if mixture is not None:
        taken = mixture["rows_taken"]
        lines.append(f"- mixture: {taken:,} pairs taken, counted in {mixture['unit']}")
    return "\n".join(lines) or "Every pair of the sources is in it."


def _files(report: Mapping[str, Any], splits: Mapping[str, int]) -> str:
    lines = [
        "`data.json` accounts for every row that was read, `quarantine.jsonl` names those left out "
        "with file, row and reason, `lineage.json` has the digests of all inputs, and "
        "`report.html` shows it all.",
    ]
    first = next(iter(splits))
    lines.append(
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{Path(".")}/", '
        f'split="{first}")   # this folder\n```'
    )
    return "\n\n".join(lines)
