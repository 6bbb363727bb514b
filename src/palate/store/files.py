"""Files: every write is complete or absent, and a failed one is one clear line.

A write goes to a temporary file in the same folder, is flushed to the disk, and then replaces the
target in one step, so that a reader, a full disk or a killed process never meets half a file.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from palate.errors import RunError, in_one_line


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically, making parent folders.

    Raises:
        RunError: the file cannot be written (disk full, no permission ...); what was there stays.
    """
    path = Path(path)
    with file_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(_mode_of_new_files())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON atomically; see `write_bytes`.

    Raises:
        ValueError: `obj` holds a NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: str | Path, obj: Any) -> None:
    """Append `obj` as one line of JSON, in one write call.

    A line that a killed process left unfinished is closed first, so that it spoils only itself.
    """
    path = Path(path)
    line = (json.dumps(obj, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    with file_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            written = file.write(line)
            if written != len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunError: it cannot be read, is not UTF-8 or is not JSON.
    """
    path = Path(path)
    with file_errors("read", path):
        data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """The values of a file of one JSON value a line.

    Raises:
        RunError: it cannot be read, or a line is no JSON.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    # Not `str.splitlines`: a text may hold other ends of lines, such as U+2028.
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise RunError(f"{path}, line {number}: no JSON") from None


def sync_folder(path: str | Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems do not take fsync on a folder; the rename itself has happened.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _mode_of_new_files() -> int:
    # mkstemp makes files private; the result should be what open() would have made.
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
    """Makes a failure of the file system one line that names what was to be done, and the place."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        reason = getattr(error, "strerror", None) or in_one_line(error, 300)
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason:
            reason = f"the disk is full ({reason}); nothing that was there before is lost"
        raise RunError(f"cannot {action} {path}: {reason}") from error
