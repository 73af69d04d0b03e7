"""`sfsd check-config`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Sfsd = Callable[..., Any]


def test_a_new_root_has_no_errors(root: Path, sfsd: Sfsd) -> None:
    assert sfsd("check-config").lines == [f"{root / 'sfsd.toml'}: no errors"]


def test_every_error_is_printed_with_file_and_line(tmp_path: Path, sfsd: Sfsd) -> None:
    path = tmp_path / "other.toml"
    path.write_text("lisen = 1\n[limits]\nconections = 5\n\x07 = 1\n")
    answer = sfsd("check-config", path, code=1)
    assert [line.split(" (")[0] for line in answer.lines] == [
        f"{path}, line 1: lisen: unknown setting",
        f"{path}, line 3: limits.conections: unknown setting",
        f"{path}, line 4: not TOML: Invalid statement",
    ]
    assert "did you mean listen?" in answer.lines[0]
    assert f"3 errors in {path}" in answer.err
    assert "hint: " in answer.err


def test_json(root: Path, sfsd: Sfsd) -> None:
    assert json.loads(sfsd("check-config", "--json").out)["errors"] == []
    (root / "sfsd.toml").write_text("\nquota = true\n")
    shown = json.loads(sfsd("check-config", "--json", code=1).out)
    assert shown["file"] == str(root / "sfsd.toml")
    assert [(one["line"], one["setting"]) for one in shown["errors"]] == [(2, "quota")]
    assert shown["errors"][0]["message"] == "not a whole number"


def test_schema(sfsd: Sfsd) -> None:
    assert "limits" in json.loads(sfsd("check-config", "--schema").out)["properties"]


def test_no_file(tmp_path: Path, sfsd: Sfsd) -> None:
    assert "no such file" in sfsd("check-config", tmp_path / "none.toml", code=1).err
    assert "sfsd init" in sfsd("check-config", "--root", tmp_path, code=1).err
