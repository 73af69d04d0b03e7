"""`sfsc audit check FILE CONTENT`: whether a proof is of that content."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import sfsc
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell

MIB = 1024 * 1024
CONTENTS = {
    "empty": b"",
    "small": b"a report",
    "one segment": bytes(MIB - 56),
    "more segments": b"ab" * (MIB + 50),
}
_USERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("audit") / "lying") as server:
        yield server


@pytest.fixture
def home(server: LyingServer) -> Path:
    return server.enrol(f"ada{next(_USERS)}", key_type="x25519")


def stored(shell: Shell, content: bytes) -> Path:
    """Store the file ``content`` with a receipt; return its path."""
    path = shell.folder / "content"
    path.write_bytes(content)
    shell.run("put", path, "--name", "report", "--receipt", "proof")
    return path


@pytest.mark.parametrize("name", CONTENTS)
def test_the_content_that_was_stored(
    shell: Shell, server: LyingServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = stored(shell, CONTENTS[name])
    shell.run("put", "proof", "--name", "report")  # a later version changes nothing
    out, _ = shell.run("audit", "check", "proof", path)
    assert out.endswith("content     this is what was stored\n")
    stdin = SimpleNamespace(buffer=io.BytesIO(CONTENTS[name]), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    (shown,) = shell.json("audit", "check", "proof", "-")
    assert (shown["content"], shown["op"]) == ("plain", "upload")
    assert "record" not in shown
    longer = CONTENTS[name] + b"x"
    shorter = CONTENTS[name][:-1] or b"xx"
    for other in (longer, shorter, bytes([1]) + longer[2:], longer[:-2] + b"\xff"):
        path.write_bytes(other)
        _, err = shell.run("audit", "check", "proof", path, code=5)
        assert "the proof is of another content" in err


def test_the_encrypted_content_needs_no_key(
    shell: Shell, server: LyingServer, tmp_path: Path
) -> None:
    stored(shell, CONTENTS["more segments"])
    user = sfsc.whoami(shell.home).user
    (blob,) = (server.root / "store" / "users" / user).rglob("*.1.ct")
    vkey = shell.json("status")[0]["log_vkey"]
    nobody = Shell(tmp_path / "nobody", shell.folder, shell._capsys)
    copy = tmp_path / "copy"
    copy.write_bytes(blob.read_bytes())
    (shown,) = nobody.json("audit", "check", "proof", copy, "--vkey", vkey)
    assert shown["content"] == "encrypted"
    copy.write_bytes(blob.read_bytes()[:-1] + bytes([blob.read_bytes()[-1] ^ 1]))
    nobody.run("audit", "check", "proof", copy, "--vkey", vkey, code=8)  # it may be a plaintext
    shell.run("audit", "check", "proof", copy, code=5)


def test_a_reader_checks_the_content(shell: Shell, server: LyingServer) -> None:
    path = stored(shell, CONTENTS["small"])
    reader = f"bob{next(_USERS)}"
    bob = Shell(server.enrol(reader, key_type="x25519"), shell.folder, shell._capsys)
    bob.run("audit", "check", "proof", path, code=3)
    shell.run("share", "report", reader, "--trust-first-use")
    assert bob.json("audit", "check", "proof", path)[0]["content"] == "plain"
    path.write_bytes(b"another")
    bob.run("audit", "check", "proof", path, code=5)


def test_a_content_that_is_gone(shell: Shell) -> None:
    path = stored(shell, CONTENTS["small"])
    shell.run("rotate", "--compromised", "report")
    _, err = shell.run("audit", "check", "proof", path, code=3)
    assert "was encrypted again after the entry of this proof" in err
    path = stored_again(shell, path)
    shell.run("rm", "--purge", "report")
    shell.run("audit", "check", "proof", path, code=3)
    shell.run("audit", "check", "proof")


def stored_again(shell: Shell, path: Path) -> Path:
    (shell.folder / "proof").unlink()
    return stored(shell, path.read_bytes())


def test_an_entry_without_a_content(shell: Shell) -> None:
    path = stored(shell, CONTENTS["small"])
    with sfsc.connect(shell.home) as store:
        with store.transaction() as change:
            change.delete("report")
        (deleted,) = change.results
        (shell.folder / "deletion").write_bytes(store.proof_of(deleted))
    _, err = shell.run("audit", "check", "deletion", path, code=5)
    assert "the proof is of a delete, which has no content" in err


def test_a_content_that_cannot_be_read(shell: Shell) -> None:
    stored(shell, CONTENTS["small"])
    shell.run("audit", "check", "proof", "missing", code=1)
    shell.run("audit", "check", "proof", ".", code=1)
