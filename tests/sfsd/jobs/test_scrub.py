"""The scrub on a real store: what it finds, what is no damage, and where it goes on."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.records.records import PURGE
from protocol.wire.messages.accounts import StartScrub, Status, StatusAnswer
from protocol.wire.messages.base import PIECE
from sfsd.jobs import scrub
from sfsd.jobs.scrub import Scrubber
from sfsd.operations import uploads
from sfsd.operations.health import find_problems
from sfsd.settings.config import Config, HealthBounds, ScrubPolicy
from sfsd.settings.kinds import DAY
from sfsd.state import quota
from tests.sfsd.builders import Daemon, Person, daemon, done, file_id

POLICY = ScrubPolicy(every=7 * DAY, rate=1 << 40)
CONFIG = Config(scrub=POLICY, health=HealthBounds(free_space=0, free_files=0))
ONE, TWO, THREE = file_id(1), file_id(2), file_id(3)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, config=CONFIG) as running:
        yield running


def place(served: Daemon, file: str, kind: str = "ct", version: int = 1) -> Path:
    return served.context.store.users / "ada" / "files" / file[:2] / f"{file}.{version}.{kind}"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def run(served: Daemon) -> dict[str, str]:
    """Run a pass; return what is damaged."""
    Scrubber(served.context).run_pass()
    return damaged(served)


def damaged(served: Daemon) -> dict[str, str]:
    return {path: one.kind for path, one in served.context.scrub.damaged.items()}


def test_a_store_that_is_right(served: Daemon, ada: Person) -> None:
    for number in range(5):
        ada.put(file_id(number), os.urandom(100 * number + 1))
    assert run(served) == {}
    progress = served.context.scrub
    everything = [one for one in served.context.store.users.rglob("*") if one.is_file()]
    assert progress.last_files == len(everything) - 5  # a ciphertext is read with its sidecar
    assert progress.last_bytes == sum(one.stat().st_size for one in everything)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (flip, "changed"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "changed"),
        (lambda path: os.truncate(path, 0), "changed"),
        (Path.unlink, "missing"),
        (lambda path: (path.unlink(), path.mkdir()), "unreadable"),
    ],
)
@pytest.mark.parametrize("which", ["ct", "json"])
def test_one_damaged_file(
    served: Daemon,
    ada: Person,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], object],
    kind: str,
    which: str,
) -> None:
    """It is named with what is wrong, and the others are read all the same."""
    for one in (ONE, TWO, THREE):
        ada.put(one, os.urandom(3000))
    path = place(served, TWO, which)
    harm(path)
    name = path.relative_to(served.context.store.users).as_posix()
    assert run(served) == {name: kind}
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert line.startswith(f"scrub: store/users/{name} (entry ")
    (problem,) = find_problems(served.context)
    assert problem.startswith(f"damaged file: store/users/{name} (entry ")
    assert served.context.scrub.last_files == 4 + 3


@pytest.mark.parametrize("name", ["account.json", "tag.key", "statements.json", "bundle"])
def test_files_of_an_account(served: Daemon, ada: Person, name: str) -> None:
    flip(served.context.store.users / "ada" / name)
    assert run(served) == {f"ada/{name}": "changed"}


def test_a_file_of_leaf_hashes(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (uploads, quota):
        monkeypatch.setattr(module, "INLINE_LEAVES", 1)
    ciphertext = bytes(PIECE + 1)
    upload = ada.upload(ONE, ciphertext)
    done(ada.ask(ada.version(ONE, ciphertext).commit(upload)))
    assert run(served) == {}
    leaves = place(served, ONE, "leaves")
    flip(leaves)
    assert run(served) == {f"ada/files/{ONE[:2]}/{ONE}.1.leaves": "changed"}
    with place(served, ONE).open("r+b") as file:  # the last byte, in a piece of its own
        file.seek(PIECE)
        file.write(b"\1")
    assert run(served) == {f"ada/files/{ONE[:2]}/{ONE}.1.ct": "changed"}


def test_damage_is_told_until_a_pass_finds_it_right(
    served: Daemon, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    for one in (ONE, TWO):
        ada.put(one, b"x" * 3000)
    path = place(served, ONE)
    right = path.read_bytes()
    flip(path)
    for _ in range(2):
        assert len(run(served)) == 1
    assert [one.levelno for one in caplog.records].count(logging.ERROR) == 2  # once a pass
    path.write_bytes(right)
    assert run(served) == {}
    assert find_problems(served.context) == []


def test_damage_ends_with_a_purge(served: Daemon, ada: Person) -> None:
    ada.put(ONE, b"1" * 100)
    ada.put(ONE, b"2" * 100)
    flip(place(served, ONE))
    assert len(run(served)) == 1
    done(ada.ask(ada.signed(ada.record(ONE, PURGE, purged=(1,))).change()))
    assert run(served) == {}


class BusyScrubber(Scrubber):
    """Makes the next planned change whenever it would wait: between files, and between the pieces
    of a ciphertext."""

    plan: list[Callable[[], object]]

    def _wait_for(self, size: int) -> None:
        if self.plan:
            self.plan.pop(0)()


def test_changes_between_and_within_files_are_no_damage(served: Daemon, ada: Person) -> None:
    for number in range(6):
        ada.put(file_id(number), os.urandom(2000))
    busy = BusyScrubber(served.context)
    busy.plan = [
        lambda: ada.put(ONE, os.urandom(1000)),
        lambda: ada.delete(TWO),
        lambda: ada.put(THREE, os.urandom(1000)),
        lambda: done(ada.ask(ada.signed(ada.record(THREE, PURGE, purged=(1,))).change())),
        lambda: served.person("bob").put(ONE, b"new"),
        lambda: ada.put(file_id(99), b"new"),
        lambda: ada.delete(file_id(5)),
    ]
    busy.run_pass()
    assert busy.plan == []
    assert damaged(served) == {}


def test_a_purge_while_its_ciphertext_is_read(served: Daemon, ada: Person) -> None:
    """The sidecar was read with the content, and the ciphertext is gone when it is opened."""
    ada.put(ONE, b"1" * 100)
    ada.put(ONE, b"2" * 100)

    class Purging(Scrubber):
        purged = False

        def _find_in_ciphertext(self, path: str, *rest: object) -> object:  # type: ignore[override]
            if path.endswith(f"{ONE}.1.ct") and not self.purged:
                self.purged = True
                purge = ada.signed(ada.record(ONE, PURGE, purged=(1,)))
                done(ada.ask(purge.change()))
            return super()._find_in_ciphertext(path, *rest)  # type: ignore[arg-type]

    scrubber = Purging(served.context)
    scrubber.run_pass()
    assert scrubber.purged
    assert damaged(served) == {}


def test_a_change_that_is_being_published(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are in place, and the table does not have its entry yet."""
    ada.put(ONE)
    latest, installed, go_on = served.context.journal.latest, threading.Event(), threading.Event()
    apply = latest.apply

    def slow(*arguments: Any) -> None:
        installed.set()
        go_on.wait(20)
        apply(*arguments)

    monkeypatch.setattr(latest, "apply", slow)
    change = threading.Thread(target=ada.delete, args=(ONE,))
    change.start()
    assert installed.wait(20)
    threading.Timer(0.1, go_on.set).start()
    found = run(served)
    change.join()
    assert found == {}


def test_a_thread_beside_many_changes(served: Daemon, ada: Person) -> None:
    stop = threading.Event()
    passes = 0

    def scrub_on() -> None:
        nonlocal passes
        while not stop.is_set():
            Scrubber(served.context).run_pass()
            passes += 1

    thread = threading.Thread(target=scrub_on)
    thread.start()
    try:
        for number in range(24):
            ada.put(file_id(number % 7), os.urandom(1000))
            if number % 10 == 9:
                ada.delete(file_id(number % 7))
    finally:
        stop.set()
        thread.join()
    assert passes
    assert damaged(served) == {}


def test_a_pass_goes_on_after_a_restart(tmp_path: Path) -> None:
    """What was read before is not read again, and what was found is kept."""

    class Ending(Scrubber):
        left = 6

        def _wait_for(self, size: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt  # as sudden as a test can be

    with daemon(tmp_path, config=CONFIG) as served:
        ada = served.person("ada")
        for number in range(10):
            ada.put(file_id(number), os.urandom(1000))
        everything = len(list(served.context.store.users.rglob("*.json"))) + 2
        first = min(served.context.store.users.rglob("*.ct"))
        flip(first)
        with pytest.raises(KeyboardInterrupt):
            Ending(served.context).run_pass()
        before = served.context.scrub
        assert 0 < before.files < everything
        assert len(before.damaged) == 1
    with daemon(tmp_path, served.clock, config=CONFIG) as again:
        progress = again.context.scrub
        assert (progress.began, progress.files, progress.after) == (
            before.began,
            before.files,
            before.after,
        )
        assert progress.damaged == before.damaged
        read = before.bytes
        assert len(run(again)) == 1
        assert progress.last_files == everything
        assert progress.number == 1
        assert progress.last_bytes > read


@pytest.mark.parametrize(
    "text",
    [b"", bytes(100), b"{}", b"[]", b'{"number": -1}', b"[" * 100_000, b'{"number": "x"}'],
)
def test_a_malformed_note_of_the_progress_begins_a_new_pass(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scrub.json").write_bytes(text)
    with daemon(tmp_path, config=CONFIG) as served:
        served.person("ada").put(ONE)
        assert run(served) == {}
        assert served.context.scrub.number == 1


def test_when_a_pass_is_due(served: Daemon) -> None:
    scrubber = Scrubber(served.context)
    assert scrubber.is_due()
    scrubber.run_pass()
    assert not scrubber.is_due()
    served.clock.now += 7 * DAY - 1
    assert not scrubber.is_due()
    served.clock.now += 1
    assert scrubber.is_due()
    scrubber.run_pass()
    served.clock.now -= 100 * DAY  # the clock was set back
    assert scrubber.is_due()
    scrubber.run_pass()
    answer = served.ask(served.operator(), StartScrub())
    assert isinstance(answer, StatusAnswer)
    assert scrubber.is_due()


def test_never_is_only_on_demand(tmp_path: Path) -> None:
    config = Config.parse(b'[scrub]\nevery = "never"\n')
    with daemon(tmp_path, config=config) as served:
        assert not Scrubber(served.context).is_due()
        served.context.scrub.want()
        assert Scrubber(served.context).is_due()


def test_a_lack_of_descriptors_is_no_damage(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.put(ONE)
    scrubber = Scrubber(served.context)

    def full(path: str) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(scrubber, "_read", full)
    with pytest.raises(OSError, match="Too many"):
        scrubber.run_pass()
    assert damaged(served) == {}
    assert served.context.scrub.began  # goes on later


def test_the_limit_on_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(scrub=ScrubPolicy(rate=1 << 20))
    with daemon(tmp_path, config=config) as served:
        ada = served.person("ada")
        ada.put(ONE, bytes(200_000))
        waited = 0.0
        scrubber = Scrubber(served.context)
        now = 1000.0

        def wait(seconds: float) -> bool:
            nonlocal waited, now
            waited += seconds
            now += seconds
            return False

        monkeypatch.setattr(time, "monotonic", lambda: now)
        monkeypatch.setattr(scrubber._wake, "wait", wait)
        scrubber.run_pass()
        progress = served.context.scrub
        counted = 200_000 + progress.last_files * scrub.FILE_BYTES
        assert waited == pytest.approx(counted / (1 << 20), abs=0.05)


def test_a_stop_ends_a_pass_at_once(tmp_path: Path) -> None:
    config = Config(scrub=ScrubPolicy(rate=64 * 1024))
    with daemon(tmp_path, config=config) as served:
        served.person("ada").put(ONE, bytes(200_000))
        scrubber = Scrubber(served.context)
        served.context.scrub.want()
        thread = threading.Thread(target=scrubber.run)
        thread.start()
        while not served.context.scrub.files:
            time.sleep(0.001)
        scrubber.stop()
        thread.join(1.5)  # each file alone takes two seconds
        assert not thread.is_alive()
        assert served.context.scrub.began


def test_the_status_has_the_progress(served: Daemon, ada: Person) -> None:
    ada.put(ONE, bytes(1000))
    flip(place(served, ONE))
    run(served)
    answer = served.ask(served.operator(), Status())
    assert isinstance(answer, StatusAnswer)
    assert (answer.scrub.began, answer.scrub.damage) == (0, 1)
    assert answer.scrub.last_files == served.context.scrub.last_files
    (one,) = answer.scrub.damaged
    assert one.path == f"ada/files/{ONE[:2]}/{ONE}.1.ct"
    assert one.text == "the content is not what was written"


def test_a_bug_in_the_scrub_is_told(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    scrubber = Scrubber(served.context)

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scrubber, "run_pass", broken)
    served.context.scrub.want()
    with pytest.raises(ZeroDivisionError):
        scrubber.run()
    assert find_problems(served.context) == ["scrub: it has ended; restart the daemon"]
