"""The main task, through the real programs: files are stored encrypted and come back unchanged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import WRAP_ALGORITHMS
from sfsc.crypto.segments import SEGMENTS_1MB
from sfsc.keys.keyring import KeyringFile
from tests.e2e.proxy import proxied
from tests.harness import Client, Daemon, Result, command, environment
from tests.waiting import until

MIB = 1024 * 1024
S = SEGMENTS_1MB.capacity(0)
SIZES = [0, 1, 256 * 1024 - 57, 256 * 1024 - 56, 256 * 1024 - 55, S - 1, S, S + 1]
LARGE = [5 * MIB + 7, 40 * MIB]


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, size: int, seed: int = 1) -> bytes:
    data = content(size, seed)
    path.write_bytes(data)
    return data


def stored(daemon: Daemon, user: str = "alice") -> list[Path]:
    """Return the user's files on the server's disk."""
    return sorted((daemon.root / "store" / "users" / user / "files").rglob("*.*"))


def objects(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.lines]


def test_round_trip_of_every_size(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    sources = {f"f{size}": write(tmp_path / f"f{size}", size, size) for size in (*SIZES, *LARGE)}
    done = objects(alice.run("--json", "put", *sources, cwd=tmp_path))
    assert [(item["name"], item["version"]) for item in done] == [(name, 1) for name in sources]
    out = tmp_path / "out"
    out.mkdir()
    for name, data in sources.items():
        alice.run("get", name, "-o", out / name)
        assert (out / name).read_bytes() == data, name
    listed = objects(alice.run("--json", "ls"))
    assert [item["name"] for item in listed] == sorted(sources)
    assert {item["name"]: item["size"] for item in listed} == {
        name: len(data) for name, data in sources.items()
    }
    daemon.stop()
    daemon.run("audit", "verify")


@pytest.mark.parametrize("key_type", WRAP_ALGORITHMS)
def test_every_key_type(daemon: Daemon, tmp_path: Path, key_type: str) -> None:
    user = daemon.client("carol", tmp_path / "carol", "--no-passphrase", "--key-type", key_type)
    data = write(tmp_path / "file", 300_000)
    user.run("put", "file", cwd=tmp_path)
    user.run("get", "file", "-o", "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == data
    (me,) = objects(user.run("--json", "whoami"))
    assert me["key_type"] == key_type
    # Another machine of the same user: the first listing opens every wrap.
    assert user.run("ls").lines == ["file"]


@pytest.mark.parametrize("size", [0, 1000, 5 * MIB + 7])
def test_stdin_and_stdout(alice: Client, size: int) -> None:
    data = content(size)
    alice.run("put", "-", "--name", "piped/file", stdin=data)
    assert alice.run("get", "piped/file", "-o", "-").stdout == data


def test_cat_concatenates_files(alice: Client, tmp_path: Path) -> None:
    alice.run("put", "-", "--name", "a", stdin=b"first\n")
    alice.run("put", "-", "--name", "b", stdin=b"\0\xff" * 300_000)
    alice.run("put", "-", "--name", "a", stdin=b"second\n")
    assert alice.run("cat", "a", "b").stdout == b"second\n" + b"\0\xff" * 300_000
    assert alice.run("cat", "a", "--version", "1").stdout == b"first\n"
    assert alice.run("cat", "b", "none", "a", code=3).stdout == b"\0\xff" * 300_000
    alice.run("cat", "a", "b", "--version", "1", code=2)


def test_put_without_overwriting(alice: Client, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "two").write_bytes(b"two")
    alice.run("put", "two", "--no-overwrite", cwd=tmp_path)
    # The command stops at the first existing name; files before it are stored.
    refused = alice.run("put", "one", "two", "one", "--no-overwrite", cwd=tmp_path, code=6)
    assert "one  version 1" in refused.stderr
    assert "two  version" not in refused.stderr
    assert "two already exists" in refused.stderr
    never = alice.run("put", "one", "--name", "new", "--if-version", "3", cwd=tmp_path, code=6)
    assert "no such file: new" in never.stderr
    other = alice.run("put", "one", "--if-version", "3", cwd=tmp_path, code=6)
    assert "version 1 of one is current, not 3" in other.stderr
    alice.run("put", "one", "--if-version", "1", cwd=tmp_path)
    alice.run("put", "two", "--name", "one", "--if-version", "1", cwd=tmp_path, code=6)
    assert alice.run("cat", "one").stdout == b"one"
    alice.run("rm", "one")
    assert "version 3" in alice.run("put", "one", "--if-version", "0", cwd=tmp_path).stderr
    alice.run("put", "one", "two", "--if-version", "1", cwd=tmp_path, code=2)
    alice.run("put", "one", "--if-version", "1", "--no-overwrite", cwd=tmp_path, code=2)


def test_restore_of_old_contents(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    contents = [b"one", b"two" * 500_000, b""]
    for content in contents:
        alice.run("put", "-", "--name", "a", stdin=content)
    assert "version 4" in alice.run("restore", "a", "--version", "2").stderr
    assert alice.run("cat", "a").stdout == contents[1]
    alice.run("restore", "a", code=2)
    alice.run("rm", "a")
    alice.run("cat", "a", code=3)
    assert "version 5" in alice.run("restore", "a").stderr
    assert alice.run("cat", "a").stdout == contents[1]
    assert [entry["name"] for entry in objects(alice.run("--json", "ls"))] == ["a"]
    alice.run("restore", "a", "--version", "6", code=3)
    alice.run("restore", "none", code=3)
    told = objects(alice.run("--json", "history", "a"))
    assert [(one["op"], one["version"], one["restored"]) for one in told] == [
        ("put", 1, None),
        ("put", 2, None),
        ("put", 3, None),
        ("restore", 4, 2),
        ("delete", None, None),
        ("restore", 5, 4),
    ]
    # The result is the same after the daemon was killed and restarted.
    daemon.kill()
    daemon.start()
    assert alice.run("cat", "a", "--version", "1").stdout == b"one"
    assert alice.run("history", "a").stdout.count(b"\n") == 6


def test_new_and_old_versions(alice: Client, tmp_path: Path) -> None:
    for seed, size in ((1, 10), (2, 3 * MIB), (3, 0)):
        write(tmp_path / "file", size, seed)
        alice.run("put", "file", cwd=tmp_path)
    for version, (seed, size) in enumerate(((1, 10), (2, 3 * MIB), (3, 0)), 1):
        got = alice.run("get", "file", "-o", "-", "--version", str(version))
        assert got.stdout == content(size, seed)
    assert alice.run("get", "file", "-o", "-").stdout == b""
    alice.run("get", "file", "-o", "-", "--version", "4", code=3)


def test_names_times_and_modes_are_restored(alice: Client, tmp_path: Path) -> None:
    folder = tmp_path / "Fotos – Sommer"
    folder.mkdir()
    path = folder / "été ✓.txt"
    path.write_text("content")
    path.chmod(0o640)
    os.utime(path, (1_500_000_000, 1_500_000_000))
    alice.run("put", f"{folder.name}/{path.name}", cwd=tmp_path)
    assert alice.run("ls", "-R").lines == ["Fotos – Sommer/été ✓.txt"]
    alice.run("get", "Fotos – Sommer/été ✓.txt", "-o", tmp_path / "back")
    status = (tmp_path / "back").stat()
    assert (status.st_mode & 0o7777, int(status.st_mtime)) == (0o640, 1_500_000_000)


def test_two_machines_of_one_user(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    other = Client(tmp_path / "other")
    other.home.mkdir()
    (other.home / "keyring").write_bytes((alice.home / "keyring").read_bytes())
    alice.run("put", "-", "--name", "file", stdin=b"one")
    other.run("put", "-", "--name", "file", stdin=b"two")
    alice.run("put", "-", "--name", "file", stdin=b"three")
    assert other.run("get", "file", "-o", "-").stdout == b"three"
    (entry,) = objects(other.run("--json", "ls"))
    assert (entry["version"], entry["revision"]) == (3, 3)
    alice.run("rm", "file")
    assert other.run("ls").lines == []
    other.run("get", "file", "-o", "-", code=3)


def test_concurrent_puts_from_many_processes(daemon: Daemon, alice: Client) -> None:
    """All puts of the same name from the same home are stored as successive versions."""
    running = [alice.start("put", "-", "--name", "file") for _ in range(6)]
    for number, process in enumerate(running):
        assert process.stdin is not None
        process.stdin.write(b"content %d" % number)
        process.stdin.close()
    for process in running:
        stderr = process.stderr.read() if process.stderr is not None else b""
        assert process.wait(60) == 0, stderr
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    (entry,) = objects(alice.run("--json", "ls"))
    assert entry["version"] == 6
    versions = [
        alice.run("get", "file", "-o", "-", "--version", str(version)).stdout
        for version in range(1, 7)
    ]
    assert sorted(versions) == [b"content %d" % number for number in range(6)]


# --- memory

PEAK = """
import resource, sys
from sfsc.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak(client: Client, *arguments: str | Path, cwd: Path) -> int:
    """Return the peak memory of the command in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)],
        env=environment(client.variables),
        cwd=cwd,
        capture_output=True,
        check=True,
        text=True,
    )
    return int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(alice: Client, tmp_path: Path) -> None:
    """Neither direction holds more than some megabytes of a 300 MiB file."""
    (tmp_path / "small").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        block = os.urandom(MIB)
        for _ in range(300):
            file.write(block)
    base_up = peak(alice, "put", "small", cwd=tmp_path)
    up = peak(alice, "put", "large", cwd=tmp_path)
    base_down = peak(alice, "get", "small", "-o", "small.back", cwd=tmp_path)
    down = peak(alice, "get", "large", "-o", "large.back", cwd=tmp_path)
    assert up - base_up < 48 * MIB
    assert down - base_down < 48 * MIB
    compared = subprocess.run(["cmp", "large", "large.back"], cwd=tmp_path, check=False)
    assert compared.returncode == 0


# --- a bad network


def through(address: str, client: Client, home: Path) -> Client:
    """Return the same user with a keyring that names another address."""
    home.mkdir()
    (home / "keyring").write_bytes((client.home / "keyring").read_bytes())
    file = KeyringFile.unlock(home / "keyring", None)
    file.save(changed(file.contents, addresses=(address,)))
    return Client(home)


@pytest.mark.parametrize("cut", [200, 700, 5_000, MIB + 17, 3 * MIB, 7 * MIB + 12345])
def test_an_interrupted_upload_is_resumed(
    daemon: Daemon, alice: Client, tmp_path: Path, cut: int
) -> None:
    data = write(tmp_path / "file", 8 * MIB + 99)
    # Once in the middle, and again soon after the transfer has resumed.
    with proxied(daemon.address, [10**9, cut, cut // 2 + 3000]) as (proxy, address):
        client = through(address, alice, tmp_path / "proxied")
        client.run("status")
        client.run("put", "file", cwd=tmp_path, code=0 if cut > 300 else 7)
        if cut <= 300:  # TLS setup was cut: the first connection is not retried
            client.run("put", "file", cwd=tmp_path, code=0)
        assert proxy.accepted >= 3
    alice.run("get", "file", "-o", "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == data
    (entry,) = objects(alice.run("--json", "ls"))
    assert entry["version"] == 1


def test_many_small_files_over_a_bad_network(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    names = [f"f{i:03}" for i in range(120)]
    sources = {name: write(tmp_path / name, 500 + i, i) for i, name in enumerate(names)}
    with proxied(daemon.address, [60_000, 40_000, 50_000]) as (proxy, address):
        client = through(address, alice, tmp_path / "proxied")
        client.run("put", *names, cwd=tmp_path)
        assert proxy.accepted == 4
    listed = objects(alice.run("--json", "ls"))
    assert [(item["name"], item["version"]) for item in listed] == [(name, 1) for name in names]
    assert alice.run("get", "f077", "-o", "-").stdout == sources["f077"]


def test_an_abandoned_upload_leaves_no_file(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """The client is killed half way, and the file never becomes visible."""
    process = alice.start("put", "-", "--name", "file")
    assert process.stdin is not None
    process.stdin.write(content(6 * MIB))
    process.stdin.flush()
    process.kill()
    process.wait(20)
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    assert alice.run("ls").lines == []
    alice.run("get", "file", "-o", "-", code=3)
    assert stored(daemon) == []
    daemon.stop()
    daemon.start()
    assert alice.run("ls").lines == []
    alice.run("put", "-", "--name", "file", stdin=b"whole")
    assert alice.run("get", "file", "-o", "-").stdout == b"whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_aborts_an_upload_cleanly(
    daemon: Daemon, alice: Client, tmp_path: Path, name: str
) -> None:
    """The client aborts the upload at whatever point it is; otherwise its quota would stay
    reserved for a day.

    ``timeout``, systemd and a system shutdown send SIGTERM, a closed terminal sends SIGHUP.
    """
    number = getattr(signal, name)
    big = tmp_path / "big"
    write(big, 48 * MIB)
    for part in range(4):
        process = alice.start("put", big)
        while staged(daemon) <= part * 9 * MIB and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _out, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        what = "interrupted" if name == "SIGINT" else "terminated"
        assert said.decode().split() == ["sfsc:", what]
        assert staged(daemon) == 0
        (shown,) = objects(daemon.run("user", "show", "alice", "--json"))
        assert (shown["files"], shown["used"]) == (0, 0)
        assert list((alice.home / "uploads").glob("*")) == []
    assert "broke the protocol" not in daemon.log_path.read_text()


def staged(daemon: Daemon) -> int:
    """Return the number of bytes of running uploads."""
    found = 0
    for path in (daemon.root / "staging").glob("*.ct"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def test_a_closed_output_pipe_aborts_an_upload(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """`sfsc put -r … --json | head -n 1` leaves only what was stored."""
    (tmp_path / "tree").mkdir()
    for number in range(12):
        write(tmp_path / "tree" / f"{number:02}", 2 * MIB)
    with subprocess.Popen(
        [*command("sfsc"), "put", "-r", tmp_path / "tree", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(alice.variables),
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1
    until(lambda: staged(daemon) == 0)  # commits that were sent are carried out
    files = len(alice.run("ls", "-R").lines)
    assert files < 12
    (shown,) = objects(daemon.run("user", "show", "alice", "--json"))
    held = sum(path.stat().st_size for path in stored(daemon))
    assert (shown["files"], shown["used"]) == (files + 1, held)  # the folder is one too


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_killed_put_makes_room_for_the_same_file(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    daemon.run("user", "quota", "alice", "60MiB")
    big = tmp_path / "big"
    write(big, 48 * MIB)
    process = alice.start("put", big)
    until(lambda: staged(daemon))
    process.kill()
    process.communicate(timeout=60)
    alice.run("put", big)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("get", "file", "-o", "-"), ("cat", "file"), ("ls",)])
def test_stdout_on_a_full_disk(alice: Client, arguments: tuple[str, ...]) -> None:
    alice.run("put", "-", "--name", "file", stdin=b"content")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*command("sfsc"), *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment({"SFSC_HOME": str(alice.home)}),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"sfsc: cannot write to stdout: No space left on device\nhint: ")
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


def test_a_closed_output_pipe(alice: Client) -> None:
    """`sfsc get -o - | head` fails quietly, without a traceback."""
    alice.run("put", "-", "--name", "file", stdin=content(8 * MIB))
    process = subprocess.Popen(
        [*command("sfsc"), "get", "file", "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(alice.variables),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) != 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
