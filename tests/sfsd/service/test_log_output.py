"""The daemon's messages on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

import pytest

from sfsd.service import log_output

Pipe = tuple[TextIO, TextIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Return both ends of a pipe."""
    reading, writing = os.pipe()
    with open(reading) as output, open(writing, "w") as stream:
        yield output, stream


@contextmanager
def configured(log_format: str, level: str, stream: TextIO) -> Iterator[None]:
    """Configure logging without the handlers that pytest has added."""
    logger = logging.getLogger()
    handlers, before = logger.handlers[:], logger.level
    logger.handlers.clear()
    try:
        log_output.configure(log_format, level, stream=stream)
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(before)


def written(pipe: Pipe) -> list[str]:
    pipe[1].close()
    return pipe[0].read().splitlines()


def journal_stream(stream: TextIO) -> str:
    status = os.fstat(stream.fileno())
    return f"{status.st_dev}:{status.st_ino}"


def say_all() -> None:
    log = logging.getLogger("sfsd.test")
    log.debug("detail")
    log.info("begins", extra=log_output.event("start", pid=5))
    log.warning("from %s", "a\x1b[31m\u202eb\nc")
    try:
        raise ValueError("cause\x07")
    except ValueError:
        log.exception("failed")
    log.critical("gone")


def test_text(pipe: Pipe) -> None:
    with configured("text", "info", pipe[1]):
        say_all()
    lines = written(pipe)
    form = re.compile(r"(\S+ \S+[+-]\d\d:\d\d) ((?:INFO|WARNING|ERROR|CRITICAL) .*)")
    found = [one for one in map(form.fullmatch, lines) if one]
    assert [one[2] for one in found] == [
        "INFO begins",
        "WARNING from a\\x1b[31m\\u202eb\\nc",
        "ERROR failed",
        "CRITICAL gone",
    ]
    assert datetime.fromisoformat(found[0][1]).tzinfo is not None
    assert lines[3] == "Traceback (most recent call last):"
    assert "ValueError: cause\\x07" in lines


def test_json(pipe: Pipe) -> None:
    with configured("json", "debug", pipe[1]):
        say_all()
    shown = [json.loads(line) for line in written(pipe)]
    assert [(one["level"], one["event"]) for one in shown] == [
        ("debug", ""),
        ("info", "start"),
        ("warning", ""),
        ("error", ""),
        ("critical", ""),
    ]
    for one in shown:
        assert list(one) == ["time", "level", "module", "event", "message", "fields", "error"]
        assert one["module"] == "sfsd.test"
        assert one["time"].endswith("Z")
        datetime.fromisoformat(one["time"])
    assert shown[1]["fields"] == {"pid": 5}
    assert shown[2]["message"] == "from a\x1b[31m\u202eb\nc"
    assert "ValueError: cause" in shown[3]["error"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_line_to_the_journal_has_its_priority(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", journal_stream(pipe[1]))
    with configured(log_format, "debug", pipe[1]):
        say_all()
    lines = written(pipe)
    priorities = [line[:3] for line in lines]
    if log_format == "json":
        assert priorities == ["<7>", "<6>", "<4>", "<3>", "<2>"]
        assert json.loads(lines[0][3:])["message"] == "detail"
    else:
        assert priorities == ["<7>", "<6>", "<4>", *["<3>"] * (len(lines) - 4), "<2>"]
        assert lines[1] == "<6>INFO begins"
        assert lines[4] == "<3>Traceback (most recent call last):"


def test_the_journal_of_another_process_is_not_ours(pipe: Pipe) -> None:
    stated = journal_stream(pipe[1])
    device, inode = stated.split(":")
    assert log_output.is_journal(pipe[1], {"JOURNAL_STREAM": stated})
    assert not log_output.is_journal(pipe[1], {})
    for other in ("", "8:1", f"{device}:{int(inode) + 1}", f"{stated}:"):
        assert not log_output.is_journal(pipe[1], {"JOURNAL_STREAM": other})
    pipe[1].close()
    assert not log_output.is_journal(pipe[1], {"JOURNAL_STREAM": stated})


def test_the_level_can_change(pipe: Pipe) -> None:
    with configured("text", "error", pipe[1]):
        log = logging.getLogger("sfsd.test")
        log.warning("unseen")
        log_output.set_level("warning")
        log.warning("seen")
    assert [line.split()[-1] for line in written(pipe)] == ["seen"]
