"""Everyday use through the real programs: folders, names, versions and ranges."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

import sfsc
from sfsc.crypto.segments import SEGMENTS_1MB
from sfsc.store import Store
from tests.e2e.proxy import proxied
from tests.e2e.test_main_job import content, objects, peak, stored, through, write
from tests.harness import Client, Daemon, command, environment

MIB = 1024 * 1024


def tree(folder: Path, count: int, seed: int = 1) -> dict[str, bytes]:
    """Create `count` files of many sizes in many folders; return {path: content}."""
    chance = random.Random(seed)
    found: dict[str, bytes] = {}
    for number in range(count):
        depth = chance.randrange(4)
        parts = [f"ordner {chance.randrange(5)}" for _ in range(depth)]
        name = "/".join([*parts, f"Datei ü{number}.txt"])
        size = chance.choice([0, 1, 100, 4096, 5000, 200_000 if number % 17 == 0 else 10])
        found[name] = chance.randbytes(size)
    found["groß/klein/large.bin"] = chance.randbytes(3 * MIB + 5)
    for name, data in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return found


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


IN_REMOVED_FOLDER = """
import os, sys
folder, *program = sys.argv[1:]
os.mkdir(folder)
os.chdir(folder)
os.rmdir(folder)
os.execv(program[0], program)
"""


@pytest.mark.skipif(os.name != "posix", reason="the working folder of a process is in use there")
def test_commands_run_in_a_folder_that_was_removed(alice: Client, tmp_path: Path) -> None:
    def run(*words: str | Path, code: int = 0) -> str:
        program = [*command("sfsc"), *map(str, words)]
        done = subprocess.run(
            [sys.executable, "-c", IN_REMOVED_FOLDER, str(tmp_path / "removed"), *program],
            input=b"from a pipe",
            capture_output=True,
            env=environment(alice.variables),
            check=False,
        )
        assert done.returncode == code, done
        assert b"Traceback" not in done.stderr
        return (done.stdout + done.stderr).decode()

    run("put", "-", "--name", "gone/pipe")
    (tmp_path / "file").write_bytes(b"with a path")
    run("put", tmp_path / "file", "--name", "gone/path")
    assert run("cat", "gone/pipe", "gone/path") == "from a pipewith a path"
    run("get", "gone/pipe", "-o", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"from a pipe"
    assert "no such file: file" in run("put", "file", code=1)
    assert "cannot write pipe: No such file" in run("get", "gone/pipe", code=1)
    devices = run("device", "list").splitlines()
    # Checked first: otherwise the account would have a device whose key is nowhere.
    assert "cannot write kept: No such file" in run(
        "key", "backup", "kept", "--no-passphrase", code=1
    )
    assert len(run("device", "list").splitlines()) == len(devices)
    assert "cannot write proof: " in run(
        "put", "-", "--name", "gone/new", "--receipt", "proof", code=1
    )
    assert "gone/new" not in run("ls", "gone/")


def test_upload_and_download_of_a_folder(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    source = tmp_path / "work" / "tree"
    files = tree(source, 120)
    (source / "modes").mkdir()
    (source / "modes" / "run").write_bytes(b"#!")
    (source / "modes" / "run").chmod(0o751)
    os.utime(source / "modes" / "run", (1_500_000_000, 1_500_000_000))
    (source / "link").symlink_to("/etc/passwd")
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe")
    done = alice.run("put", "-r", "tree", cwd=tmp_path / "work")
    assert "tree/pipe" in done.stderr
    assert done.stderr.splitlines()[-1] == f"{len(files) + 3} stored, 0 unchanged, 1 skipped"
    names = {f"tree/{name}" for name in (*files, "modes/run", "link", "loop")}
    assert set(alice.run("ls", "-R").lines) == names
    # To the current folder, another one, one subfolder, under another name, and everything.
    back = tmp_path / "back"
    back.mkdir()
    got = alice.run("get", "-r", "tree", cwd=back)
    for odd in ("link", "loop"):
        assert f"tree/{odd}: is a link, and was not made" in got.stderr
    assert read(back / "tree") == files | {"modes/run": b"#!"}
    status = (back / "tree" / "modes" / "run").stat()
    assert (status.st_mode & 0o777, int(status.st_mtime)) == (0o751, 1_500_000_000)
    alice.run("get", "-r", "tree/groß/", "-o", tmp_path / "one")
    assert list(read(tmp_path / "one")) == ["groß/klein/large.bin"]
    (source / "modes" / "run").write_bytes(b"again")
    alice.run("put", "-r", source, "--name", "other/place")
    alice.run("get", "-r", "other/place/modes", "-o", tmp_path / "two")
    assert read(tmp_path / "two") == {"modes/run": b"again"}
    alice.run("get", "-r", "/", "-o", tmp_path / "all")
    assert read(tmp_path / "all" / "other" / "place") == files | {"modes/run": b"again"}
    # Existing files are replaced, and other files stay.
    (back / "tree" / "mine").write_bytes(b"mine")
    (back / "tree" / "modes" / "run").write_bytes(b"changed")
    alice.run("get", "-r", "tree", cwd=back)
    assert read(back / "tree") == files | {"modes/run": b"#!", "mine": b"mine"}
    alice.run("get", "-r", "none", code=3)
    alice.run("rm", "-r", "tree")
    assert {name for name in alice.run("ls", "-R").lines if name.startswith("tree")} == set()
    alice.run("rm", "-r", "tree", code=3)
    daemon.stop()
    daemon.run("audit", "verify")


def test_current_folder_and_absolute_folder(alice: Client, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"x")
    assert len(alice.run("put", "-r", ".", cwd=tmp_path / "a").stderr.splitlines()) == 2
    alice.run("put", "-r", "--always", folder)
    assert alice.run("ls", "-R").lines == ["b/x"]
    (told,) = objects(alice.run("--json", "ls", "-R"))
    assert told["version"] == 2
    alice.run("put", folder, code=1)
    alice.run("put", "-r", folder, "--no-overwrite", code=2)
    alice.run("put", "-r", folder / "x", "--name", "y")
    assert alice.run("ls").lines == ["b/", "y"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_named_and_the_rest_is_stored(alice: Client, tmp_path: Path) -> None:
    files = tree(tmp_path / "t", 5)
    (tmp_path / "t" / "secret").write_bytes(b"")
    (tmp_path / "t" / "secret").chmod(0)
    failed = alice.run("put", "-r", "t", cwd=tmp_path, code=1)
    assert "t/secret" in failed.stderr
    assert len(alice.run("ls", "-R").lines) == len(files)


def test_invalid_names_are_reported(alice: Client, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "fine").write_bytes(b"fine")
    (folder / "back\\slash").write_bytes(b"")
    (folder / "new\nline").write_bytes(b"")
    (folder / os.fsdecode(b"latin-\xe4")).write_bytes(b"")
    failed = alice.run("put", "-r", "t", cwd=tmp_path, code=1)
    assert failed.stderr.count("cannot be stored under its name") == 3
    assert "new\\nline" in failed.stderr
    assert alice.run("ls", "-R").lines == ["t/fine"]
    one = alice.run("put", "t/fine", "t/new\nline", cwd=tmp_path, code=2)
    assert one.stderr.startswith("sfsc: t/new\\nline cannot be stored under its own name: ")
    assert "--name" in one.stderr


def test_names_equal_after_normalization(alice: Client, tmp_path: Path) -> None:
    """Only one of the two is stored: the other would silently become a new version of it."""
    composed, taken_apart = "caf\u00e9", "cafe\u0301"
    for folder in ("t", f"t/{composed}", f"t/{taken_apart}"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / taken_apart[::-1]).write_bytes(b"in a folder")
    if len(os.listdir(tmp_path / "t")) < 3:
        pytest.skip("this file system takes them for one name")
    failed = alice.run("put", "-r", "t", cwd=tmp_path, code=1)
    assert failed.stderr.count("in another Unicode form") == 1
    assert failed.stderr.count("version 1") == 2


def test_device_names_are_fetched_individually(alice: Client, tmp_path: Path) -> None:
    for name in ("src/aux.c", "src/main.c"):
        alice.run("put", "-", "--name", name, stdin=name.encode())
    windows = os.name == "nt"
    got = alice.run("get", "-r", "src", "-o", tmp_path / "out", code=int(windows))
    assert "src/aux.c" in got.stderr.replace("\\", "/")
    others = {} if windows else {"src/aux.c": b"src/aux.c"}
    assert read(tmp_path / "out") == {"src/main.c": b"src/main.c"} | others
    alice.run("get", "src/aux.c", "-o", tmp_path / "aux.c")
    assert (tmp_path / "aux.c").read_bytes() == b"src/aux.c"


def test_symbolic_links_are_not_followed(alice: Client, tmp_path: Path) -> None:
    for name in ("t/a/x", "t/b/x"):
        alice.run("put", "-", "--name", name, stdin=b"new")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out" / "t").mkdir(parents=True)
    (tmp_path / "out" / "t" / "a").symlink_to(outside)
    failed = alice.run("get", "-r", "t", "-o", tmp_path / "out", code=1)
    assert "t/a/x" in failed.stderr
    assert read(outside) == {}
    assert (tmp_path / "out" / "t" / "b" / "x").read_bytes() == b"new"


def test_one_tampered_file_among_many(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    for name in "abc":
        alice.run("put", "-", "--name", f"t/{name}", stdin=name.encode() * 1000)
    victim = next(path for path in stored(daemon) if path.suffix == ".ct")
    data = bytearray(victim.read_bytes())
    data[500] ^= 1
    victim.write_bytes(data)
    alice.run("get", "-r", "t", "-o", tmp_path / "out", code=5)
    back = read(tmp_path / "out")
    assert len(back) == 2
    assert all(data == name[-1].encode() * 1000 for name, data in back.items())


def test_folders_in_a_listing(alice: Client) -> None:
    for name in ("a", "b/c", "b/d/e", "b.txt", "z/y"):
        alice.run("put", "-", "--name", name, stdin=name.encode())
    assert alice.run("ls").lines == ["a", "b.txt", "b/", "z/"]
    assert alice.run("ls", "b/").lines == ["b/c", "b/d/"]
    assert alice.run("ls", "-R", "b").lines == ["b.txt", "b/c", "b/d/e"]
    assert [line.split()[-1] for line in alice.run("ls", "-l").lines] == ["a", "b.txt", "b/", "z/"]
    folder = objects(alice.run("--json", "ls"))[2]
    assert (folder["name"], folder["files"], folder["size"]) == ("b/", 2, 8)


def test_rename_a_file(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    data = write(tmp_path / "file", 3 * MIB)
    alice.run("put", "file", cwd=tmp_path)
    before = sum(path.stat().st_blocks for path in stored(daemon))
    alice.run("mv", "file", "docs/renamed")
    assert sum(path.stat().st_blocks for path in stored(daemon)) < 2.1 * before
    assert len({path.stat().st_ino for path in stored(daemon) if path.suffix == ".ct"}) == 1
    alice.run("put", "-", "--name", "file", stdin=b"another")
    alice.run("mv", "docs/renamed", "file", code=6)
    alice.run("mv", "none", "x", code=3)
    daemon.kill()
    daemon.start()
    alice.run("get", "docs/renamed", "-o", "back", cwd=tmp_path)
    assert (tmp_path / "back").read_bytes() == data
    told = objects(alice.run("--json", "history", "file"))
    assert [(one["op"], one["moved"] is not None) for one in told] == [
        ("put", False),
        ("delete", True),
        ("put", False),
    ]
    daemon.stop()
    daemon.run("audit", "verify")


def test_purge_removes_old_contents(daemon: Daemon, alice: Client) -> None:
    for number in range(5):
        alice.run("put", "-", "--name", "a", stdin=b"%d" % number * 1000)
    alice.run("prune", "a", "--keep", "2")
    told = objects(alice.run("--json", "history", "a"))
    assert [one["kept"] for one in told] == [False, False, False, True, True, False]
    assert (told[-1]["op"], told[-1]["purged"]) == ("purge", [1, 2, 3])
    assert len([path for path in stored(daemon) if path.suffix == ".ct"]) == 2
    alice.run("get", "a", "-o", "-", "--version", "3", code=3)
    assert alice.run("cat", "a", "--version", "4").stdout == b"3" * 1000
    (status,) = objects(alice.run("--json", "status"))
    assert status["used"] == sum(path.stat().st_size for path in stored(daemon)) > 2 * 1056
    alice.run("prune", "a", "--keep", "2")
    (gone,) = objects(alice.run("--json", "rm", "--purge", "a"))
    assert gone["purged"] == [4, 5]
    assert [path for path in stored(daemon) if path.suffix == ".ct"] == []
    alice.run("restore", "a", code=3)
    alice.run("rm", "--purge", "none", code=3)
    (gone,) = objects(alice.run("--json", "rm", "--purge", "a"))
    assert gone["purged"] == []
    alice.run("put", "-", "--name", "a", stdin=b"anew")
    assert alice.run("cat", "a").stdout == b"anew"
    alice.run("rm", "a")
    alice.run("rm", "a", code=3)
    (gone,) = objects(alice.run("--json", "rm", "--purge", "a"))
    assert gone["purged"] == [6]


def connected(alice: Client) -> Store:
    return sfsc.connect(alice.home)


def test_ranges_of_a_file(alice: Client, tmp_path: Path) -> None:
    data = write(tmp_path / "big", 20 * MIB + 3)
    alice.run("put", "big", cwd=tmp_path)
    with connected(alice) as store, store.open("big") as file:
        for place in (0, 19 * MIB, 5, 10 * MIB - 60):
            file.seek(place)
            assert file.read(100) == data[place : place + 100]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        store.put(tmp_path / "big", name="meanwhile")
        file.seek(0)
        assert file.read() == data


def test_ranges_and_versions_in_the_library(alice: Client, tmp_path: Path) -> None:
    files = tree(tmp_path / "t", 10)
    with connected(alice) as store:
        assert len(list(store.put_tree(tmp_path / "t", name="x"))) == len(files)
        assert len(list(store.get_tree("x", tmp_path / "out"))) == len(files)
        assert read(tmp_path / "out" / "x") == files
        (tmp_path / "t" / "bad\\name").write_bytes(b"")
        with pytest.raises(sfsc.LocalError):
            list(store.put_tree(tmp_path / "t", name="y"))
        assert store.mv("x/groß/klein/large.bin", "y").name == "y"
        # What was moved away has left an empty folder.
        assert [entry.name for entry in store.rm_tree("x")] == sorted(
            f"x/{name}" if "large" not in name else "x/groß/klein/" for name in files
        )
        store.rm("y")
        assert store.purge("y") == [1]
        assert store.history("y")[-1].op == "purge"


def test_a_folder_over_a_bad_network(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    files = tree(tmp_path / "t", 150)
    cuts = [120_000, 60_000, 2_000_000, 90_000, 400_000]
    with proxied(daemon.address, cuts) as (proxy, address):
        client = through(address, alice, tmp_path / "proxied")
        client.run("put", "-r", "t", cwd=tmp_path)
        client.run("get", "-r", "t", "-o", tmp_path / "out")
        client.run("rm", "-r", "t")
        assert proxy.accepted > 5
    assert read(tmp_path / "out" / "t") == files
    assert alice.run("ls", "-R").lines == []


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_after_a_second_on_a_terminal_only(alice: Client, *, terminal: bool) -> None:
    """Longer commands show their progress, but not in a pipe."""
    import pty

    reading, writing = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [*command("sfsc"), "put", "-", "--name", "slow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=writing,
        env=environment({"SFSC_HOME": str(alice.home), "TERM": "xterm"}),
    )
    os.close(writing)
    assert process.stdin is not None
    for _ in range(5):
        process.stdin.write(bytes(10 * MIB))
        process.stdin.flush()
        time.sleep(0.4)
    process.stdin.close()
    said = b""  # read while the command runs: it blocks if the terminal's buffer is full
    # A terminal whose other end is closed reports an error, a pipe reports its end.
    with contextlib.suppress(OSError):
        while part := os.read(reading, 65536):
            said += part
    os.close(reading)
    assert process.wait(60) == 0
    assert (b"/s" in said) is terminal
    assert terminal or said == b"slow  version 1, 50.0 MiB\n"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tree(alice: Client, tmp_path: Path) -> None:
    """600 files of 100 KB and one of 100 MB take only some megabytes more than one small file."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "x").write_bytes(b"")
    large = tmp_path / "large"
    large.mkdir()
    for number in range(600):
        (large / f"{number}").write_bytes(content(100_000, number))
    write(large / "big", 100 * MIB)
    base = peak(alice, "put", "-r", "small", cwd=tmp_path)
    assert peak(alice, "put", "-r", "large", cwd=tmp_path) - base < 60 * MIB
    base = peak(alice, "get", "-r", "small", "-o", "out", cwd=tmp_path)
    assert peak(alice, "get", "-r", "large", "-o", "out", cwd=tmp_path) - base < 60 * MIB
    same = subprocess.run(["diff", "-r", "large", "out/large"], cwd=tmp_path, check=False)
    assert same.returncode == 0


# --- other programs

S = SEGMENTS_1MB.segment_size
TAMPERED = {S, 2 * S - 72, 5 * MIB + 7}


@pytest.mark.parametrize(
    "size", [0, 1, S - 57, S - 56, S - 55, S, 2 * S - 72, 5 * MIB + 7], ids=str
)
def test_tink_decrypts_stored_files(
    daemon: Daemon, alice: Client, tmp_path: Path, size: int
) -> None:
    """Tink needs only the exported key, and refuses the same input as `sfsc`."""
    data = write(tmp_path / "f", size)
    alice.run("put", "f", cwd=tmp_path)
    (key,) = objects(alice.run("--json", "key", "export-dek", "f"))
    path = daemon.root / str(key["ciphertext"])
    blob = path.read_bytes()
    associated = bytes.fromhex(str(key["associated_data"]))
    assert tink_opens(bytes.fromhex(str(key["dek"])), associated, blob) == data
    with pytest.raises(Exception, match=r"."):
        tink_opens(bytes.fromhex(str(key["dek"])), bytes(16), blob)
    if size not in TAMPERED:
        return
    last = len(blob) - len(blob) % S if len(blob) % S else len(blob) - S
    wrong = {
        "cut": blob[:-1],
        "another header": bytes([blob[0], blob[1] ^ 1]) + blob[2:],
        "flipped": blob[:-1] + bytes([blob[-1] ^ 1]),
        "the last one dropped": blob[:last],
        "reordered": blob[S : 2 * S] + blob[:S] + blob[2 * S :],
    }
    for name, changed in wrong.items():
        if changed == blob:
            continue  # one segment cannot be reordered
        path.write_bytes(changed)
        released = alice.run("cat", "f", code=5).stdout
        assert data.startswith(released), name
        assert len(released) < len(data) or not data, name
    path.write_bytes(blob)
    assert alice.run("cat", "f").stdout == data


def tink_opens(dek: bytes, associated: bytes, blob: bytes) -> bytes:
    tink = pytest.importorskip("tink")
    from tink import (  # type: ignore[import-untyped]
        secret_key_access,
        streaming_aead,
    )

    keyset = {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
                    "value": base64.b64encode(_key_proto(dek)).decode(),
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": 1,
                "outputPrefixType": "RAW",
            }
        ],
    }
    streaming_aead.register()
    handle = tink.json_proto_keyset_format.parse(json.dumps(keyset), secret_key_access.TOKEN)
    primitive = handle.primitive(streaming_aead.StreamingAead)
    with primitive.new_decrypting_stream(io.BytesIO(blob), associated) as opened:
        return bytes(opened.read())


def _key_proto(dek: bytes) -> bytes:
    """AesGcmHkdfStreamingKey: params {segment size, derived key 32, SHA-256} = 2, value = 3."""
    size = S
    varint = b""
    while size >= 0x80:
        varint, size = varint + bytes([size & 0x7F | 0x80]), size >> 7
    params = b"\x08" + varint + bytes([size]) + b"\x10\x20\x18\x03"
    return b"\x12" + bytes([len(params)]) + params + b"\x1a\x20" + dek


@pytest.mark.parametrize(
    "sources",
    [
        ("one/notes.txt", "two/notes.txt"),
        ("one/notes.txt", "one/notes.txt"),
        ("-r", "one/data", "two/data"),
        ("-r", "one/data", "two/deep/data/f"),
    ],
)
def test_two_sources_of_one_name_are_refused(
    alice: Client, tmp_path: Path, sources: tuple[str, ...]
) -> None:
    """The second would become a newer version of the first, and nobody would notice."""
    for top in ("one", "two", "two/deep"):
        (tmp_path / top / "data").mkdir(parents=True)
        (tmp_path / top / "notes.txt").write_text(top)
        (tmp_path / top / "data" / "f").write_text(top)
    absolute = [one if one == "-r" else tmp_path / one for one in sources]
    if "two/deep/data/f" in sources:
        absolute = ["-r", tmp_path / "one" / "data", Path("data/f")]
    refused = alice.run("put", *absolute, code=2, cwd=tmp_path / "two" / "deep")
    first, second = refused.stderr.splitlines()[0].split(" and ", 1)
    assert str(tmp_path / "one") in first
    assert str(absolute[-1]) in second
    assert "stored as" in second
    assert alice.run("ls").lines == []
    alice.run("put", tmp_path / "one" / "notes.txt", tmp_path / "two" / "data" / "f")
    assert alice.run("ls").lines == ["f", "notes.txt"]


def test_where_get_writes(alice: Client, tmp_path: Path) -> None:
    alice.run("put", "-", "--name", "a/file", stdin=b"content")
    alice.run("get", "a/file", "-o", f"{tmp_path}/new/folder/")
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"content"
    alice.run("get", "a/none", "-o", f"{tmp_path}/other/", code=3)
    assert not (tmp_path / "other").exists()
    alice.run("get", "a/file", "-o", tmp_path / "missing" / "file", code=1)
    alice.run("get", "a/file", cwd=tmp_path)
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX, and names that Windows cannot hold")
def test_folder_modes_and_names_for_windows(alice: Client, tmp_path: Path) -> None:
    source = tmp_path / "t"
    for name in ("CON.txt", "a:b", "end.", "priv/plain"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    put = alice.run("put", "-r", source, "-q")
    assert (
        put.stderr == 'sfsc: warning: Windows cannot hold 3 names: "t/CON.txt", "t/a:b", "t/end."\n'
    )
    got = alice.run("get", "-r", "t", "-o", tmp_path / "out")
    assert len(got.stderr.splitlines()) == 4 + len(["the totals"])
    assert read(tmp_path / "out" / "t") == read(source)


def attributes(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what a tree holds: the kind, mode, time and content of everything in it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status, name = path.lstat(), path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = "link", os.readlink(path), status.st_mtime_ns
        elif path.is_dir():
            found[name] = "folder", status.st_mode & 0o777, status.st_mtime_ns
        else:
            content = hashlib.sha256(path.read_bytes()).digest()
            found[name] = "file", status.st_mode & 0o777, status.st_mtime_ns, content
    return found


@pytest.mark.skipif(os.name != "posix", reason="modes, links and holes of POSIX")
def test_what_a_tree_holds_comes_back(alice: Client, tmp_path: Path) -> None:
    """Modes and times of files and folders, empty folders, links, holes: whatever the umask."""
    source, out = tmp_path / "t", tmp_path / "out"
    for name in ("ro", "priv", "open", "sticky", "a/deep", "empty/none"):
        (source / name).mkdir(parents=True)
    readable = 0 if os.geteuid() == 0 else 0o400
    for mode in (0o644, 0o600, 0o755, readable, 0o200 | readable, 0o4755, 0o2755, 0o1644, 0o777):
        (source / f"{mode:o}").write_bytes(b"x")
        (source / f"{mode:o}").chmod(mode)
    for name, size in {"ro/f": 1, "priv/f": 5, "a/deep/large": 300_000, "open/empty": 0}.items():
        (source / name).write_bytes(os.urandom(size))
    links = {"loop": ".", "dangling": "nowhere", "link": "priv/f", "up": "../..", "abs": "/etc"}
    for name, target in links.items():
        (source / "a" / name).symlink_to(target)
        os.utime(source / "a" / name, ns=(0, 10**18 + 7), follow_symlinks=False)
    with (source / "sparse").open("wb") as file:
        file.truncate(3 * MIB)
        file.seek(2 * MIB)
        file.write(b"in the middle")
    modes = {"ro": 0o500, "priv": 0o700, "open": 0o777, "sticky": 0o1777, "empty": 0o755}
    modes |= {"a/deep": 0o111 | readable, "a": 0o750}
    for number, (name, mode) in enumerate(modes.items()):
        (source / name).chmod(mode)
        os.utime(source / name, ns=(0, 10**18 + number))
    os.utime(source, ns=(0, 10**9))
    put = alice.run("put", "-r", source)
    shown = {line.split("  ")[0].removeprefix("t/") for line in put.stderr.splitlines()[:-1]}
    before = attributes(source)
    files = {name for name, (kind, *_) in before.items() if kind != "folder"}
    assert (
        shown
        == {*files, "empty/none/", "sticky/"}
        == {line.removeprefix("t/") for line in alice.run("ls", "-R", "t/").lines}
    )
    for umask in (0o077, 0o022):  # the second time onto itself
        old = os.umask(umask)
        try:
            got = alice.run("--json", "get", "-r", "--links", "t", "-o", out)
        finally:
            os.umask(old)
        assert len(objects(got)) == len(shown)
        assert attributes(out / "t") == before
        assert out.stat().st_mode & 0o777 == 0o700
        assert (out / "t" / "sparse").stat().st_blocks <= (source / "sparse").stat().st_blocks
    # Without links, and without a part: each folder has its own mode still.
    told = alice.run("get", "-r", "t/a", "-o", tmp_path / "part").stderr
    assert told.count("is a link, and was not made") == len(links)
    part = {name: what for name, what in before.items() if name.split("/")[0] == "a"}
    assert attributes(tmp_path / "part" / "a") == {
        name.removeprefix("a/").replace("a", ".") if name == "a" else name.removeprefix("a/"): what
        for name, what in part.items()
        if what[0] != "link"
    }
    assert alice.run("ls", "-l", "t/a/loop").lines[0].endswith("t/a/loop -> .")
    assert alice.run("put", "-r", "--no-links", source / "a", "--name", "u").stderr.count("link")
    assert alice.run("ls", "-R", "u").lines == ["u/deep/large"]
    alice.run("get", "t/a/link", "-o", tmp_path / "one", code=1)
    alice.run("rm", "-r", "t")
    assert alice.run("ls", "t").lines == []


@pytest.mark.skipif(os.name != "posix", reason="names and kinds of POSIX")
def test_an_odd_tree(alice: Client, tmp_path: Path) -> None:
    """Names and kinds that cannot be stored are named, and all others come back."""
    top = os.fsencode(tmp_path / "t")
    good = [
        *(
            "plain",
            "dot.",
            "space ",
            " lead",
            "-rf",
            "~",
            "*?[x]",
            "a:b",
            "CON.txt",
            "%20",
            "empty",
        ),
        *("\u202egpj.exe", "\U0001f600", "x" * 255, "\u00ad", "zero\u200bwidth", "\ufeffbom", "Å"),
        *("e\u0301-nfd", "dir/inside"),
    ]
    bad = [b"latin-\xe4", b"\xfe", b"new\nline", b"tab\there", b"back\\slash", b"dir-\xe9/inside"]
    bad.append("\u212b".encode())  # the same name as the Å above
    for name in (*map(os.fsencode, good), *bad):
        path = os.path.join(top, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(name)
    os.symlink(b"\xff\xfe", top + b"/badlink")
    os.symlink("x" * 2049, top + b"/longlink")
    os.mkfifo(top + b"/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(top)
        try:
            listener.bind("sock")
        finally:
            os.chdir("/")
    put = alice.run("put", "-r", tmp_path / "t", "--name", "t", code=1)
    told = [
        line for line in put.stderr.splitlines() if line.startswith(("sfsc: /", "sfsc: warning: /"))
    ]
    assert len(told) == len(bad) + len(["badlink", "longlink", "fifo", "sock"])
    assert put.stderr.count("is neither a file, a folder nor a link, and was not stored") == 2
    assert put.stderr.count("is a link to a path") == 2
    alice.run("get", "-r", "t", "--links", "-o", tmp_path / "out")
    expected = {unicodedata.normalize("NFC", name): os.fsencode(name) for name in good}
    assert read(tmp_path / "out" / "t") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="special files of Linux")
def test_special_files_and_folders_in_use(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    """None of them hangs, grows without end or ends with a traceback."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "f").write_bytes(b"x")
    (tmp_path / "t" / "f").chmod(0o644)
    (tmp_path / "lnk").symlink_to("t")
    os.mkfifo(tmp_path / "ff")
    for odd in ("ff", "lnk", "/dev/zero"):
        assert alice.run("put", odd, "--name", "z", code=1, cwd=tmp_path).stderr.count("\n") == 2
    alice.run("put", "-r", "lnk", "--name", "top", cwd=tmp_path)
    alice.run("put", "/proc/cpuinfo")
    assert alice.run("cat", "cpuinfo").stdout.startswith(b"processor")
    alice.run("put", "-r", "/proc/self/task", "--name", "task", code=1)
    alice.run("put", "-r", alice.home, "--name", "home")
    alice.run("put", "-r", daemon.root / "store", "--name", "root")  # which grows meanwhile
    assert alice.run("ls").lines == ["cpuinfo", "home/", "root/", "task/", "top/"]
    assert alice.run("ls", "top/").lines == ["top/f"]
    alice.run("get", "top/f", "-o", "/dev/null")
    assert "cannot write /proc/nope" in alice.run("get", "top/f", "-o", "/proc/nope", code=1).stderr


def test_an_empty_folder(alice: Client, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = alice.run("put", "-r", ".", cwd=tmp_path / "empty")
    assert nothing.stderr.startswith("sfsc: warning: . has no files; nothing was stored\n")
    assert alice.run("ls").lines == []
    alice.run("put", "-r", tmp_path / "empty")
    alice.run("put", "-r", tmp_path / "empty", "--name", "a/b")
    assert alice.run("ls").lines == ["a/", "empty/"]
    assert alice.run("ls", "-R").lines == ["a/b/", "empty/"]
    assert alice.run("ls", "a/").lines == ["a/b/"]
    assert alice.run("ls", "a/b/").lines == []
    assert [one["files"] for one in objects(alice.run("--json", "ls"))] == [0, 0]
    alice.run("get", "-r", "empty", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "empty").is_dir()
    # A file in it hides its own entry; with the file gone, the folder is still there.
    alice.run("put", "-", "--name", "empty/file", stdin=b"x")
    assert alice.run("ls", "-R", "e").lines == ["empty/file"]
    alice.run("rm", "empty/file")
    assert alice.run("ls", "-R", "e").lines == ["empty/"]
    alice.run("rm", "-r", "empty")
    assert alice.run("ls").lines == ["a/"]
    assert alice.run("ls", "non").lines == []
    for options in ((), ("-l",), ("-R",)):
        alice.run("ls", *options, "none/", code=3)
