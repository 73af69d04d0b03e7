from __future__ import annotations

import json

from benchmarks.table import Row, table

ROW = Row("1 GiB up", 1_000_000_000, product=(4.0, 2.0, 2.5), pipe=(1.0, 2.0, 1.25))


def test_rates_are_medians_in_megabytes_a_second() -> None:
    assert (ROW.product_rate, ROW.pipe_rate, ROW.ratio) == (400.0, 800.0, 0.5)


def test_json_is_one_line_with_every_run() -> None:
    line = ROW.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "work": "1 GiB up",
        "bytes": 1_000_000_000,
        "product_mb_s": 400.0,
        "pipe_mb_s": 800.0,
        "ratio": 0.5,
        "product_seconds": [4.0, 2.0, 2.5],
        "pipe_seconds": [1.0, 2.0, 1.25],
    }


def test_columns_are_aligned() -> None:
    lines = table([ROW, Row("small", 1_000_000, (1.0,), (1.0,))]).splitlines()
    assert lines == [
        "work      sfs MB/s  (range)  pipe MB/s   (range)  ratio",
        "1 GiB up       400  250-500        800  500-1000   0.50",
        "small            1      1-1          1       1-1   1.00",
    ]
