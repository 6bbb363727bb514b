"""From a recipe's data source to records: a file, a folder, or a hub data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from palate.data.containers import hub
from palate.data.containers.base import Chained, Piece, Record, Records, Rejection
from palate.data.containers.files import SUFFIXES, open_file, suffix_of
from palate.data.containers.tables import dataset
from palate.errors import DataError, RecipeError, in_one_line
from palate.recipes.schema import DataSource
from palate.store.files import read_json

Source = TypeVar("Source", bound=DataSource)

# The words by which the hub tells splits in file names, and the split each stands for.
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SHARD = re.compile(r"(\w[\w.]*)-\d{5}-of-\d{5}\b")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def source_name(source: DataSource) -> str:
    """The source's name, or the stem of its file, folder or hub name."""
    if source.name is not None:
        return source.name
    name = Path(source.path).name or source.path
    suffix = suffix_of(name)
    if suffix is None:
        return name
    return name[: name.lower().rindex(suffix)] or name


def named(sources: Sequence[Source]) -> list[Source]:
    """The sources, those without a name told apart by their folder or split."""
    names = [source_name(source) for source in sources]
    taken: set[str] = set()
    renamed = []
    for source, name in zip(sources, names, strict=True):
        if source.name is None and names.count(name) > 1:
            parent = Path(source.path).parent.name
            parts = [parent, name, source.subset, source.split]
            name = "/".join(part for part in parts if part)
        plain, n = name, 1
        while source.name is None and name in taken:
            n += 1
            name = f"{plain} {n}"
        taken.add(name)
        renamed.append(source.model_copy(update={"name": name}))
    return renamed


def open_records(source: DataSource, scratch: Path | None = None) -> Records:
    """The records of a source.

    Args:
        scratch: folder for unpacked copies of gzipped files; default: the system's.

    Raises:
        DataError: nothing there, or nothing readable, in one line.
        RecipeError: `split` or `subset` where there is nothing to choose.
    """
    records = _all_columns(source, scratch)
    return _Without(records, frozenset(source.ignore)) if source.ignore else records


def _all_columns(source: DataSource, scratch: Path | None) -> Records:
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _saved(path, source)
        return _folder(path, source, scratch)
    if path.exists() or suffix_of(path) is not None:
        if not path.exists():
            raise DataError("no such file", file=source.path)
        if source.subset is not None:
            raise RecipeError(f"`subset`: {source.path} is a file and has no subsets")
        if source.split not in (None, "train"):
            raise RecipeError(f"`split`: {source.path} is a file: one split, called train")
        return open_file(path, scratch)
    if not _HUB_NAME.fullmatch(source.path) or source.path.startswith("."):
        raise DataError("no such file or folder", file=source.path)
    return _hub(source)


class _Without:
    """Records without some of their columns."""

    def __init__(self, records: Records, columns: frozenset[str]) -> None:
        self.files = records.files
        self.damage = records.damage
        self._records = records
        self._columns = columns

    def __len__(self) -> int:
        return len(self._records)

    def fetch(self, indices: Sequence[int]) -> list[Record | Rejection]:
        return self.take(indices).records()

    def take(self, indices: Sequence[int]) -> Piece:
        return _PieceWithout(self._records.take(indices), self._columns)

    def pieces(self) -> Iterator[Piece]:
        for piece in self._records.pieces():
            yield _PieceWithout(piece, self._columns)


@dataclass(frozen=True)
class _PieceWithout:
    piece: Piece
    columns: frozenset[str]

    @property
    def rows(self) -> int:
        return self.piece.rows

    def records(self) -> list[Record | Rejection]:
        return [
            record
            if isinstance(record, Rejection)
            else replace(
                record,
                value={k: v for k, v in record.value.items() if k not in self.columns},
            )
            for record in self.piece.records()
        ]


def _folder(path: Path, source: DataSource, scratch: Path | None) -> Records:
    """Data files of a folder, by split; `subset` is a folder in it."""
    root = path if source.subset is None else path / source.subset
    if source.subset is None and _is_built(path):
        # Beside the rows there are accounts of them, and their copy in another layout.
        root = path / "data"
    if not root.is_dir():
        raise DataError(f"no folder '{source.subset}' in it for `subset`", file=source.path)
    files = sorted(
        file
        for file in root.rglob("*")
        if file.is_file()
        and suffix_of(file) is not None
        # These describe data: MMPR's meta.json, LLaMA-Factory's and the hub's dataset_info.json.
        and not file.name.startswith((".", "dataset_info"))
        and file.name != "meta.json"
    )
    if not files:
        known = ", ".join(SUFFIXES)
        raise DataError(f"a folder without data files ({known})", file=source.path)
    named = [_split_of(file.relative_to(root)) for file in files]
    by_split: dict[str, list[Path]] = {}
    for file, split in zip(files, named, strict=True):
        # As on the hub, files are the training split where no name tells splits; where some do, a
        # file such as heldout.jsonl is a split of its own, never a part of another.
        default = file.name.partition(".")[0] if any(named) else "train"
        by_split.setdefault(split or default, []).append(file)
    chosen = by_split[_choose_split(sorted(by_split), source)]
    return Chained([open_file(file, scratch) for file in chosen])


def _is_built(path: Path) -> bool:
    """Whether `palate data build` has written a folder."""
    if not (path / "lineage.json").is_file() or not (path / "data").is_dir():
        return False
    lineage = read_json(path / "lineage.json")
    return isinstance(lineage, dict) and lineage.get("verb") == "data build"


def _split_of(file: Path) -> str | None:
    # Files of the hub begin with their split: train_prefs-00000-of-00001.parquet.
    if shard := _SHARD.match(file.name):
        return shard[1]
    for part in reversed(file.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _choose_split(splits: list[str], source: DataSource) -> str:
    if source.split is None:
        if len(splits) == 1:
            return splits[0]
        raise DataError(f"has the splits {', '.join(splits)}: name one", file=source.path)
    wanted = source.split if source.split in splits else _SPLITS.get(source.split, source.split)
    if wanted not in splits:
        there = ", ".join(splits)
        raise DataError(f"has no split '{source.split}', only {there}", file=source.path)
    return wanted


def _saved(path: Path, source: DataSource) -> Records:
    """A folder written by `datasets`' save_to_disk."""
    import datasets

    if source.subset is not None:
        raise RecipeError(f"`subset`: {source.path} is a saved data set and has no subsets")
    try:
        saved: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, JSON and file errors of every kind
        raise DataError(
            f"not a readable data set: {in_one_line(error, 300)}",
            file=path,
        ) from error
    if isinstance(saved, datasets.Dataset) and source.split not in (None, str(saved.split)):
        raise DataError(f"has no split '{source.split}', only {saved.split}", file=path)
    return _one_split(saved, source)


def _hub(source: DataSource) -> Records:
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / source.path.replace("/", "___")
    if not cached.exists() and hub.unreachable():
        raise DataError(
            "no such file or folder here, and the hub cannot be reached", file=source.path
        )
    try:
        try:
            loaded: Any = datasets.load_dataset(source.path, name=source.subset, split=source.split)
        except ValueError:
            if source.subset is None:
                raise
            # Some sets have folders where others have named configurations.
            loaded = datasets.load_dataset(source.path, data_dir=source.subset, split=source.split)
    except Exception as error:  # network, authorisation, missing splits, builders' own errors
        raise DataError(
            f"no such file or folder here, and as a hub data set: {in_one_line(error, 300)}",
            file=source.path,
        ) from error
    return _one_split(loaded, source)


def _one_split(loaded: Any, source: DataSource) -> Records:
    import datasets

    file = source.path
    if isinstance(loaded, datasets.DatasetDict):
        split = _choose_split(sorted(loaded), source)
        loaded = loaded[split]
    if not len(loaded):
        raise DataError("no row", file=file)
    return dataset(loaded, file)
