"""`sfsc put -r` and `get -r` transfer only what is new or has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages import Message
from sfsc.transfer import source
from sfsd.rules.context import Principal
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell

LONG_AGO = 1_500_000_000 * 10**9 + 123_456_789
"""In nanoseconds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("transfer") / "lying") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada", key_type="x25519")


def write(path: Path, content: bytes, when: int | None = LONG_AGO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if when is not None:
        os.utime(path, ns=(when, when))


def test_only_what_is_new_or_changed_is_stored(shell: Shell, server: LyingServer) -> None:
    for name in ("a", "b", "deep/c", "deep/d"):
        write(Path("t") / name, name.encode())
    Path("t/link").symlink_to("a")
    Path("t/empty").mkdir()
    os.mkfifo("t/pipe")
    assert shell.run("put", "-r", "t")[1].splitlines()[-1] == "6 stored, 0 unchanged, 1 skipped"

    requests: list[str] = []

    def note(_who: Principal | None, request: Message, reply: Message) -> Message:
        requests.append(type(request).__name__)
        return reply

    server.tamper = note
    out, err = shell.run("put", "-r", "t")
    server.honest()
    assert (out, err.splitlines()[-1]) == ("", "0 stored, 6 unchanged, 1 skipped")
    assert "t/pipe" in err
    assert not {"Commit", "Stat", "Open", "PutOpen"} & set(requests)

    write(Path("t/a"), b"A", LONG_AGO + 1)  # only the time tells it from the stored one
    write(Path("t/b"), b"longer")
    write(Path("t/deep/new"), b"new", None)
    os.utime("t/deep/c")  # the time alone counts as a change
    Path("t/link").unlink()
    Path("t/link").symlink_to("b")
    Path("t/empty").chmod(0o711)
    shown = shell.statuses("put", "-r", "t")
    assert shown == {
        "t/a": ("stored", 2),
        "t/b": ("stored", 2),
        "t/deep/c": ("stored", 2),
        "t/deep/d": ("unchanged", 1),
        "t/deep/new": ("stored", 1),
        "t/link": ("stored", 2),
        "t/empty/": ("stored", 2),
        str(Path("t/pipe")): ("skipped", None),
    }
    Path("t/pipe").unlink()
    assert shell.run("put", "-r", "t")[1] == "0 stored, 7 unchanged, 0 skipped\n"
    # Files that are named are compared too, but not without -r.
    assert shell.statuses("put", "-r", "t/a", "t/b") == {
        "t/a": ("unchanged", 2),
        "t/b": ("unchanged", 2),
    }
    assert shell.statuses("put", "t/a") == {"t/a": ("stored", 3)}
    assert shell.statuses("put", "-r", "--always", "t")["t/deep/d"] == ("stored", 2)
    # What was deleted in the store is stored again.
    shell.run("rm", "t/a")
    assert shell.statuses("put", "-r", "t")["t/a"] == ("stored", 5)


def test_contents_are_compared_by_their_hash(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "HASHED", 2**20)
    write(Path("s/small"), b"content")
    write(Path("s/large"), os.urandom(2**20 + 1))
    write(Path("s/hashed"), os.urandom(2**20))
    shell.run("put", "-r", "s")
    known = {one["name"]: one["sha256"] for one in shell.json("ls", "-R", "s/")}
    assert [name for name, digest in known.items() if digest is None] == ["s/large"]
    for name in ("small", "large", "hashed"):
        os.utime(Path("s") / name)
    # The times differ, the contents do not; no hash is known of the large one.
    assert shell.statuses("put", "-r", "--checksum", "s") == {
        "s/small": ("unchanged", 1),
        "s/hashed": ("unchanged", 1),
        "s/large": ("stored", 2),
    }
    assert shell.statuses("put", "-r", "--checksum", "s")["s/large"] == ("unchanged", 2)
    # Neither size nor time tells that this one has changed.
    write(Path("s/small"), b"CONTENT")
    assert shell.statuses("put", "-r", "s")["s/small"] == ("unchanged", 1)
    assert shell.statuses("put", "-r", "--checksum", "s")["s/small"] == ("stored", 2)


def test_a_change_within_the_same_tick_is_found(shell: Shell) -> None:
    """A file that was changed shortly before it was stored is compared by its content."""
    write(Path("r/file"), b"first", None)
    shell.run("put", "-r", "r")
    when = os.stat("r/file").st_mtime_ns
    write(Path("r/file"), b"other", when)
    assert shell.statuses("put", "-r", "r") == {"r/file": ("stored", 2)}
    assert shell.statuses("put", "-r", "r") == {"r/file": ("unchanged", 2)}


def test_only_what_differs_is_fetched(shell: Shell) -> None:
    for name in ("a", "b", "deep/c"):
        write(Path("g") / name, name.encode())
    shell.run("put", "-r", "g")
    out = Path("out/g")
    assert shell.run("get", "-r", "g", "-o", "out")[1].endswith(
        "\n3 fetched, 0 unchanged, 0 skipped\n"
    )
    assert shell.run("get", "-r", "g", "-o", "out")[1] == "0 fetched, 3 unchanged, 0 skipped\n"
    write(out / "a", b"mine", LONG_AGO + 10**9)
    (out / "b").unlink()
    os.utime(out / "deep/c")
    assert shell.statuses("get", "-r", "g", "-o", "out", "--no-overwrite") == {
        "g/a": ("skipped", 1),
        "g/b": ("fetched", 1),
        "g/deep/c": ("skipped", 1),
    }
    assert shell.statuses("get", "-r", "g", "-o", "out", "--newer", "--checksum") == {
        "g/a": ("skipped", 1),
        "g/b": ("unchanged", 1),
        "g/deep/c": ("unchanged", 1),
    }
    assert (out / "a").read_bytes() == b"mine"
    os.utime(out / "a", ns=(LONG_AGO - 1, LONG_AGO - 1))
    assert shell.statuses("get", "-r", "g", "-o", "out", "--newer")["g/a"] == ("fetched", 1)
    assert (out / "a").read_bytes() == b"a"
    # The folder was not fetched again, and yet has its time.
    assert out.stat().st_mtime_ns == Path("g").stat().st_mtime_ns
    assert shell.statuses("get", "-r", "g", "-o", "out", "--always")["g/b"] == ("fetched", 1)
    # A link to the same content is not the file, neither itself nor on the way to it.
    (out / "b").unlink()
    (out / "b").symlink_to("../../g/b")
    (out / "deep").rename("elsewhere")
    (out / "deep").symlink_to(Path("elsewhere").absolute())
    shown = shell.statuses("get", "-r", "g", "-o", "out", code=1)
    assert shown == {
        "g/a": ("unchanged", 1),
        "g/b": ("fetched", 1),
        "g/deep/": ("skipped", None),
        "g/deep/c": ("skipped", None),
    }
    assert not (out / "b").is_symlink()


def test_one_file_that_exists(shell: Shell) -> None:
    write(Path("one"), b"stored")
    shell.run("put", "one")
    write(Path("one"), b"mine", LONG_AGO + 1)
    assert "one exists" in shell.run("get", "one", "--no-overwrite", code=6)[1]
    assert "left as it is" in shell.run("get", "one", "--newer")[1]
    assert shell.statuses("get", "one", "--newer") == {"one": ("skipped", 1)}
    assert Path("one").read_bytes() == b"mine"
    os.utime("one", ns=(LONG_AGO - 1, LONG_AGO - 1))
    assert shell.statuses("get", "one", "--newer") == {"one": ("fetched", 1)}
    assert Path("one").read_bytes() == b"stored"
    assert shell.statuses("get", "one", "--no-overwrite", "-o", "two") == {"one": ("fetched", 1)}


def test_no_proof_of_a_file_that_was_not_stored(shell: Shell) -> None:
    write(Path("p/file"), b"content")
    with sfsc.connect(shell.home, auto_rotate=False) as store:
        (first,) = store.put_tree(Path("p"))
        (second,) = store.put_tree(Path("p"))
        assert store.proof_of(first)
        assert (first.status, second.status) == ("stored", "unchanged")
        with pytest.raises(sfsc.UsageError, match="nothing was stored"):
            store.proof_of(second)


def test_what_is_left_out_of_a_folder(shell: Shell) -> None:
    for name in ("a", "b.tmp", "build/x", "deep/build", "deep/c.tmp", "deep/keep.tmp", "deep/d"):
        write(Path("e") / name, name.encode())
    write(Path("e/.sfsignore"), b"build/\n")
    write(Path("e/deep/.sfsignore"), b"!keep.tmp\n*.bak\n")
    os.mkfifo("e/pipe.tmp")
    write(Path("patterns"), b"*.tmp\n!keep.tmp\n")
    kept = {f"e/{one}" for one in (".sfsignore", "a", "deep/.sfsignore", "deep/build", "deep/d")}
    told = shell.statuses("put", "-r", "e", "--exclude-from", "patterns", "--exclude", "z")
    assert told.keys() == kept | {"e/deep/keep.tmp"}
    assert [one["name"] for one in shell.json("ls", "-R", "e/")] == sorted(told)
    told = shell.statuses("get", "-r", "e", "-o", "out", "--exclude", "deep/", "--dry-run")
    assert told == {"e/.sfsignore": ("fetched", 1), "e/a": ("fetched", 1)}
    assert not Path("out").exists()
    assert shell.statuses("get", "-r", "e", "-o", "out", "--exclude", "deep/") == told
    assert sorted(os.listdir("out/e")) == [".sfsignore", "a"]
    for words in (("put", "e/a", "--exclude", "x"), ("get", "e/a", "--dry-run")):
        assert "add -r" in shell.run(*words, code=2)[1]
    assert "Invalid git pattern" in shell.run("put", "-r", "e", "--exclude", "!", code=2)[1]


def test_a_dry_run_changes_nothing(shell: Shell) -> None:
    write(Path("d/a"), b"a")
    shell.run("put", "-r", "d")
    write(Path("d/a"), b"another")
    write(Path("d/new"), b"new")
    before = shell.json("ls", "-l", "d/")
    told = shell.statuses("put", "-r", "d", "--dry-run")
    assert told == {"d/a": ("stored", 1), "d/new": ("stored", 0)}
    assert "d/new  would be stored, 3 B" in shell.run("put", "-r", "d", "--dry-run")[0]
    assert shell.json("ls", "-l", "d/") == before
    shell.run("get", "-r", "d", "-o", "there")
    write(Path("there/d/a"), b"mine")
    assert shell.statuses("get", "-r", "d", "-o", "there", "--dry-run") == {"d/a": ("fetched", 1)}
    assert Path("there/d/a").read_bytes() == b"mine"


def test_paths_from_a_file(shell: Shell) -> None:
    for name in ("a", "b b", "folder/c"):
        write(Path("f") / name, name.encode())
    write(Path("lines"), b"f/a\n\nf/b b\n")
    assert shell.statuses("put", "--files-from", "lines").keys() == {"f/a", "f/b b"}
    write(Path("zero"), b"f/a\0f/folder\0")
    told = shell.statuses("put", "-r", "f/b b", "--files-from", "zero")
    assert told == {
        "f/b b": ("unchanged", 1),
        "f/a": ("unchanged", 1),
        "f/folder/c": ("stored", 1),
    }
    assert "no such file: gone" in shell.run("put", "gone", "--files-from", "lines", code=1)[1]
    assert "cannot read none" in shell.run("put", "--files-from", "none", code=1)[1]
    assert "Missing argument" in shell.run("put", code=2)[1]


def test_a_limited_rate(shell: Shell) -> None:
    write(Path("bulk"), os.urandom(300_000))
    start = time.monotonic()
    shell.run("put", "bulk", "--limit-rate", "1MiB")
    sent = time.monotonic()
    shell.run("get", "bulk", "-o", "back", "--limit-rate", "1MiB")
    received = time.monotonic()
    assert min(sent - start, received - sent) > 300_000 / 2**20
    assert Path("back").read_bytes() == Path("bulk").read_bytes()
    assert "not a size" in shell.run("put", "bulk", "--limit-rate", "fast", code=2)[1]
    assert "at least" in shell.run("put", "bulk", "--limit-rate", "10k", code=2)[1]
