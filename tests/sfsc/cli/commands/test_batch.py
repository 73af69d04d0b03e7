"""`sfsc batch`: what it refuses before anything is sent, and what it makes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sfsc
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with LyingServer(tmp_path_factory.mktemp("batch") / "lying") as server:
        yield server.enrol("ada", key_type="x25519")


def write(shell: Shell, *lines: object) -> str:
    """Write a file of changes and return its name; a text is written as it is."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    (shell.folder / "changes").write_text("\n".join(texts), "utf-8", newline="")
    return "changes"


PUT = {"op": "put", "name": "a", "source": "source"}
WRONG: dict[str, list[object]] = {
    "no JSON": ["{"],
    "no object": ["[1]"],
    "nested too deeply": ["[" * 100_000],
    "a number": ["1e999"],
    "another op": [{"op": "get", "name": "a"}],
    "an op that is not text": [{"op": ["put"], "name": "a"}],
    "no name": [{"op": "rm"}],
    "a name that is not text": [{"op": "rm", "name": 1}],
    "no source": [{"op": "put", "name": "a"}],
    "a key too many": [{"op": "rm", "name": "a", "to": "b"}],
    "a repeated key": ['{"op":"rm","name":"a","name":"b"}'],
    "an invalid name": [{"op": "rm", "name": "../a"}],
    "a name twice": [PUT, {"op": "rm", "name": "a"}],
    "a name twice in a move": [{"op": "mv", "name": "a", "to": "a"}],
    "too many names": [{"op": "rm", "name": f"n{number}"} for number in range(257)],
    "too much content": [PUT | {"name": f"n{number}", "source": "half"} for number in range(9)],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_before_anything_is_sent(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(sfsc, "connect", None)
    (shell.folder / "source").write_bytes(b"1")
    (shell.folder / "half").write_bytes(bytes(120_000))
    lines = WRONG[what]
    out, err = shell.run("batch", write(shell, *lines), code=2)
    assert out == ""
    if len(lines) <= 2:
        assert f"line {len(lines)} of changes" in err


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: None,
        lambda folder: (folder / "source").mkdir(),
        lambda folder: (folder / "source").symlink_to("nothing"),
    ],
)
def test_a_source_that_is_no_file_is_refused_before_anything_is_sent(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(sfsc, "connect", None)
    make(shell.folder)
    assert "source" in shell.run("batch", write(shell, PUT), code=1)[1]
    assert "cannot read missing" in shell.run("batch", "missing", code=1)[1]


def test_bytes_that_are_no_text_are_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sfsc, "connect", None)
    (shell.folder / "changes").write_bytes(b'{"op":"rm","name":"\xff"}')
    assert "not UTF-8" in shell.run("batch", "changes", code=2)[1]
    (shell.folder / "changes").write_bytes(bytes((4 << 20) + 1))
    assert "bytes" in shell.run("batch", "changes", code=2)[1]


def test_all_changes_are_made(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "source").write_bytes(b"content")
    (shell.folder / "large").write_bytes(bytes(300_000))
    first = write(shell, PUT | {"name": "old"}, "", PUT | {"name": "draft"})
    out, err = shell.run("batch", first)
    assert (out, err) == ("", "old  version 1, 7 B\ndraft  version 1, 7 B\n")
    separated = "new\u2028\x85source"  # separators of lines elsewhere
    (shell.folder / separated).write_bytes(b"content")
    lines = [
        PUT | {"name": "näu", "source": separated},
        PUT | {"name": "big", "source": "large"},
        {"op": "rm", "name": "old"},
        {"op": "mv", "name": "draft", "to": "final"},
    ]
    with pytest.MonkeyPatch.context() as patched:
        text = "\r\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
        patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        out, err = shell.run("--json", "batch", "-")
    assert err == ""
    assert out.isascii()
    shown = [json.loads(line) for line in out.splitlines()]
    assert [(one["op"], one["name"]) for one in shown] == [
        ("put", "näu"),
        ("put", "big"),
        ("rm", "old"),
        ("mv", "draft"),
    ]
    assert [one.get("size") for one in shown] == [7, 300_000, None, 7]
    assert shown[3]["to"] == "final"
    assert shell.names() == sorted(["big", "final", "näu"])
    out, err = shell.run("batch", write(shell, {"op": "rm", "name": "näu"}))
    assert (out, err) == ("", "deleted näu\n")


def test_one_refused_change_makes_none(shell: Shell) -> None:
    (shell.folder / "source").write_bytes(b"content")
    before = shell.names()
    for bad, code in (
        ({"op": "rm", "name": "nothing"}, 3),
        ({"op": "mv", "name": "nothing", "to": "x"}, 3),
    ):
        out, err = shell.run("batch", write(shell, PUT | {"name": "not made"}, bad), code=code)
        assert out == ""
        assert "nothing" in err
    assert shell.names() == before
