"""`sfsd rotate`, without a running daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Sfsd = Callable[..., Any]


@pytest.mark.parametrize("name", ["Bad Name", "operator", "é", "\x1b[31m"])
def test_invalid_name(root: Path, sfsd: Sfsd, name: str) -> None:
    answer = sfsd("rotate", name, code=2)
    assert "\x1b" not in answer.err


@pytest.mark.parametrize("arguments", [("rotate", "ada"), ("user", "disable", "ada")])
def test_too_long_reason(root: Path, sfsd: Sfsd, arguments: tuple[str, ...]) -> None:
    sfsd("user", "add", "ada")
    assert "reason" in sfsd(*arguments, "--reason", "話" * 171, code=2).err
    sfsd("user", "enable", "ada", "--reason", "話" * 170)


def test_user_or_all_is_required(root: Path, sfsd: Sfsd) -> None:
    sfsd("rotate", code=2)
    sfsd("rotate", "ada", "--all", code=2)
    sfsd("rotate", "ada", code=3)
    assert sfsd("rotate", "--all").lines == []
