"""Read handles and their descriptors."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from sfsd.errors import Refused
from sfsd.fs.descriptors import DescriptorBudget
from sfsd.state.read_handles import FILES, HANDLES, PER_FILE, OpenVersion, ReadHandles
from sfsd.storage.store import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path)
    for number in range(FILES + 4):
        (store.users / f"{number}.ct").write_bytes(b"content %d" % number)
    return store


def version(number: int) -> OpenVersion:
    return OpenVersion("ada", f"{number:032x}", 1, bytes(16), 9, f"{number}.ct")


def begun(store: DirectoryStore, share: DescriptorBudget | None = None) -> ReadHandles:
    """Return handles with sessions 1 and 2 open."""
    opened = ReadHandles(store.open_blob, share or DescriptorBudget())
    opened.open_session(1)
    opened.open_session(2)
    return opened


def changed(session: object, name: bytes) -> None:
    with pytest.raises(Refused) as caught:
        session.read(name, 0, 1)  # type: ignore[attr-defined]
    assert caught.value.code == "changed"


def test_a_handle_outlives_its_descriptor(store: DirectoryStore) -> None:
    session = begun(store).for_session(1)
    names = [session.add(version(number)) for number in range(FILES + 4)]
    for _ in range(2):
        for number, name in enumerate(names):
            assert session.read(name, 8, 9) == b"%d" % number
    assert len(session._blobs) == FILES
    session.close()


def test_sessions_share_the_descriptor_budget(store: DirectoryStore) -> None:
    share = DescriptorBudget(3 * PER_FILE)
    opened = begun(store, share)
    first, second = opened.for_session(1), opened.for_session(2)
    names = [first.add(version(number)) for number in range(4)]
    for number, name in enumerate(names):
        assert first.read(name, 8, 9) == b"%d" % number
    assert len(first._blobs) == 3
    other = second.add(version(5))
    with pytest.raises(Refused) as caught:
        second.read(other, 0, 1)
    assert caught.value.code == "busy"
    # A session with descriptors continues with them; those that it returns are free for others.
    assert first.read(names[0], 8, 9) == b"0"
    first.invalidate("ada", version(0).file_id, 1)
    assert second.read(other, 8, 9) == b"5"
    (store.users / "6.ct").unlink()
    changed(second, second.add(version(6)))
    opened.close_session(1)
    opened.close_session(2)
    assert share.acquire(3 * PER_FILE)
    assert not share.acquire(1)


def test_a_failed_close_returns_its_descriptors(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = DescriptorBudget(PER_FILE)
    session = begun(store, share).for_session(1)
    session.read(session.add(version(1)), 0, 1)
    close = store.files.close

    def failing(handle: int) -> None:
        close(handle)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(store.files, "close", failing)
    with pytest.raises(OSError, match="broken"):
        session.close()
    assert share.acquire(PER_FILE)


def test_the_least_recently_used_handle_is_dropped_first(store: DirectoryStore) -> None:
    session = begun(store).for_session(1)
    first, second = session.add(version(1)), session.add(version(2))
    session.read(second, 0, 1)
    session.get(first)
    for _ in range(HANDLES - 1):
        session.add(version(3))
    session.get(first)
    changed(session, second)
    session.close()


def test_removed_content_is_changed_in_every_session(store: DirectoryStore) -> None:
    opened = begun(store)
    names = [opened.for_session(number).add(version(1)) for number in (1, 2)]
    other = opened.for_session(1).add(version(2))
    opened.for_session(1).read(names[0], 0, 1)
    opened.invalidate("ada", version(1).file_id, 1)
    for number, name in zip((1, 2), names, strict=True):
        changed(opened.for_session(number), name)
    assert opened.for_session(1).read(other, 0, 1) == b"c"
    (store.users / "3.ct").unlink()
    changed(opened.for_session(1), opened.for_session(1).add(version(3)))
    ended = opened.for_session(1)
    opened.close_session(1)
    opened.close_session(1)
    changed(ended, other)
    with pytest.raises(Refused):
        opened.for_session(1)


def test_threads_with_too_few_descriptors_read_correctly(store: DirectoryStore) -> None:
    session = begun(store).for_session(1)
    names = [session.add(version(number)) for number in range(FILES + 4)]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            for number, name in enumerate(names):
                if session.read(name, 8, 9) != b"%d" % number:
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    session.close()
