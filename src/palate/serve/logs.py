"""Structured logs: one JSON object a line, on stderr. No text of a request is ever in them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

logger = logging.getLogger("palate.serve")


class Lines(logging.Formatter):
    """A record as a line of JSON: time, level, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_lines() -> None:
    """Sends the logs of the server, and uvicorn's, to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, level in (("palate.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        own = logging.getLogger(name)
        own.handlers = [handler]
        own.setLevel(level)
        own.propagate = False


def log(event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: object) -> None:
    """Writes one line."""
    logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)
