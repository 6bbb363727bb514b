"""Folders: whole or absent, and held by one process at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from palate.errors import RunError
from palate.store.files import file_errors, sync_folder


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `final` in one step when the block ends.

    It has a hidden name beside its place until then, and is flushed to the disk first.

    Raises:
        RunError: it cannot be written; what was at `final` is still there.
    """
    temporary = partial_path(final)
    replaced = final.parent / f".{final.name}.old"
    try:
        with file_errors("write", final):
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            _flush(temporary)
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(final, replaced)
            os.replace(temporary, final)
            sync_folder(final.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def partial_path(final: Path) -> Path:
    """Where a folder is while it is being filled."""
    return final.parent / f".{final.name}.partial"


def remove_folder(folder: Path) -> None:
    """Deletes a folder so that a killed deletion leaves no half of it, or only a hidden one."""
    dying = partial_path(folder)
    shutil.rmtree(dying, ignore_errors=True)
    with suppress(OSError):
        os.replace(folder, dying)
    shutil.rmtree(dying, ignore_errors=True)


def clean_folder(folder: Path) -> None:
    """Removes what a killed process left half written under `folder`, and finishes its renames."""
    for replaced in folder.glob(".*.old"):
        final = folder / replaced.name.removeprefix(".").removesuffix(".old")
        if not final.exists():
            os.replace(replaced, final)
        shutil.rmtree(replaced, ignore_errors=True)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps a folder, made where it is missing, for this process alone while the block runs.

    Raises:
        RunError: another one has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(f"{folder}: is a file; choose another output_dir") from None
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from None
    if os.name != "posix":  # elsewhere two runs at once are not told apart
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder}: another process writes to it: wait for it, or choose another output_dir"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
