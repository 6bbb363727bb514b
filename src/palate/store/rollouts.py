"""rollouts/: what a policy wrote and what it was worth; one Parquet file a rollout, one row a
response.

    rollouts/000012.parquet

The files serve two ends. They are the rollouts table of a run, for a report, for pandas or DuckDB;
and an update that was interrupted goes on from them, which is why every number comes back with the
very bits that were written, and why a damaged page is refused and not misread.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from palate.errors import RunError, in_one_line
from palate.store.files import file_errors, write_bytes
from palate.store.pictures import Picture

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "rollouts"

Floats = NDArray[np.float32]

TOKEN_COLUMNS = (
    "sampled_logps",
    "old_logps",
    "ref_logps",
    "values",
    "advantages",
    "returns",
    "weights",
)
"""Numbers of every token of a response, as an update uses them: log-probs as the engine drew it, as
the trainer had them before the first update, as the reference has them; values of the states before
each token; importance weights."""

_TEXTS = ("prompt", "source", "prompt_text", "text", "reason", "parts", "images", "dropped")


@dataclass(frozen=True, kw_only=True)
class RolloutRow:
    """One response of a rollout.

    Attributes:
        rollout: number of the rollout, from 0.
        version: of the policy that wrote it: how often the engine had been synchronised; of a
            response that several wrote the first.
        token_versions: of each token, where they differ.
        prompt, source: id of the prompt, and where that came from.
        prompt_text, text: what was asked and what was answered, as text.
        sample: which response to the prompt.
        response_ids: token ids as sampled.
        finished: whether it ends with a stop token.
        score: as the scorer gave it; None where there is none, for `reason`.
        parts: components of the score.
        reward: the score after centring, clipping and penalties: what advantages are computed from.
        advantage: of the response, where the algorithm has one a response.
        dropped: why it is not trained on; empty where it is.
        tokens: numbers of each token under names of TOKEN_COLUMNS, [len(response_ids)] each; those
            that the run has.
        images: of the prompt, made small.
    """

    rollout: int
    version: int = 0
    token_versions: tuple[int, ...] | None = None
    prompt: str = ""
    source: str = ""
    prompt_text: str = ""
    sample: int = 0
    text: str = ""
    response_ids: tuple[int, ...] = ()
    finished: bool = True
    score: float | None = None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    reward: float | None = None
    advantage: float | None = None
    dropped: str = ""
    tokens: Mapping[str, Floats] = field(default_factory=dict)
    images: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a column that is none, or numbers of another count than tokens.
        """
        if unknown := self.tokens.keys() - set(TOKEN_COLUMNS):
            raise ValueError(f"no columns of a rollout: {', '.join(sorted(unknown))}")
        lengths = {name: len(values) for name, values in self.tokens.items()}
        if self.token_versions is not None:
            lengths["token_versions"] = len(self.token_versions)
        for name, length in lengths.items():
            if length != len(self.response_ids):
                raise ValueError(f"{name}: {length} numbers of {len(self.response_ids)} tokens")


def rollout_path(run: Path, rollout: int) -> Path:
    """Where a run folder holds a rollout."""
    return run / FOLDER / f"{rollout:06d}.parquet"


def rollout_files(run: Path) -> dict[int, Path]:
    """The rollouts of a run folder by their numbers, in order; parts of files are none."""
    files = ((path.stem, path) for path in (run / FOLDER).glob("*.parquet"))
    return dict(sorted((int(stem), path) for stem, path in files if stem.isdecimal()))


def write_rollout(run: Path, rows: Sequence[RolloutRow]) -> Path:
    """Writes the file of a rollout, whole or not at all; one that is there is replaced.

    Characters that UTF-8 cannot hold (lone surrogates) are replaced in texts; numbers and ids are
    kept to the bit.

    Raises:
        ValueError: no rows, or rows of several rollouts.
        RunError: the file cannot be written.
    """
    numbers = {row.rollout for row in rows}
    if len(numbers) != 1:
        raise ValueError(f"a file holds one rollout, not {len(numbers)}")
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(
        _table(rows),
        buffer,
        compression="zstd",
        # Equal prompts stand once. A dictionary of numbers would make all NaNs one.
        use_dictionary=list(_TEXTS),
        write_page_checksum=True,
    )
    path = rollout_path(run, numbers.pop())
    write_bytes(path, buffer.getvalue())
    return path


def read_rollout(path: Path, *, with_tokens: bool = True) -> list[RolloutRow]:
    """The rows of a rollout's file, in order.

    Args:
        with_tokens: also the numbers of each token; without them a large file is read faster.

    Raises:
        RunError: it cannot be read, is damaged, or is no rollout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    names = [name for name in schema.names if with_tokens or name not in TOKEN_COLUMNS]
    with file_errors("read", path), path.open("rb") as handle:
        try:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            actual = file.schema_arrow
            for name in names:
                if actual.get_field_index(name) < 0:
                    raise RunError(f"{path}: no rollout of palate: it has no column '{name}'")
                if actual.field(name).type != schema.field(name).type:
                    raise RunError(
                        f"{path}: column '{name}' holds {actual.field(name).type}, and of a "
                        f"rollout {schema.field(name).type}"
                    )
            table = file.read(columns=names).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            # A page that fails its checksum is an error of the file to Arrow, without a number.
            if getattr(error, "errno", None) is not None:
                raise
            raise RunError(f"{path}: damaged: {in_one_line(error)}") from None
    return _rows(table, path)


def read_rollouts(run: Path, *, with_tokens: bool = True) -> Iterator[RolloutRow]:
    """All rows of a run folder, rollout by rollout.

    Raises:
        RunError: as `read_rollout`.
    """
    for path in rollout_files(run).values():
        yield from read_rollout(path, with_tokens=with_tokens)


def _schema() -> pa.Schema:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "rollout": pa.int64(),
        "version": pa.int64(),
        "token_versions": pa.list_(pa.int32()),
        "prompt": pa.string(),
        "source": pa.string(),
        "prompt_text": pa.string(),
        "sample": pa.int32(),
        "text": pa.string(),
        "response_ids": pa.list_(pa.int32()),
        "finished": pa.bool_(),
        "score": pa.float64(),
        "reason": pa.string(),
        "parts": pa.string(),
        "reward": pa.float64(),
        "advantage": pa.float64(),
        "dropped": pa.string(),
        **dict.fromkeys(TOKEN_COLUMNS, pa.list_(pa.float32())),
        "images": pa.string(),
    }
    return pa.schema(list(columns.items()))


def _table(rows: Sequence[RolloutRow]) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    columns = []
    for column in schema:
        name = column.name
        if name in TOKEN_COLUMNS:
            columns.append(_lists([row.tokens.get(name) for row in rows], np.float32))
        elif name in ("response_ids", "token_versions"):
            columns.append(_lists([getattr(row, name) for row in rows], np.int32))
        elif name in _TEXTS:
            texts = [_text(getattr(row, name)) for row in rows]
            columns.append(pa.array(texts, type=column.type))
        else:
            values = [getattr(row, name) for row in rows]
            columns.append(pa.array(values, type=column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _text(value: Any) -> str:
    """As it stands in the file: components and images are JSON."""
    if isinstance(value, tuple):
        value = json.dumps([image.document() for image in value]) if value else ""
    elif isinstance(value, Mapping):
        value = json.dumps(dict(value), ensure_ascii=False)
    text = str(value)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lists(values: Sequence[Any], kind: type[np.generic]) -> pa.Array:
    """A column of lists; by its buffers, since a conversion to Python and back may change a NaN."""
    import pyarrow as pa

    arrays = [np.zeros(0, kind) if v is None else np.asarray(v, kind) for v in values]
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    missing = pa.array([v is None for v in values])
    flat = pa.array(np.concatenate(arrays) if arrays else np.zeros(0, kind))
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=missing)


def _rows(table: pa.Table, path: Path) -> list[RolloutRow]:
    columns: dict[str, Sequence[Any]] = {}
    for name in table.column_names:
        chunks = table.column(name).chunks
        column = chunks[0] if chunks else table.column(name).combine_chunks()
        is_list = name in TOKEN_COLUMNS or name in ("response_ids", "token_versions")
        columns[name] = _split(column) if is_list else column.to_pylist()
    with_tokens = [name for name in TOKEN_COLUMNS if name in columns]
    rows = []
    for i in range(table.num_rows):
        values = {name: column[i] for name, column in columns.items()}
        tokens = {n: v for n in with_tokens if (v := values.pop(n)) is not None}
        versions = values["token_versions"]
        try:
            rows.append(
                RolloutRow(
                    **values
                    | {
                        "response_ids": tuple(values["response_ids"].tolist()),
                        "token_versions": None if versions is None else tuple(versions.tolist()),
                        "parts": json.loads(values["parts"]),
                        "images": tuple(map(Picture.of, json.loads(values["images"] or "[]"))),
                        "tokens": tokens,
                    }
                )
            )
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RunError(f"{path}, row {i + 1}, field 'images': {reason}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, row {i + 1}: no rollout: {in_one_line(error)}") from None
    return rows


def _split(column: pa.Array) -> list[Any]:
    """The lists of a column as arrays, None where there is none."""
    values = column.values.to_numpy(zero_copy_only=False)
    ends = column.offsets.to_numpy()
    missing = column.is_null().to_pylist()
    return [
        None if empty else values[start:stop]
        for empty, start, stop in zip(missing, ends[:-1], ends[1:], strict=True)
    ]
