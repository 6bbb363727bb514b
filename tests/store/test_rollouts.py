"""Rollouts as Parquet: what is read is what was written, to the bit, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from palate.errors import RunError
from palate.store import rollouts
from palate.store.pictures import Picture
from palate.store.rollouts import (
    TOKEN_COLUMNS,
    RolloutRow,
    read_rollout,
    read_rollouts,
    rollout_files,
    rollout_path,
    write_rollout,
)

ODD = np.array(
    # A NaN with a payload of its own, minus zero, the least subnormal, infinities.
    [0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000, 0xFF800000],
    dtype=np.uint32,
).view(np.float32)
PICTURE = Picture(url="data:image/jpeg;base64,AAAA", width=4, height=3, digest="ab" * 32)


def rows(rollout: int = 0, n: int = 6, seed: int = 0) -> list[RolloutRow]:
    rng = np.random.default_rng([seed, rollout])
    made = []
    for i in range(n):
        length = (i * 5) % 7  # 0 is among them
        columns = TOKEN_COLUMNS if i % 2 else TOKEN_COLUMNS[:2]
        tokens = {name: rng.standard_normal(length).astype(np.float32) for name in columns}
        made.append(
            RolloutRow(
                rollout=rollout,
                version=rollout,
                token_versions=tuple(range(length)) if i == 3 else None,
                prompt=f"p{i // 2}",
                source="reviews",
                prompt_text="Was it good?\n",
                sample=i % 2,
                text=f"täst\u2028 {i}",
                response_ids=tuple(int(x) for x in rng.integers(0, 2**31 - 1, length)),
                finished=bool(i % 2),
                score=None if i == 4 else float(rng.standard_normal()),
                reason="no answer" if i == 4 else "",
                parts={"quality": 1 / 3, "format": -0.0} if i % 3 else {},
                reward=None if i == 4 else 0.1,
                advantage=1e-300,
                dropped="unscored" if i == 4 else "",
                tokens=tokens,
                images=(PICTURE,) if i < 2 else (),
            )
        )
    return made


def bits(row: RolloutRow) -> tuple[object, ...]:
    """A row such that equal means equal to the bit."""
    plain = {k: v for k, v in vars(row).items() if k != "tokens"}
    numbers = {k: (v.dtype.str, v.tobytes()) for k, v in row.tokens.items()}
    return repr(plain), sorted(numbers.items())


def test_rows_come_back_to_the_bit(tmp_path: Path) -> None:
    written = rows()
    odd = RolloutRow(
        rollout=0,
        response_ids=tuple(range(len(ODD))),
        score=-0.0,
        tokens={"advantages": ODD, "values": ODD[::-1]},
    )
    path = write_rollout(tmp_path, [*written, odd])
    assert path == tmp_path / "rollouts" / "000000.parquet"
    read = read_rollout(path)
    assert [bits(row) for row in read] == [bits(row) for row in [*written, odd]]
    # The test itself would see a lost payload.
    assert bits(odd) != bits(RolloutRow(**vars(odd) | {"tokens": {"advantages": ODD * 1}}))


def test_a_rollout_is_replaced_and_runs_are_listed_in_order(tmp_path: Path) -> None:
    assert rollout_files(tmp_path) == {}
    for rollout in (10, 9, 1000000, 9):
        write_rollout(tmp_path, rows(rollout, n=3 if rollout == 9 else 2))
    (tmp_path / "rollouts" / ".000011.parquet.x.tmp").write_bytes(b"part")
    (tmp_path / "rollouts" / "notes.parquet").write_bytes(b"not ours")
    assert list(rollout_files(tmp_path)) == [9, 10, 1000000]
    assert rollout_files(tmp_path)[10] == rollout_path(tmp_path, 10)
    read = list(read_rollouts(tmp_path))
    assert [row.rollout for row in read] == [9, 9, 9, 10, 10, 1000000, 1000000]


def test_a_table_is_read_without_the_numbers_of_tokens(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, rows())
    short = read_rollout(path, with_tokens=False)
    assert all(not row.tokens for row in short)
    assert [row.response_ids for row in short] == [row.response_ids for row in rows()]
    table = pq.read_table(path)
    assert table.column("advantages")[0].as_py() is None
    assert table.column("score").null_count == 1


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.97])
def test_damage_is_one_line_and_never_other_numbers(at: float, tmp_path: Path) -> None:
    path = write_rollout(tmp_path, rows(n=40))
    whole = path.read_bytes()
    place = int(at * len(whole))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    try:
        read = read_rollout(path)
    except RunError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:  # bytes that nobody reads
        assert [bits(row) for row in read] == [bits(row) for row in rows(n=40)]
    path.write_bytes(whole[:place])
    with pytest.raises(RunError, match=r"parquet: damaged: "):
        read_rollout(path)


def test_numbers_of_a_damaged_page_are_refused(tmp_path: Path) -> None:
    row = RolloutRow(
        rollout=1,
        response_ids=tuple(range(64)),
        tokens={"returns": np.arange(64, dtype=np.float32) + 0.137},
    )
    path = write_rollout(tmp_path, [row])
    meta = pq.ParquetFile(path).metadata.row_group(0)
    names = [meta.column(i).path_in_schema for i in range(meta.num_columns)]
    column = meta.column(next(i for i, n in enumerate(names) if n.startswith("returns")))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 9] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"parquet: damaged: "):
        read_rollout(path)


def test_a_foreign_file_and_wrong_rows_are_refused(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, rows())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["text"]), path)
    with pytest.raises(RunError, match=r"000000\.parquet: no rollout .* no column 'text'"):
        read_rollout(path)
    pq.write_table(table.set_column(6, "sample", table.column("score")), path)
    with pytest.raises(RunError, match="column 'sample' holds double"):
        read_rollout(path)
    bad = table.set_column(table.column_names.index("parts"), "parts", [["{"] * table.num_rows])
    pq.write_table(bad, path)
    with pytest.raises(RunError, match="row 1: no rollout"):
        read_rollout(path)
    with pytest.raises(RunError, match=r"cannot read .*000077"):
        read_rollout(tmp_path / "rollouts" / "000077.parquet")
    with pytest.raises(ValueError, match="one rollout, not 2"):
        write_rollout(tmp_path, [*rows(1), *rows(2)])
    with pytest.raises(ValueError, match="one rollout, not 0"):
        write_rollout(tmp_path, [])
    with pytest.raises(ValueError, match="values: 2 numbers of 1 tokens"):
        RolloutRow(rollout=0, response_ids=(1,), tokens={"values": ODD[:2]})
    with pytest.raises(ValueError, match="no columns of a rollout: logps"):
        RolloutRow(rollout=0, response_ids=(1,), tokens={"logps": ODD[:1]})


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    path = write_rollout(tmp_path, rows())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("palate.store.files.os.fsync", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_rollout(tmp_path, rows(n=2))
    assert path.read_bytes() == before
    assert list(rollout_files(tmp_path)) == [0]


def test_what_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, [RolloutRow(rollout=3, text="a\ud800b", reason="\udfff")])
    (row,) = read_rollout(path)
    assert (row.text, row.reason) == ("a\ufffdb", "\ufffd")


def test_equal_prompts_stand_once(tmp_path: Path) -> None:
    prompt = "".join(map(chr, np.random.default_rng(0).integers(33, 126, 20000)))
    many = [RolloutRow(rollout=0, prompt_text=prompt, sample=i) for i in range(64)]
    assert write_rollout(tmp_path, many).stat().st_size < 2 * len(prompt)
    assert rollouts.FOLDER == "rollouts"
