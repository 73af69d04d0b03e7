"""sfsd.toml: defaults, errors and units."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsd.config import (
    DAY,
    Config,
    ConnectionLimits,
    RotationPolicy,
    check_listen_address,
    check_public_address,
    initial_text,
    parse_duration,
    parse_size,
)
from sfsd.errors import ConfigError


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
    unauthenticated = 5
    unauthenticated_per_address = 6
    connections = 7
    connections_per_address = 8
    idle_seconds = 9
    write_seconds = 11
    rotations = 12
    user_shared_files = 16
    user_connections = 13
    user_requests_per_second = 14
    user_bytes_per_second = "15 MiB"
    user_log_lines_per_day = 20000000
    [rotation]
    max_age = "4w"
    grace = "0d"
    jitter = 0
    """
    assert Config.parse(text) == Config(
        "[::]:7373",
        "files.example:7373",
        50 * 1024**3,
        ConnectionLimits(3, 5, 6, 7, 8, 9, 11, 12, 16, 13, 14, 15 << 20, 20_000_000),
        RotationPolicy(28 * DAY, 0, 0),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"listen = 7373", "listen"),
        (b'listen = "localhost"', "listen"),
        (b'public = "files.example:0"', "public"),
        (b"lisen = 1", "lisen"),
        (b"parse = 1", "parse"),
        (b"[limits]\nlogin_second = 1", "limits.login_second"),
        (b"[limits]\nlogin_seconds = 0", "limits.login_seconds"),
        (b"[limits]\nlogin_seconds = true", "limits.login_seconds"),
        (b'[limits]\nlogin_seconds = "1"', "limits.login_seconds"),
        (b"limits = 1", "limits"),
        (b"[limits]\nuser_connections = 0", "limits.user_connections"),
        (b"[limits]\nuser_requests_per_second = -1", "limits.user_requests_per_second"),
        (b"[limits]\nuser_bytes_per_second = 100", "limits.user_bytes_per_second"),
        (b"[limits]\nuser_log_lines_per_day = -1", "limits.user_log_lines_per_day"),
        (b"[limits]\nuser_log_lines_per_day = 2000000000", "limits.user_log_lines_per_day"),
        (b'[limits]\nuser_bytes_per_second = "1 horse"', "limits.user_bytes_per_second"),
        (b"[rotation]\nmax_age = 90", "rotation.max_age"),
        (b'[rotation]\nmax_age = "1h"', "rotation.max_age"),
        (b"[rotation]\njitter = 101", "rotation.jitter"),
        (b"quota = -1", "quota"),
        (b"quota = 1.5", "quota"),
        (b"[other]\nx = 1", "other"),
        (b"=", "TOML"),
        (b"\xff", "TOML"),
        (b"#" * 70_000, "bytes"),
    ],
)
def test_invalid_setting_is_named(text: bytes, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(text)
    assert named in caught.value.cause


def test_folder_without_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path)
    assert caught.value.hint is not None
    assert "sfsd init" in caught.value.hint


def test_initial_text_is_valid(tmp_path: Path) -> None:
    for public in ("", "files.example:7373"):
        (tmp_path / "sfsd.toml").write_text(initial_text(public))
        assert Config.load(tmp_path) == Config(public=public)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "sfsd.toml").write_text("nonsense = 1")
    with pytest.raises(ConfigError) as caught:
        Config.load(tmp_path)
    assert "sfsd.toml" in caught.value.cause


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("1K", 1024), ("2 MiB", 2 * 1024**2), ("3gb", 3 * 1024**3)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1X", "1.5G", "9000P", "G", "1 0", "٣", "1e9"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@given(st.integers(0, 1000), st.sampled_from("smhdw"))
def test_durations(count: int, unit: str) -> None:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[unit]
    assert parse_duration(f"{count}{unit}") == count * seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1y", "99999999w", "1d1h"])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_invalid_addresses() -> None:
    for read, text in (
        (check_listen_address, "nowhere"),
        (check_public_address, "nowhere"),
        (check_public_address, "here:0"),
    ):
        with pytest.raises(ConfigError):
            read(text)
    assert check_listen_address("here:0") == "here:0"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"limits = 5", "limits: not a table"),
        (b"[[retention]]", "retention: not a table"),
        (b"[limit]", "unknown setting 'limit'"),
        (b'public = "here:0"', "public: no client can connect to port 0"),
        (b'[rotation]\ngrace = "1"', "rotation.grace: not a duration: '1'"),
    ],
)
def test_causes(text: bytes, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(text)
    assert caught.value.cause == cause
