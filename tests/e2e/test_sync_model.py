"""`Store.sync` under random changes: nothing is lost, and both sides become the same.

A folder of this machine and one of the store are changed at random: files are written, renamed and
deleted, folders take the place of files and the reverse. Between the changes the folder is
synchronised in a random direction, and at random points the work is interrupted, as by a signal, or
a whole `sfsc sync` is killed. All contents have one length, so that sizes tell nothing.

A content is lost if it is neither in the folder nor in the store, although no change has
overwritten or deleted it. `make sync-model` runs SYNC_ROUNDS rounds from SYNC_SEED on.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from sfsc.interrupts import deferred
from sfsc.store import Store
from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon

ROUNDS = int(os.environ.get("SYNC_ROUNDS", "8"))
SEED = int(os.environ.get("SYNC_SEED", "1"))
PREFIX = "shared/tree"
PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "f", "f/a", "f/g", "f/g/h")


class Interrupted(BaseException):
    """Raised at a random point of the work."""


@pytest.fixture
def world(daemon: Daemon, tmp_path: Path) -> World:
    client = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(client.home / "keyring", elsewhere)
    return World(client, elsewhere, tmp_path / "folder")


class World:
    """A folder, and the store as another machine of the same account changes it. `kept` are the
    contents that no change has removed."""

    def __init__(self, client: Client, elsewhere: Path, folder: Path) -> None:
        self.client = client
        self.elsewhere = elsewhere
        self.folder = folder
        self.random = random.Random(SEED)
        self.kept: set[bytes] = set()
        self.done: list[str] = []
        self._contents: dict[tuple[str, int], bytes] = {}  # of versions, by name
        folder.mkdir()
        (folder / "first").write_bytes(self.new_content())
        self.sync(down=False, delete=False)

    def new_content(self) -> bytes:
        content = self.random.randbytes(16)
        self.kept.add(content)
        return content

    # --- this machine

    def local(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".sfsc-")
        }

    def change_folder(self) -> None:
        path = self.random.choice(PATHS)
        what = self.random.choice(("write", "write", "write", "delete", "rename", "empty"))
        place = self.folder / path
        self.done.append(f"here: {what} {path}")
        if what == "write":
            self._make_room(place)
            place.write_bytes(self.new_content())
        elif what == "empty":
            self._make_room(place)
            place.mkdir()
        elif place.exists() and what == "delete":
            self._remove(place)
        elif place.exists():
            to = self.folder / self.random.choice(PATHS)
            if to.is_relative_to(place) or place.is_relative_to(to):
                return
            self._make_room(to)
            if place.exists():
                place.rename(to)

    def _make_room(self, place: Path) -> None:
        for above in reversed(place.relative_to(self.folder).parents):
            if (self.folder / above).is_file():
                self._remove(self.folder / above)
        self._remove(place)
        place.parent.mkdir(parents=True, exist_ok=True)

    def _remove(self, place: Path) -> None:
        if place.is_dir():
            for path in place.rglob("*"):
                if path.is_file():
                    self.kept.discard(path.read_bytes())
            shutil.rmtree(place)
        elif place.exists():
            self.kept.discard(place.read_bytes())
            place.unlink()

    # --- the store

    def stored(self, store: Store) -> dict[str, bytes]:
        found = {}
        for entry in store.ls(f"{PREFIX}/"):
            if entry.kind == "file":
                version = entry.name, entry.version
                if version not in self._contents:
                    self._contents[version] = store.open(entry.name).read()
                found[entry.name.removeprefix(f"{PREFIX}/")] = self._contents[version]
        return found

    def change_store(self, store: Store) -> None:
        path, held = self.random.choice(PATHS), self.stored(store)
        what = self.random.choice(("write", "write", "delete", "rename"))
        self.done.append(f"there: {what} {path}")
        inside = [one for one in held if f"{one}/".startswith(f"{path}/")]
        if what == "rename" and path in held:
            to = self.random.choice(PATHS)
            blocked = [
                one for one in held if f"{to}/".startswith(f"{one}/") or one.startswith(f"{to}/")
            ]
            if not blocked:
                store.mv(f"{PREFIX}/{path}", f"{PREFIX}/{to}")
        elif what == "write":
            inside += [one for one in held if path.startswith(f"{one}/")]
            self._remove_stored(store, held, inside)
            name = f"{PREFIX}/{path}"
            with contextlib.suppress(sfsc.NotFound):
                list(store.rm_tree(name))
            store.put(io.BytesIO(self.new_content()), name=name)
        elif what == "delete":
            self._remove_stored(store, held, inside)

    def _remove_stored(self, store: Store, held: dict[str, bytes], names: list[str]) -> None:
        for name in names:
            self.kept.discard(held[name])
            with contextlib.suppress(sfsc.NotFound):
                store.rm(f"{PREFIX}/{name}")

    # --- synchronising

    def sync(self, *, down: bool, delete: bool, stop_after: float | None = None) -> list[str]:
        """Synchronise; return the statuses of what was changed. Interrupt the work after some
        seconds."""
        self.done.append(f"sync down={down} delete={delete} stop={stop_after}")
        statuses: list[str] = []
        with interrupting(stop_after), sfsc.connect(self.client.home, auto_rotate=False) as store:
            found = store.sync(self.folder, PREFIX, down=down, delete=delete, skip=fail)
            statuses += [one.status for one in found if one.status != "unchanged"]
        return statuses

    def kill_sync(self, *, down: bool, delete: bool, after: float) -> None:
        """Kill a whole command after some seconds."""
        self.done.append(f"kill down={down} delete={delete} after={after}")
        words = (
            ["sync", "--down", PREFIX, str(self.folder)]
            if down
            else ["sync", str(self.folder), PREFIX]
        )
        process = self.client.start(*words, *(["--delete"] if delete else []))
        time.sleep(after)
        process.kill()
        process.communicate()

    def check(self, store: Store) -> None:
        lost = self.kept - {*self.local().values(), *self.stored(store).values()}
        assert not lost, "\n".join(self.done)


def fail(what: str, error: sfsc.SfscError) -> None:
    raise AssertionError(f"{what}: {error}")


@contextlib.contextmanager
def interrupting(seconds: float | None) -> Iterator[None]:
    """Raise `Interrupted` in the block after some seconds, and suppress it."""

    def interrupt(_number: int, _frame: object) -> None:
        deferred.interrupt(Interrupted())

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except Interrupted:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(os.name != "posix", reason="interrupts by a timer of POSIX")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_lost_and_both_sides_become_the_same(world: World) -> None:
    choose = world.random
    for _ in range(ROUNDS):
        with sfsc.connect(world.elsewhere, auto_rotate=False) as store:
            for _ in range(choose.randrange(4)):
                world.change_store(store)
        for _ in range(choose.randrange(5)):
            world.change_folder()
        down, delete = choose.random() < 0.5, choose.random() < 0.7
        how = choose.random()
        if how < 0.1:
            world.kill_sync(down=down, delete=delete, after=choose.uniform(0.1, 0.5))
        elif how < 0.6:
            world.sync(down=down, delete=delete, stop_after=choose.uniform(0.02, 0.15))
        else:
            world.sync(down=down, delete=delete)
        with sfsc.connect(world.elsewhere, auto_rotate=False) as store:
            world.check(store)
        if choose.random() < 0.3:
            converge(world)


def converge(world: World) -> None:
    """Synchronise in both directions until nothing changes; both sides must be the same then."""
    for _ in range(4):
        first = world.sync(down=False, delete=True)
        second = world.sync(down=True, delete=True)
        world.done.append(f"{first} {second}")
        if not first and not second:
            break
    else:
        raise AssertionError("\n".join(world.done))
    with sfsc.connect(world.elsewhere, auto_rotate=False) as store:
        held = world.local()
        assert held == world.stored(store), "\n".join(world.done)
        folders = {
            path.relative_to(world.folder).as_posix() + "/"
            for path in world.folder.rglob("*")
            if stat.S_ISDIR(path.stat().st_mode)
        }
        listed = store.ls(f"{PREFIX}/")
        empty = {one.name.removeprefix(f"{PREFIX}/") for one in listed if one.kind == "folder"}
        # The store can hold a folder beside a file of the same name.
        assert {one for one in empty if one.rstrip("/") not in held} <= folders, "\n".join(
            world.done
        )
