"""The folder of a build: written beside its place, and put there in one step when all is done."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from palate.errors import RunError
from palate.store.files import sync_folder

if os.name == "posix":
    import fcntl


class BuildFolder:
    """Where a build writes until it is finished: `.<name>.building` beside the output folder.

    Attributes:
        out: what becomes the output folder. staged: what is thrown away in the end.
    """

    def __init__(self, output_dir: Path, *, replaces: Callable[[Path], bool] | None = None) -> None:
        """Args: `replaces` says of a folder that is there already whether it may go."""
        self.output_dir = output_dir
        self._replaces = replaces
        self.work = output_dir.parent / f".{output_dir.name}.building"
        self.out = self.work / "out"
        self.staged = self.work / "staged"

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Makes the folders, held against any other build of the same output.

        They stay when the process is interrupted, so that `resume` can go on, and go when it fails
        or when `finish` has been called.

        Raises:
            RunError: the output is there already, or another build is writing it.
        """
        self.refuse_existing()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {self.work}: {error.strerror or error}") from None
        with (self.work / "lock").open("w") as lock:
            if not _held(lock):
                raise RunError(f"{self.output_dir}: another build is writing it ({self.work})")
            if not resume and self.staged.exists():
                note = "%s: an interrupted build is thrown away; `resume` would have gone on"
                logging.getLogger("palate").warning(note, self.output_dir)
                shutil.rmtree(self.staged)
            # What was half written is made again in any case: it is quick beside reading.
            shutil.rmtree(self.out, ignore_errors=True)
            self.staged.mkdir(exist_ok=True)
            self.out.mkdir()
            try:
                yield
            except Exception:
                shutil.rmtree(self.work, ignore_errors=True)
                raise

    def refuse_existing(self) -> None:
        """Raises RunError where the output folder holds anything."""
        there = self.output_dir
        if there.is_file() or (there.is_dir() and any(there.iterdir())):
            if self._replaces is not None and self._replaces(there):
                return
            raise RunError(f"{there} is there already: delete it or choose another folder")

    def finish(self) -> None:
        """Puts the finished folder in its place."""
        try:
            if self.output_dir.is_dir():
                # Out of the way first: the old one is whole until the new one is there.
                os.rename(self.output_dir, self.work / "old")
            os.rename(self.out, self.output_dir)
        except OSError as error:
            raise RunError(f"cannot write {self.output_dir}: {error.strerror or error}") from None
        sync_folder(self.output_dir.parent)
        shutil.rmtree(self.work, ignore_errors=True)


def _held(lock: IO[Any]) -> bool:
    # Gone with the process, however it ends. Elsewhere two builds at once are not told apart.
    if os.name != "posix":
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
