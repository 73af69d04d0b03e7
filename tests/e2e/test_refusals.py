"""Failures, through the real programs: exit code, cause and hint, and no partial result."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon, Result


def blames(result: Result, *words: str) -> None:
    """Check that the refusal has a cause and a hint, and no traceback."""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("sfsc: "), result.stderr
    assert "hint: " in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def stored(daemon: Daemon, suffix: str, user: str = "alice") -> list[Path]:
    """Return the user's files on the server's disk that end in `suffix`."""
    return sorted((daemon.root / "store" / "users" / user / "files").rglob(f"*{suffix}"))


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a stored file, as a bad disk or a malicious operator would."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x01
    path.write_bytes(data)


def test_wrong_passphrase(daemon: Daemon, tmp_path: Path) -> None:
    alice = daemon.client("alice", tmp_path / "alice")
    alice.run("ls")
    blames(Client(alice.home, "a wrong one").run("ls", code=8), "passphrase")


def test_no_keyring(daemon: Daemon, tmp_path: Path) -> None:
    blames(Client(tmp_path / "nobody").run("ls", code=8))


def test_wrong_pin(daemon: Daemon, tmp_path: Path) -> None:
    invitation = daemon.add_user("bob")
    pin = invitation.partition("pin=")[2].partition("&")[0]
    other = invitation.replace(pin, pin[::-1])
    assert other != invitation
    bob = Client(tmp_path / "bob")
    blames(bob.run("init", other, code=5))
    assert not (bob.home / "keyring").exists(), "a keyring for a server that was refused"
    bob.run("init", invitation)


def test_used_token(daemon: Daemon, tmp_path: Path) -> None:
    invitation = daemon.add_user("bob")
    Client(tmp_path / "bob").run("init", invitation)
    thief = Client(tmp_path / "thief")
    blames(thief.run("init", invitation, code=4))


def test_replaced_token(daemon: Daemon, tmp_path: Path) -> None:
    first = daemon.add_user("bob")
    second = daemon.add_user("bob")
    blames(Client(tmp_path / "one").run("init", first, code=4))
    Client(tmp_path / "two").run("init", second)


def test_malformed_invitation(tmp_path: Path) -> None:
    blames(Client(tmp_path / "home").run("init", "sfs://nonsense", code=2))


def test_unknown_and_foreign_names_look_the_same(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    bob = enrolled(daemon, "bob", tmp_path / "bob")
    (tmp_path / "secret.txt").write_text("alice's")
    alice.run("put", "secret.txt", cwd=tmp_path)
    foreign = bob.run("get", "secret.txt", code=3, cwd=bob.home)
    unknown = bob.run("get", "never.txt", code=3, cwd=bob.home)
    blames(foreign)
    assert foreign.stderr.replace("secret", "never") == unknown.stderr
    assert not (bob.home / "secret.txt").exists()
    blames(bob.run("stat", "secret.txt", code=3))
    blames(bob.run("rm", "secret.txt", code=3))


def test_full_quota(daemon: Daemon, tmp_path: Path) -> None:
    invitation = daemon.run("user", "add", "carol", "--quota", "300K").text.strip()
    carol = Client(tmp_path / "carol")
    carol.run("init", invitation)
    for name, size in (("a", 200_000), ("b", 200_000), ("big", 5_000_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    carol.run("put", "a", cwd=tmp_path)
    blames(carol.run("put", "b", code=4, cwd=tmp_path), "quota")
    blames(carol.run("put", "big", code=4, cwd=tmp_path), "quota")
    assert carol.run("ls").lines == ["a"]
    # Deleted files are kept and use quota; the hint says how to free it.
    carol.run("rm", "a")
    blames(carol.run("put", "b", code=4, cwd=tmp_path), "purge --trash")
    carol.run("rm", "--purge", "a")
    carol.run("put", "b", cwd=tmp_path)


@pytest.mark.parametrize("size", [100, 600_000, 3_000_000])
def test_flipped_byte_in_a_blob(daemon: Daemon, alice: Client, tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"x" * size)
    alice.run("put", "f", cwd=tmp_path)
    (blob,) = stored(daemon, ".ct")
    flip(blob, blob.stat().st_size - 5)
    target = tmp_path / "out"
    blames(alice.run("get", "f", "-o", target, code=5))
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))] == []


def test_truncated_blob(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 2_000_000)
    alice.run("put", "f", cwd=tmp_path)
    (blob,) = stored(daemon, ".ct")
    blob.write_bytes(blob.read_bytes()[:-1])
    blames(alice.run("get", "f", "-o", tmp_path / "out", code=5))
    assert not (tmp_path / "out").exists()


def test_flipped_byte_in_a_sidecar(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """A flip in the record, a wrap or the metadata is found, before and after a daemon restart."""
    for name in ("record", "wraps", "metadata"):
        (tmp_path / name).write_text(name)
        alice.run("put", name, cwd=tmp_path)
        sidecar = max(stored(daemon, ".json"), key=lambda path: path.stat().st_mtime_ns)
        flip_base64(sidecar, name)
        blames(alice.run("get", name, "-o", tmp_path / "out", code=5))
    daemon.stop()
    daemon.start()
    for name in ("record", "wraps", "metadata"):
        blames(alice.run("get", name, "-o", tmp_path / "out", code=5))
        assert not (tmp_path / "out").exists()


def flip_base64(sidecar: Path, key: str) -> None:
    """Flip a bit in the middle of the value of `key`; the JSON stays well formed."""
    value = json.loads(sidecar.read_bytes())
    holder, inner = value, key
    if key == "wraps":
        holder, inner = next(iter(value["wraps"].values())), "wrap"
    data = bytearray(base64.b64decode(holder[inner]))
    data[len(data) // 2] ^= 0x10
    holder[inner] = base64.b64encode(data).decode()
    sidecar.write_text(json.dumps(value, separators=(",", ":")))


def test_no_server(daemon: Daemon, alice: Client) -> None:
    daemon.stop()
    blames(alice.run("ls", code=7))
    daemon.start()
    alice.run("ls")


def test_missing_local_file(alice: Client, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    blames(alice.run("put", "here", "not-here", code=1, cwd=tmp_path), "not-here")
    assert alice.run("ls").lines == [], "half of a command was done"


def test_paths_that_are_not_files(alice: Client, tmp_path: Path) -> None:
    """The message names the kind of path, and the hint says what to do."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "lost").symlink_to("nowhere")
    assert (
        "\nhint: use -r to store it with its files"
        in alice.run("put", "folder", code=1, cwd=tmp_path).stderr
    )
    assert "lost is a broken link" in alice.run("put", "lost", code=1, cwd=tmp_path).stderr
    missing = alice.run("put", "missing", code=1, cwd=tmp_path).stderr
    assert "no such file: missing" in missing
    assert "-r" not in missing
    assert "sfsc put - --name" in alice.run("put", os.devnull, code=1).stderr


def test_a_folder_is_no_file(alice: Client, tmp_path: Path) -> None:
    alice.run("put", "-", "--name", "photos/a", stdin=b"1")
    for arguments in (
        ("get", "photos"),
        ("rm", "photos"),
        ("stat", "photos"),
    ):
        refused = alice.run(*arguments, code=3, cwd=tmp_path)
        blames(refused, "no such file: photos")
        assert "with -r" in refused.stderr
    assert "-r" not in alice.run("stat", "phot", code=3).stderr


def test_versions_without_content(alice: Client) -> None:
    for content in (b"1", b"2"):
        alice.run("put", "-", "--name", "pruned", stdin=content)
    assert "1 version of pruned" in alice.run("prune", "pruned", "--keep", "1").stderr
    told = alice.run("cat", "pruned", "--version", "1", code=3).stderr
    assert "the content of version 1 of pruned was removed" in told
    assert "has no version 3" in alice.run("cat", "pruned", "--version", "3", code=3).stderr


def test_an_unknown_user(alice: Client) -> None:
    alice.run("put", "-", "--name", "file", stdin=b"")
    for arguments in (
        ("share", "file", "nobody"),
        ("get", "nobody:file"),
        ("key", "verify", "nobody"),
    ):
        refused = alice.run(*arguments, code=3)
        blames(refused, "there is no user nobody")
        assert "sfsc ls" not in refused.stderr
    # A name with a colon looks like another user's file.
    assert "YOU:NAME" in alice.run("get", "a:b", code=3).stderr


def test_disabled_user(daemon: Daemon, alice: Client) -> None:
    daemon.run("user", "disable", "alice")
    blames(alice.run("ls", code=4))
    daemon.run("user", "enable", "alice")
    alice.run("ls")


@pytest.mark.parametrize("name", ["../up", "/absolute", "a//b", "a/./b", "tab\tbed", "back\\slash"])
def test_invalid_names(alice: Client, tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text("x")
    result = alice.run("put", "f", "--name", name, code=2, cwd=tmp_path)
    assert "Traceback" not in result.stderr
    assert "\t" not in result.stderr.partition("\n")[0]
    assert alice.run("ls").lines == []


def test_invalid_paths(alice: Client, tmp_path: Path) -> None:
    long = "x" * 300
    alice.run("put", "-", "--name", long, stdin=b"x")
    for words in (
        ("put", long),
        ("put", "-r", long),
        ("get", long),
        ("get", long, "-o", long),
        ("get", "-r", "/", "-o", long),
        ("key", "backup", long, "--no-passphrase"),
        ("put", "-", "--name", "f", "--receipt", long),
    ):
        failed = alice.run(*words, code=1, cwd=tmp_path)
        assert "Traceback" not in failed.stderr
        assert failed.stderr.startswith("sfsc: "), failed.stderr
    other = Client(tmp_path / long)
    blames(other.run("ls", code=1))


def test_invalid_versions_and_ids(alice: Client, bob: Client) -> None:
    alice.run("put", "-", "--name", "f", stdin=b"x")
    alice.run("share", "f", "bob", "--trust-first-use")
    for program in ("get", "cat", "restore"):
        blames(alice.run(program, "f", "--version", "3000000000", code=3), "no version 3000000000")
        if program != "restore":
            blames(bob.run(program, "alice:f", "--id", "zz", "--trust-first-use", code=2), "--json")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_locale_encoding_that_cannot_encode_a_name(
    alice: Client, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    alice.run("put", "-", "--name", "\u65e5\u672c", stdin=b"x")
    assert alice.run("ls").lines == ["\\u65e5\\u672c"]
    blames(alice.run("init", "-", stdin=b"sfs://\xff\n", code=2))


def test_usage(alice: Client) -> None:
    assert "Traceback" not in alice.run("put", code=2).stderr
    assert "Traceback" not in alice.run("frobnicate", code=2).stderr
    alice.run("put", "-", code=2)
