"""Writes golden.json: what every golden case comes to.

    python tests/golden/record.py            # all of them
    python tests/golden/record.py NAME ...   # those whose names contain NAME; the others stay

with `src` and `tests` on PYTHONPATH. Numbers are recorded once, of code that is right, and then
stand for it: a case is recorded again only where it was meant to change.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from golden.cases import CASES
from golden.running import Values, differences, quiet_machine

GOLDEN = Path(__file__).with_name("golden.json")


def main(names: list[str]) -> None:
    golden: dict[str, Values] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    golden = {name: values for name, values in golden.items() if name in CASES}
    chosen = [case for case in CASES if not names or any(name in case for name in names)]
    with tempfile.TemporaryDirectory() as folder, quiet_machine():
        for number, name in enumerate(chosen):
            started = time.process_time()
            values = CASES[name](Path(folder) / f"case{number}")
            changed = len(differences(values, golden.get(name, {})))
            golden[name] = values
            seconds = time.process_time() - started
            print(f"{name}: {len(values)} values, {changed} changed, {seconds:.2f} s", flush=True)
    text = json.dumps(golden, indent=0, sort_keys=True, allow_nan=False)
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
