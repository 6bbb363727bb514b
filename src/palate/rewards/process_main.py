"""What a child of `palate.rewards.processes` runs: loads a check, and answers one task at a time.

Run as a script, so that it imports no more than the check needs. Tasks come pickled on the standard
input; answers leave as JSON on the standard output, since what a child sends must not run anything
in its parent; what the check prints goes to the standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import resource
import struct
import sys
from typing import IO, Any

_HEAD = struct.Struct("!Q")


def main() -> None:
    tasks = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    setup = pickle.load(tasks)
    sys.path[:] = setup["path"]
    try:
        if setup["memory_mb"] is not None:
            most = setup["memory_mb"] * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        check = getattr(importlib.import_module(setup["module"]), setup["factory"])
        check = check(*setup["settings"])
    except Exception as error:
        _send(answers, _body("failed", _words(error)))
        return
    _send(answers, _body("ready", None))
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        _limit_cpu(setup["cpu_seconds"])
        try:
            body = _body("value", check(task))
        except Exception as error:
            body = _body("failed", _words(error))
        _send(answers, body)


def _limit_cpu(seconds: float) -> None:
    """Ends the process once it has computed so long from now: the parent may be gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _body(kind: str, value: Any) -> bytes:
    return json.dumps([kind, value]).encode()


def _send(stream: IO[bytes], body: bytes) -> None:
    stream.write(_HEAD.pack(len(body)) + body)
    stream.flush()


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    # An error of ours says all by itself.
    return text if type(error).__module__ == "palate.errors" else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
