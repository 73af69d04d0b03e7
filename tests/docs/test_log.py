"""docs/log.md names exactly the fields that `sfsd audit export` prints."""

from __future__ import annotations

from pathlib import Path

from sfsd.log.export import FIELDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "log.md").read_text("utf-8")


def test_table_names_every_exported_field() -> None:
    table = PAGE.split("| field | meaning | CEF key |\n|---|---|---|\n", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {name.strip("`"): meaning for name, meaning, _ in rows} == FIELDS
    assert [name.strip("`") for name, *_ in rows] == list(FIELDS)
