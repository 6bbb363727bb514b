"""Finished stages in a store of fsspec, for machines that share no disk."""

from __future__ import annotations

import json
import posixpath
import shutil
from pathlib import Path
from typing import Any

from palate.errors import RunError, in_one_line
from palate.store.digests import sha256_file
from palate.store.files import write_json
from palate.store.folders import whole_folder
from palate.store.stages import FOLDER, StageRecord, finished_record
from palate.study.commands import as_stage
from palate.study.graph import REFERENCE_CACHE, StudyStage

_KEPT_BESIDE = {REFERENCE_CACHE: "reference_cache"}
"""What stages of a verb write outside of their folder."""


class Artifacts:
    """Stages below an address: files, then `<key>/artifact.json` with their digests and the record.

    What has no artifact.json is not there: a push that was cut off leaves nothing to be fetched.

    Raises:
        RunError: an address that cannot be used.
    """

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self._files, self._root = url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise RunError(f"artifacts {address}: {in_one_line(error)}") from None
        self.address = address

    def push(self, root: Path, stage: StudyStage) -> None:
        """Puts a finished stage there, where it is not yet.

        Raises:
            RunError: it cannot be written.
        """
        record = finished_record(root, as_stage(stage))
        if record is None or self._manifest(stage.key) is not None:
            return
        folders = [root / stage.key]
        if stage.verb in _KEPT_BESIDE:
            folders.append(root / _KEPT_BESIDE[stage.verb])
        files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
        digests = {path.relative_to(root).as_posix(): sha256_file(path) for path in files}
        manifest = {"record": record.document(), "files": digests}
        try:
            for name in digests:
                place = self._place(stage.key, name)
                self._files.makedirs(posixpath.dirname(place), exist_ok=True)
                self._files.put_file(str(root / name), place)
            self._files.makedirs(self._place(stage.key), exist_ok=True)
            self._files.pipe_file(
                self._place(stage.key, "artifact.json"), json.dumps(manifest).encode()
            )
        except (OSError, ValueError) as error:
            raise RunError(f"artifacts {self.address}: {in_one_line(error)}") from None

    def fetch(self, root: Path, stage: StudyStage) -> bool:
        """Brings a stage here, where it is finished there and not here; whether it is here now.

        Raises:
            RunError: what is there is damaged.
        """
        if finished_record(root, as_stage(stage)) is not None:
            return True
        manifest = self._manifest(stage.key)
        if manifest is None:
            return False
        with whole_folder(root / f".{stage.key}.fetched") as folder:
            for name, digest in manifest["files"].items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._files.get_file(self._place(stage.key, name), str(path))
                except (OSError, ValueError) as error:
                    raise RunError(f"artifacts {self.address}: {in_one_line(error)}") from None
                if sha256_file(path) != digest:
                    raise RunError(
                        f"artifacts {self.address}: {stage.key}/{name} is not as it was written"
                    )
        fetched = root / f".{stage.key}.fetched"
        for name in manifest["files"]:
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).replace(place)
        shutil.rmtree(fetched)
        record = StageRecord.of(manifest["record"])
        if record.folder:
            (root / stage.key).mkdir(exist_ok=True)
        write_json(root / FOLDER / f"{stage.key}.json", record.document())
        return finished_record(root, as_stage(stage)) is not None

    def _place(self, key: str, name: str = "") -> str:
        return posixpath.join(self._root, key, name) if name else posixpath.join(self._root, key)

    def _manifest(self, key: str) -> dict[str, Any] | None:
        place = self._place(key, "artifact.json")
        try:
            if not self._files.exists(place):
                return None
            manifest: dict[str, Any] = json.loads(self._files.cat_file(place))
        except (OSError, ValueError) as error:
            raise RunError(f"artifacts {self.address}: {key}: {in_one_line(error)}") from None
        return manifest
