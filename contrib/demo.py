"""``make demo``: a real daemon, two users, real files, and what the server's disk reveals.

Every step runs the installed programs and checks its own claim; if the claim fails, the demo ends
with an exit code. It works in a temporary folder; DEMO_DIR names a folder to keep instead.
"""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sfsc
from contrib.search import forms, search
from tests.harness import PASSPHRASE, Client, Daemon

FILES = 600
BATCH = 100
BIG = 256 << 20
BIG_NAME = "backups/disk-image-of-the-laptop.img"
SAMPLE = 24
"""Bytes of plaintext in one needle."""
SECONDS = 300.0


class DemoError(Exception):
    """A claim of the demo does not hold."""


@dataclass
class Stage:
    """State shared by the steps: the folder, the programs, and the names of the stored files."""

    folder: Path
    daemon: Daemon = field(init=False)
    alice: Client = field(init=False)
    bob: Client = field(init=False)
    source: Path = field(init=False)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.daemon = Daemon(self.folder / "root")
        self.source, self.names = real_files()

    @property
    def big(self) -> Path:
        return self.folder / "big"

    @property
    def fetched(self) -> Path:
        return self.folder / "fetched"


def real_files() -> tuple[Path, list[str]]:
    """Return a folder of this machine with at least 500 files, and the names of those to store.

    Raises `DemoError` if there is no such folder.
    """
    for folder in (Path("/usr/share/doc"), Path(sysconfig.get_paths()["stdlib"])):
        found = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if "__pycache__" not in path.parts and path.is_file() and not path.is_symlink()
        )
        if len(found) >= 500:
            return folder, found[:FILES]
    raise DemoError("neither /usr/share/doc nor Python's library has 500 files")


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def start(stage: Stage) -> None:
    """A daemon over an empty root"""
    stage.daemon.init()
    stage.daemon.start()
    say(f"$ sfsd init; sfsd serve --listen 127.0.0.1:0     -> {stage.daemon.address}")


def enrol(stage: Stage) -> None:
    """Two users enrol with one-time invitations"""
    stage.alice = stage.daemon.client("alice", stage.folder / "alice")
    stage.bob = stage.daemon.client("bob", stage.folder / "bob", "--key-type", "rsa3072")
    for client in (stage.alice, stage.bob):
        for line in client.run("whoami").lines:
            say(line)


def store_tree(stage: Stage) -> None:
    """Alice stores a tree of real files"""
    for first in range(0, len(stage.names), BATCH):
        batch = stage.names[first : first + BATCH]
        stage.alice.run("put", "--", *batch, cwd=stage.source, seconds=SECONDS)
        say(f"$ sfsc put {batch[0]} … ({len(batch)} files of {stage.source})")
    listed = {json.loads(line)["name"] for line in stage.alice.run("--json", "ls", "-R").lines}
    if listed != set(stage.names):
        raise DemoError(f"ls differs in {sorted(listed ^ set(stage.names))[:5]}")
    say(f"$ sfsc ls -R  -> {len(listed)} names, the ones stored")


def fetch_tree(stage: Stage) -> None:
    """Alice fetches them with the library, and each is compared byte for byte"""
    with sfsc.connect(stage.alice.home, passphrase=PASSPHRASE) as store:
        for name in stage.names:
            target = stage.fetched / name
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get(name, target)
            same(stage.source / name, target)
    say(f"{len(stage.names)} files came back as they were")


def big_file(stage: Stage) -> None:
    """A file of 256 MiB is stored and fetched"""
    with stage.big.open("wb") as file:
        for _ in range(BIG >> 20):
            file.write(os.urandom(1 << 20))
    target = stage.folder / "big.fetched"
    for arguments in (("put", stage.big, "--name", BIG_NAME), ("get", BIG_NAME, "-o", target)):
        began = time.perf_counter()
        stage.alice.run(*arguments, seconds=SECONDS)
        say(f"$ sfsc {arguments[0]} …     {time.perf_counter() - began:.1f} s")
    same(stage.big, target)
    say("compared: the same bytes")


def same(one: Path, other: Path) -> None:
    """Raise `DemoError` unless both files have the same content."""
    if not filecmp.cmp(one, other, shallow=False):
        raise DemoError(f"{other} differs from {one}")


def verify_log(stage: Stage) -> None:
    """The log is verified, and holds every upload and download"""
    for line in stage.daemon.run("audit", "verify").lines:
        say(line)
    with (stage.daemon.root / "logs" / "audit.jsonl").open(encoding="utf-8") as log:
        entries = [json.loads(line) for line in log]
    for op in ("upload", "download"):
        count = sum(entry["op"] == op and entry["actor"] == "alice" for entry in entries)
        if count != len(stage.names) + 1:
            raise DemoError(f"the log has {count} of {len(stage.names) + 1} entries {op}")
        say(f"{count} entries {op} by alice, one a file")


def show_disk(stage: Stage) -> None:
    """What the server has on its disk"""
    root = stage.daemon.root
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    for path in itertools.islice(paths, 0, None, max(1, len(paths) // 16)):
        say(f"{path.stat().st_size:>11}  {path.relative_to(root).as_posix()}")
    say(f"… {len(paths)} files in all")
    sidecar = next(path for path in paths if path.suffix == ".json" and "files" in path.parts)
    say(f"a sidecar, {sidecar.name}:")
    for key, value in json.loads(sidecar.read_text()).items():
        say(f"    {key}: {shortened(json.dumps(value))}")
    last = (root / "logs" / "audit.jsonl").read_text().splitlines()[-1]
    say("the last line of the log:")
    for key, value in json.loads(last).items():
        say(f"    {key}: {shortened(json.dumps(value))}")


def shortened(text: str, limit: int = 84) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def search_disk(stage: Stage) -> None:
    """A search of that disk for contents, names and the passphrase"""
    parts = {part for name in [*stage.names, BIG_NAME] for part in (name, Path(name).name)}
    secrets = {form for word in [*parts, PASSPHRASE] for form in forms(word.encode())}
    contents = set(samples([*(stage.source / name for name in stage.names), *[stage.big] * 32]))
    files = [path for path in stage.daemon.root.rglob("*") if path.is_file()]
    if hits := list(search(secrets | contents, files)):
        raise DemoError(f"the server's disk gives away {hits[:5]}")
    size = sum(path.stat().st_size for path in files) >> 20
    say(f"{len(secrets)} forms of names, {len(contents)} samples of contents: none stands")
    say(f"anywhere in {len(files)} files, {size} MiB")
    copies = [path for path in stage.fetched.rglob("*") if path.is_file()]
    found = {needle for needle, _ in search(contents, [*copies, stage.big])}
    if found != contents:
        raise DemoError("the search itself does not find what is there")
    say(f"the same search over alice's own copies finds all {len(found)}")


def samples(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield `SAMPLE` bytes from a random place in each file, unless too short or too uniform."""
    for path in paths:
        size = path.stat().st_size
        if size < 4 * SAMPLE:
            continue
        with path.open("rb") as file:
            file.seek(random.randrange(size - SAMPLE))
            if len(set(sample := file.read(SAMPLE))) >= 8:
                yield sample


def every_day(stage: Stage) -> None:
    """A file is renamed, deleted and restored; a folder is stored and fetched whole"""
    name = stage.names[0]
    stage.alice.run("mv", name, "renamed")
    stage.alice.run("rm", "renamed")
    stage.alice.run("restore", "renamed")
    stage.alice.run("mv", "renamed", name)
    for line in stage.alice.run("history", name).lines:
        say(line)
    folder = stage.folder / "folder"
    for number in range(20):
        path = folder / f"{number % 4}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1000 * number))
    stage.alice.run("put", "-r", folder)
    stage.alice.run("get", "-r", "folder", "-o", stage.folder / "folders")
    for path in (one for one in folder.rglob("*") if one.is_file()):
        same(path, stage.folder / "folders" / "folder" / path.relative_to(folder))
    say("$ sfsc put -r folder; sfsc get -r folder     -> 20 files, the same")


def recover_elsewhere(stage: Stage) -> None:
    """Alice's laptop is lost: her recovery code opens the account on an empty machine"""
    printed = json.loads(stage.alice.run("--json", "key", "recovery").text)
    other = Client(stage.folder / "new-laptop")
    typed = f"{printed['account']}\n{printed['code']}\n"
    other.run("init", "--recovery", stdin=typed.encode())
    again = stage.folder / "recovered"
    other.run("get", stage.names[1], "-o", again)
    same(stage.source / stage.names[1], again)
    devices = other.run("device", "list").lines
    say(f"$ sfsc init --recovery; sfsc get …     -> the same bytes; {len(devices)} devices by now")
    kept = [path for path in stage.daemon.root.rglob("*") if path.is_file()]
    if hits := list(search({printed["code"].encode()}, kept)):
        raise DemoError(f"the server's disk has the recovery code: {hits[:3]}")


def share_and_take_back(stage: Stage) -> None:
    """Alice shares a file with bob, then stops sharing it"""
    name, copy = stage.names[0], stage.folder / "bobs-copy"
    for one, other, user in (
        (stage.alice, stage.bob, "bob"),
        (stage.bob, stage.alice, "alice"),
    ):
        shown = json.loads(other.run("--json", "key", "show").text)["fingerprint"]
        one.run("key", "verify", user, shown)
        say(f"$ sfsc key verify {user} {shown[:16]}…")
    stage.alice.run("share", name, "bob", "--expires", "30d")
    for line in stage.bob.run("inbox").lines:
        say(line)
    stage.bob.run("get", f"alice:{name}", "-o", copy)
    same(stage.source / name, copy)
    stage.alice.run("unshare", name, "bob", "--reencrypt")
    result = stage.bob.run("get", f"alice:{name}", "-o", stage.folder / "again-bob", code=3)
    say(f"unshared; bob$ sfsc get -> exit 3: {result.stderr.strip().splitlines()[0]}")


def rotate_keys(stage: Stage) -> None:
    """Alice's keys are rotated: new keys, every file key wrapped again, no content moved"""
    for command in (["rotate", "--plan"], ["rotate"], ["verify-rotation"]):
        say(f"$ sfsc {' '.join(command)}")
        for line in stage.alice.run(*command, seconds=SECONDS).lines:
            say(f"    {line}")
    again = stage.folder / "rotated"
    stage.alice.run("get", stage.names[2], "-o", again)
    same(stage.source / stage.names[2], again)
    for line in stage.daemon.run("audit", "rotation", "alice").lines:
        say(line)


def refuse_stranger(stage: Stage) -> None:
    """Bob is refused alice's files"""
    target = stage.folder / "stolen"
    for name in (stage.names[0], BIG_NAME):
        result = stage.bob.run("get", name, "-o", target, code=3)
        say(f"bob$ sfsc get {name}     -> exit 3: {result.stderr.strip().splitlines()[0]}")
    if target.exists() or stage.bob.run("ls").stdout:
        raise DemoError("bob has something of alice's")


def stop(stage: Stage) -> None:
    """The daemon stops, starts again, and still has everything"""
    if stage.daemon.stop() != 0:
        raise DemoError("the daemon did not stop cleanly")
    stage.daemon.start()
    again = stage.folder / "again"
    stage.alice.run("get", stage.names[0], "-o", again)
    same(stage.source / stage.names[0], again)
    stage.daemon.run("audit", "verify")
    stage.daemon.stop()
    checked = stage.daemon.run("fsck", "--read-data").text.strip()
    say(f"stopped, started, one file fetched, log verified; fsck: {checked}")


STEPS = [
    start,
    enrol,
    store_tree,
    fetch_tree,
    big_file,
    verify_log,
    show_disk,
    search_disk,
    every_day,
    share_and_take_back,
    rotate_keys,
    recover_elsewhere,
    refuse_stranger,
    stop,
]


def play(folder: Path) -> None:
    """Run all steps, in order, in `folder`."""
    stage = Stage(folder)
    try:
        for number, step in enumerate(STEPS, 1):
            began = time.perf_counter()
            print(f"\n{number}. {step.__doc__}", flush=True)
            step(stage)
            say(f"[{time.perf_counter() - began:.1f} s]")
    finally:
        if stage.daemon.process is not None:
            stage.daemon.kill()


def main() -> int:
    try:
        if kept := os.environ.get("DEMO_DIR"):
            Path(kept).mkdir(parents=True)
            play(Path(kept))
        else:
            with tempfile.TemporaryDirectory(prefix="sfs-demo-") as folder:
                play(Path(folder))
    except (DemoError, AssertionError) as exc:
        print(f"\ndemo: FAILED: {exc}", file=sys.stderr)
        return 1
    print("\ndemo: all steps passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
