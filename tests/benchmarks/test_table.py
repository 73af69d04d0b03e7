from __future__ import annotations

import json
from dataclasses import replace

from benchmarks.table import Row, table

ROW = Row("1 GiB up", 1000.0, "MB", (4.0, 2.0, 2.5), (1.0, 2.0, 1.25), goal=0.75)


def test_rates_are_medians() -> None:
    assert (ROW.product_rate, ROW.beside_rate, ROW.ratio) == (400.0, 800.0, 0.5)


def test_a_goal_is_a_ratio_and_a_limit_is_of_seconds() -> None:
    assert ROW.reached is False
    assert replace(ROW, goal=0.5).reached is True
    assert replace(ROW, goal=None).reached is None
    assert replace(ROW, goal=None, limit=2.5).reached is True
    assert replace(ROW, goal=None, limit=2.4).reached is False


def test_json_is_one_line_with_every_run() -> None:
    line = ROW.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "work": "1 GiB up",
        "amount": 1000.0,
        "unit": "MB",
        "sfs": 400.0,
        "beside": "pipe",
        "beside_rate": 800.0,
        "ratio": 0.5,
        "goal": 0.75,
        "limit_seconds": None,
        "reached": False,
        "sfs_seconds": [4.0, 2.0, 2.5],
        "beside_seconds": [1.0, 2.0, 1.25],
    }


def test_columns_are_aligned() -> None:
    lines = table([ROW, Row("start", 1, "runs", (0.1,), (0.1,), "python")]).splitlines()
    assert lines == [
        "work              sfs    (range)  beside  rate    (range)  ratio  goal",
        "1 GiB up     400 MB/s    250-500  pipe     800   500-1000   0.50  0.75  not reached",
        "start     10.0 runs/s  10.0-10.0  python  10.0  10.0-10.0   1.00",
    ]
