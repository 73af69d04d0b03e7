"""Every long step announces what there is to do, and reports all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sfsc
from sfsc.store import Store
from tests.lying_server import LyingServer

FILES = 40
BIG = 3 << 20


class Told(sfsc.Progress):
    """Adds up what is reported."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.expected = self.done = self.expected_items = self.done_items = 0
        self.files: list[tuple[str, int | None]] = []
        self.lost: list[float | str] = []

    def expect(self, size: int) -> None:
        self.expected += size

    def advance(self, size: int) -> None:
        self.done += size

    def expect_items(self, count: int, *, more: bool = False) -> None:
        assert not more
        self.expected_items += count

    def advance_items(self, count: int = 1) -> None:
        self.done_items += count

    def begin_file(self, name: str, size: int | None) -> None:
        self.files.append((name, size))

    def reconnecting(self, cause: str, seconds: float) -> None:
        self.lost.append(seconds)

    def reconnected(self) -> None:
        self.lost.append("end")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "tree"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:02}").write_bytes(bytes(number))
    (folder / "big").write_bytes(bytes(BIG))
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, told: Told) -> Iterator[Store]:
    with LyingServer(tmp_path_factory.mktemp("progress") / "lying") as server:
        server.enrol("bob", key_type="x25519")
        home = server.enrol("ada", key_type="x25519")
        with sfsc.connect(home, auto_rotate=False, progress=told) as store:
            yield store


SIZE = sum(range(FILES)) + BIG
ITEMS = FILES + 1 + 1  # the large file, and the folder

STEPS: list[tuple[str, Callable[[Store, Path], object], int, int, list[str]]] = [
    ("put", lambda s, p: list(s.put_tree([p], name="t")), SIZE, ITEMS, ["t/big"]),
    ("put unchanged", lambda s, p: list(s.put_tree([p], name="t")), 0, ITEMS, []),
    ("put many", lambda s, p: list(s.put_many([(p / "big", "b")])), BIG, 1, ["b"]),
    ("sync", lambda s, p: list(s.sync(p, "u")), SIZE, ITEMS, ["u/big"]),
    ("get", lambda s, p: list(s.get_tree("t", p.parent / "out")), SIZE, ITEMS, ["t/big"]),
    ("get many", lambda s, p: list(s.get_many(["t/01", "b"], p.parent)), BIG + 1, 2, ["b"]),
    ("sync down", lambda s, p: list(s.sync(p.parent / "v", "u", down=True)), SIZE, ITEMS,
     ["u/big"]),
    ("share", lambda s, _: list(s.share_tree("t", "bob", trust_first_use=True)), 0, ITEMS, []),
    ("rotate", lambda s, _: s.rotate(), 0, 2 * ITEMS + 1, []),
    ("rm", lambda s, _: list(s.rm_tree("u")), 0, ITEMS, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("step", "size", "items", "large"), [pytest.param(*one[1:], id=one[0]) for one in STEPS]
)
def test_what_is_announced_is_reported(
    store: Store,
    told: Told,
    folder: Path,
    step: Callable[[Store, Path], object],
    size: int,
    items: int,
    large: list[str],
) -> None:
    told.reset()
    step(store, folder)
    assert told.expected == size
    assert size <= told.done <= size * 1.001 + 200  # large ciphertext, and settings on the way
    assert abs(told.expected_items - items) <= 1
    assert abs(told.done_items - told.expected_items) <= 2
    assert [name for name, _ in told.files] == large
    assert all(one == BIG for _, one in told.files)


def test_the_entries_of_the_log_are_counted(store: Store, told: Told) -> None:
    told.reset()
    store.audit_verify()
    assert told.done_items == told.expected_items > 200


def test_a_lost_connection_that_is_there_again_at_once_is_not_worth_a_word(
    store: Store, told: Told
) -> None:
    told.reset()
    store._session.transport.close()
    store.status()
    assert told.lost == ["end"]
