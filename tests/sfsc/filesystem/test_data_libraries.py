"""pandas, pyarrow, duckdb and universal-pathlib read and write encrypted files by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import upath

import sfsc
from sfsc.filesystem import SfsFileSystem

ROWS = 1000


@pytest.fixture(autouse=True)
def account(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SfsFileSystem]:
    """The file system that the libraries find for `sfs://`."""
    monkeypatch.setenv("SFSC_HOME", str(home))
    system: SfsFileSystem = fsspec.filesystem("sfs")
    yield system
    system.close()


def table() -> Any:
    return pandas.DataFrame(
        {"number": range(ROWS), "city": [f"city {number % 7}" for number in range(ROWS)]}
    )


def stored(home: Path, name: str) -> bytes:
    with sfsc.connect(home) as store:
        return store.read_bytes(name)


def test_pandas(home: Path) -> None:
    table().to_parquet("sfs://pandas/table.parquet")
    assert stored(home, "pandas/table.parquet")[:4] == b"PAR1"
    pandas.testing.assert_frame_equal(pandas.read_parquet("sfs://pandas/table.parquet"), table())
    cities = pandas.read_parquet("sfs://pandas/table.parquet", columns=["city"])
    assert list(cities.columns) == ["city"]
    table().to_csv("sfs://pandas/table.csv.gz", index=False)
    assert stored(home, "pandas/table.csv.gz")[:2] == b"\x1f\x8b"
    pandas.testing.assert_frame_equal(pandas.read_csv("sfs://pandas/table.csv.gz"), table())
    with pytest.raises(FileNotFoundError):
        pandas.read_parquet("sfs://pandas/none.parquet")


def test_pyarrow(home: Path, account: SfsFileSystem) -> None:
    data = pyarrow.Table.from_pandas(table())
    pyarrow.parquet.write_table(data, "arrow/one.parquet", filesystem=account)
    assert pyarrow.parquet.read_table("arrow/one.parquet", filesystem=account).equals(data)
    pyarrow.dataset.write_dataset(
        data,
        "arrow/parts",
        filesystem=account,
        format="parquet",
        partitioning=["city"],
        partitioning_flavor="hive",
    )
    parts = pyarrow.dataset.dataset(
        "arrow/parts", filesystem=account, format="parquet", partitioning="hive"
    )
    assert len(parts.files) == 7
    assert parts.count_rows(filter=pyarrow.dataset.field("city") == "city 3") == len(
        range(3, ROWS, 7)
    )
    pyarrow.dataset.write_dataset(
        data,
        "arrow/parts",
        filesystem=account,
        format="parquet",
        existing_data_behavior="delete_matching",
        partitioning=["city"],
        partitioning_flavor="hive",
    )
    assert parts.to_table().num_rows == ROWS


def test_duckdb(home: Path, account: SfsFileSystem) -> None:
    table().to_parquet("sfs://duck/in/1.parquet")
    table().to_parquet("sfs://duck/in/2.parquet")
    with duckdb.connect() as database:
        database.register_filesystem(account)
        query = "SELECT count(*), max(number) FROM 'sfs://duck/in/*.parquet'"
        assert database.execute(query).fetchall() == [(2 * ROWS, ROWS - 1)]
        database.execute(
            "COPY (SELECT city, sum(number) AS total FROM 'sfs://duck/in/1.parquet' GROUP BY city)"
            " TO 'sfs://duck/out.parquet' (FORMAT parquet)"
        )
        total = database.execute("SELECT sum(total) FROM 'sfs://duck/out.parquet'").fetchall()
    assert total == [(ROWS * (ROWS - 1) // 2,)]
    assert stored(home, "duck/out.parquet")[:4] == b"PAR1"


def test_universal_pathlib(home: Path) -> None:
    folder = upath.UPath("sfs://paths/folder")
    (folder / "sub").mkdir(parents=True)
    (folder / "notes.txt").write_text("first\n", encoding="utf-8")
    (folder / "sub" / "data").write_bytes(b"1234")
    assert stored(home, "paths/folder/notes.txt") == b"first\n"
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "sub"]
    assert [path.name for path in folder.rglob("da*")] == ["data"]
    assert (folder / "sub" / "data").stat().st_size == 4
    assert (folder / "sub").is_dir()
    assert not (folder / "none").exists()
    moved = (folder / "notes.txt").rename(folder / "moved.txt")
    assert moved.read_text(encoding="utf-8") == "first\n"
    (folder / "moved.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "moved.txt").read_bytes()
    with (folder / "lines").open("w", encoding="utf-8") as file:
        file.write("1\n2\n")
    with (folder / "lines").open(encoding="utf-8") as file:
        assert list(file) == ["1\n", "2\n"]
    (folder / "sub" / "data").unlink()
    (folder / "sub").rmdir()
    assert [path.name for path in folder.iterdir()] == ["lines"]
