"""Structured logs: one JSON object a line, on stderr. No text of a request is ever in them: of an
error its class and place are written, of what other parts of the program log its place."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime

logger = logging.getLogger("palate.serve")


class Lines(logging.Formatter):
    """A record as a line of JSON: time, level, event, and the record's `fields`.

    Args:
        worded: write the record's message as the event; else where it comes from.
    """

    def __init__(self, *, worded: bool = True) -> None:
        super().__init__()
        self.worded = worded

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower()}
        if self.worded:
            line |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        else:
            place = f"{record.module}.{record.funcName}:{record.lineno}"
            line |= {"event": "note", "logger": record.name, "place": place}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(_wordless(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False, default=str)


def _wordless(error: BaseException) -> Iterator[str]:
    """A traceback without messages, which may quote what was sent."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _wordless(before)
        yield "followed by\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"


def log_lines() -> None:
    """Sends the logs of the server, uvicorn's, and notes of all other parts to stderr as lines of
    JSON."""
    worded, notes = (logging.StreamHandler(sys.stderr) for _ in range(2))
    worded.setFormatter(Lines())
    notes.setFormatter(Lines(worded=False))
    for name, level, handler in (
        ("palate.serve", logging.INFO, worded),
        ("uvicorn.error", logging.WARNING, worded),
        # Words of a judge's server are logged as notes; asyncio logs errors of abandoned tasks.
        ("palate", logging.WARNING, notes),
        ("asyncio", logging.WARNING, notes),
    ):
        named = logging.getLogger(name)
        named.handlers = [handler]
        named.setLevel(level)
        named.propagate = False


def log(event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: object) -> None:
    """Writes one line."""
    logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)
