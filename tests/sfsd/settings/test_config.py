"""sfsd.toml: defaults, accepted forms, and all errors of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfsd.errors import ConfigError
from sfsd.settings.config import (
    Config,
    ConnectionLimits,
    RetentionPolicy,
    RotationPolicy,
    problems_in,
)
from sfsd.settings.kinds import DAY


def test_empty_file_is_all_defaults() -> None:
    assert Config.parse(b"") == Config()
    assert Config().limits.login_seconds == 10
    assert Config().rotation == RotationPolicy(90 * DAY, 30 * DAY, 10)


def test_every_setting() -> None:
    text = b"""
    listen = "[::]:7373"
    public = "files.example:7373"
    quota = "50 GiB"
    [limits]
    login_seconds = 3
    unauthenticated = 6
    unauthenticated_per_address = 5
    connections = 17
    connections_per_address = 8
    idle_seconds = "10m"
    write_seconds = 11
    rotations = 12
    user_shared_files = "16k"
    user_connections = 13
    user_requests_per_second = 14
    user_bytes_per_second = "15 MiB/s"
    user_log_lines_per_day = 20000000
    [rotation]
    max_age = "4w"
    grace = 0
    jitter = "0%"
    [retention]
    trash_days = "2w"
    versions = 5
    """
    assert Config.parse(text) == Config(
        "[::]:7373",
        "files.example:7373",
        50 * 1024**3,
        ConnectionLimits(3, 6, 5, 17, 8, 600, 11, 12, 16_000, 13, 14, 15 << 20, 20_000_000),
        RotationPolicy(28 * DAY, 0, 0),
        RetentionPolicy(14, 5),
    )


UNKNOWN, BAD_NUMBER = "unknown setting", "not a whole number"
BELOW_ONE = "not between 1 and 1,000,000"
FIRST = ("[limit]", "quota.x")
"""Settings whose error is in the first line; the others are in the last."""


@pytest.mark.parametrize(
    ("text", "setting", "message", "hint"),
    [
        ("listen = 7373", "listen", "not text", "quotes"),
        ('listen = "localhost"', "listen", "", "127.0.0.1:7373"),
        ('public = "here:0"', "public", "no client can connect to port 0", "port"),
        ('public = "0.0.0.0:1"', "public", "no client can connect to 0.0.0.0", "name"),
        ("quota = -1", "quota", "not between 0 bytes and 8 PiB", ""),
        ("quota = 1.5", "quota", BAD_NUMBER, "50 GiB"),
        ("lisen = 1", "lisen", UNKNOWN, "did you mean listen?"),
        ("parse = 1", "parse", UNKNOWN, "docs/operating.md"),
        ("trash_days = 1", "trash_days", UNKNOWN, "below a line [retention]"),
        ("[rotation]\nlisten = 1", "rotation.listen", UNKNOWN, "above the first [table]"),
        ("[limits]\nlogin_second = 1", "limits.login_second", UNKNOWN, "limits.login_seconds"),
        ("[limits]\nlogin_seconds = 0", "limits.login_seconds", BELOW_ONE, ""),
        ("[limits]\nlogin_seconds = true", "limits.login_seconds", BAD_NUMBER, "90m"),
        ('[limits]\nlogin_seconds = "1"', "limits.login_seconds", "not a duration: '1'", "90s"),
        ("limits = 1", "limits", "not a table", "[limits]"),
        ("[[retention]]", "retention", "not a table", "[retention]"),
        ("[limit]\nx = 1", "[limit]", "unknown table", "[limits]"),
        ("[zzz]", "[zzz]", "unknown table", "[limits], [rotation]"),
        ("[limits.x]", "[limits.x]", "unknown table", "[limits]"),
        ("[limits]\nconnections.x = 1", "limits.connections.x", UNKNOWN, "limits.connections"),
        ("[limits]\nuser_connections = 0", "limits.user_connections", BELOW_ONE, ""),
        (
            "[limits]\nuser_bytes_per_second = 100",
            "limits.user_bytes_per_second",
            "not 0 or between 64 KiB and 8 PiB",
            "",
        ),
        ("[limits]\nuser_log_lines_per_day = 2_000_000_000", "limits.user_log_lines_per_day",
         "not between 0 and 1,000,000,000", ""),
        ("[rotation]\nmax_age = 90", "rotation.max_age", "a duration without a unit", '"90d"'),
        ('[rotation]\nmax_age = "1h"', "rotation.max_age", "not between 1d and 730d", ""),
        ("[rotation]\njitter = 101", "rotation.jitter", "not between 0% and 100%", ""),
        ('[retention]\ntrash_days = "36h"', "retention.trash_days", "not a whole number of days",
         "7d"),
        ("[retention]\ntrash_days = -1", "retention.trash_days", "not between 0 and 36,500", ""),
        ("[retention]\ntrash_days = 40_000", "retention.trash_days", "between 0 and 36,500", ""),
        ("[retention]\nversions = '10M'", "retention.versions", "not between 0 and 1,000,000", ""),
        ("[limits]\nconnections = 5\nconnections = 6", "limits.connections", "is set in line 2 too",
         "remove one"),
        ("[limits]\n[rotation]\n[limits]", "[limits]", "is in line 1 too", "below one line"),
        ("quota 5", "", "not TOML: Expected '=' after a key in a key/value pair", ""),
        ("quota.x = 1\n[limits.y]\n", "quota.x", UNKNOWN, "quota"),
    ],
)  # fmt: skip
def test_an_error_names_its_setting_and_line(
    text: str, setting: str, message: str, hint: str
) -> None:
    first = problems_in(text.encode())[0]
    assert first.setting == setting
    assert message in first.message
    assert hint in (first.hint or "")
    assert first.line == (1 if first.setting in FIRST else text.count("\n") + 1)
    with pytest.raises(ConfigError) as caught:
        Config.parse(text.encode())
    assert f"line {first.line}: " in caught.value.cause
    assert first.message in caught.value.cause
    assert caught.value.hint == first.hint


def test_all_errors_are_reported_at_once_by_line() -> None:
    text = b"""lisen = 1
[limits]
conections = 5
login_seconds = 0
= nonsense
[limit]
anything = 1
[rotation]
max_age = 90
"""
    assert [one.line for one in problems_in(text)] == [1, 3, 4, 5, 6, 9]
    with pytest.raises(ConfigError) as caught:
        Config.parse(text)
    assert "5 further errors" in caught.value.cause


@pytest.mark.parametrize(
    ("text", "line", "setting"),
    [
        ("[limits]\nuser_connections = 600", 2, "limits.user_connections"),
        ("[limits]\nconnections_per_address = 70\nconnections = 69", 2,
         "limits.connections_per_address"),
        ("[limits]\nunauthenticated_per_address = 300", 2, "limits.unauthenticated_per_address"),
        ('[rotation]\ngrace = "30d"\nmax_age = "701d"', 2, "rotation.grace"),
    ],
)  # fmt: skip
def test_contradictions(text: str, line: int, setting: str) -> None:
    assert [(one.line, one.setting) for one in problems_in(text.encode())] == [(line, setting)]


def test_a_default_does_not_contradict_a_setting() -> None:
    assert problems_in(b'[limits]\nconnections = 5\n[rotation]\nmax_age = "730d"') == []


def test_a_setting_below_a_table_that_is_a_comment() -> None:
    text = b"# [retention]\ntrash_days = 5\npublic = 'files.example:1'\n"
    (problem,) = problems_in(text)
    assert (problem.line, problem.setting) == (2, "trash_days")
    assert "# before [retention]" in (problem.hint or "")


def test_other_bytes_are_one_error() -> None:
    for raw, line in ((b"a\n\xff", 2), (b"#" * 70_000, 1)):
        assert [one.line for one in problems_in(raw)] == [line]


def test_what_only_the_whole_document_shows() -> None:
    (problem,) = problems_in(b"limits = {}\n[limits]\nconnections = 20\n")
    assert problem.message.startswith("not TOML: ")


def test_folder_without_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path)
    assert caught.value.cause == f"no sfsd root at {tmp_path}"
    assert "sfsd init" in (caught.value.hint or "")


def test_errors_name_the_file_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sfsd.toml").write_text("\nnonsense = 1")
    with pytest.raises(ConfigError) as caught:
        Config.load(Path())
    expected = f"{tmp_path / 'sfsd.toml'}, line 2: nonsense: unknown setting"
    assert caught.value.cause == expected
