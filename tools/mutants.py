"""Which lines of `losses` and `kernels` can be broken without a test noticing.

Runs mutmut (settings: `[tool.mutmut]` in pyproject.toml) with the operators of `mutant_operators`,
then prints what became of the mutants and which survivors have no verdict in `mutants.toml`.

    python tools/mutants.py            run what has no result yet, then report
    python tools/mutants.py --report   report only
    python tools/mutants.py --again    run survivors and time-outs again, after new tests

Results lie in mutants/, so that a run can be interrupted and goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutant_operators import OPERATORS
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

VERDICTS = Path(__file__).with_name("mutants.toml")
ALIVE = ("survived", "no tests")


@dataclass(frozen=True)
class Mutant:
    """A mutant and its fate; `text` names it in words that outlast changes elsewhere."""

    name: str
    file: str
    status: str
    text: str = ""


def mutants(*, texts: bool) -> list[Mutant]:
    """All of them; with `texts`, those alive have one."""
    every = []
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        file = str(Path(path).relative_to("src/palate"))
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            text = describe(name, path, file) if texts and status in ALIVE else ""
            every.append(Mutant(name=name, file=file, status=status, text=text))
    return every


def describe(name: str, path: Path, file: str) -> str:
    """File, function, and the line before and after."""
    lines = get_diff_for_mutant(name, path=path).splitlines()
    before, after = (
        " ".join(line[1:].strip() for line in lines if line[:1] == sign and line[:3] != sign * 3)
        for sign in "-+"
    )
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0]
    function = function.removeprefix("x").removeprefix("_").strip("ǁ").replace("ǁ", ".")
    return f"{file} {function}: {before} => {after}"


def unreached(source: str) -> tuple[int, Counter[str]]:
    """Lines of code, and those that mutmut leaves alone, by reason.

    Imports, docstrings, and the heads of functions and classes are no lines of code here.
    """
    lines: set[int] = set()
    left: dict[int, str] = {}

    def visit(statements: list[ast.stmt], reason: str | None) -> None:
        for node in statements:
            if isinstance(node, ast.FunctionDef):
                names = [ast.unparse(d) for d in node.decorator_list]
                free = not names or names in (["staticmethod"], ["classmethod"])
                inside = reason == "" or free
                visit(node.body, "" if inside else f"function under @{names[0]}")
            elif isinstance(node, ast.ClassDef):
                visit(node.body, reason)
            elif isinstance(node, ast.Import | ast.ImportFrom) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            ):
                continue
            else:
                span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                lines.update(span)
                if reason != "":
                    left.update(dict.fromkeys(span, reason or "module and class level"))

    visit(ast.parse(source).body, None)
    return len(lines), Counter(left.values())


def report() -> int:
    """Prints the summary; 1 where a survivor has no verdict."""
    every = mutants(texts=True)
    statuses = ["killed", "survived", "no tests", "timeout", "not checked"]
    print(f"{'file':32}" + "".join(f"{s:>13}" for s in [*statuses, "other"]))
    files = [*sorted({m.file for m in every}), None]
    for file in files:
        count = Counter(m.status for m in every if file in (m.file, None))
        numbers = [count[s] for s in statuses]
        numbers.append(count.total() - sum(numbers))
        print(f"{file or 'all':32}" + "".join(f"{n:13}" for n in numbers))
    total, left = 0, Counter[str]()
    for path in walk_mutatable_files():
        n, why = unreached(Path(path).read_text())
        total, left = total + n, left + why
    share = left.total() / max(total, 1)
    print(f"\n{left.total()} of {total} lines of code ({share:.0%}) cannot be reached:")
    for reason, n in left.most_common():
        print(f"  {n:4}  {reason}")
    verdicts = tomllib.loads(VERDICTS.read_text())["verdict"]
    known = {text for verdict in verdicts for text in verdict["mutants"]}
    alive = sorted({m.text for m in every if m.status in ALIVE})
    new = [text for text in alive if text not in known]
    gone = sorted(known.difference(alive))
    print(f"\n{len(alive)} different ones are alive, {len(alive) - len(new)} with a verdict.")
    for title, texts in (("Without a verdict", new), ("In mutants.toml, not alive", gone)):
        if texts:
            print(f"\n{title}:\n" + "\n".join(f"  {text}" for text in texts))
    return 1 if new else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run survivors and time-outs again")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    os.chdir(VERDICTS.parent.parent)
    mutators.mutation_operators[:] = OPERATORS
    if not options.report:
        open_ = (*ALIVE, "timeout")
        again = [m.name for m in mutants(texts=False) if options.again and m.status in open_]
        if again or not options.again:
            mutmut._run(again, options.processes)
    config()
    return report()


if __name__ == "__main__":
    sys.exit(main())
