"""Running uploads: which pieces are accepted when, and what is reserved."""

from __future__ import annotations

import errno
import threading

import pytest

from protocol.codec.encoding import Buffer
from protocol.codec.merkle import PIECE_SIZE as PIECE
from sfsd.errors import Refused, StoreRefusedError
from sfsd.fs.descriptors import DescriptorBudget
from sfsd.rules.context import Access, Principal
from sfsd.state.file_index import OwnerFiles
from sfsd.state.uploads import (
    ABANDONED,
    LIFETIME,
    PER_UPLOAD,
    PER_USER,
    WINDOW,
    Upload,
    UploadRegistry,
)
from sfsd.storage.upload_file import UploadFile
from tests.sfsd.builders import Clock, Daemon, file_id

F = file_id(1)
WHO = Principal("ada", 1, Access.FULL, 0, 0, "192.0.2.1")


def ended(address: str = WHO.address) -> Principal:
    """Return a session whose connection is closed."""
    return Principal("ada", 1, Access.FULL, 1, 0, address, ended=True)


@pytest.fixture
def files(served: Daemon) -> OwnerFiles:
    return served.context.index.for_user("ada")


@pytest.fixture
def uploads(served: Daemon) -> UploadRegistry:
    return served.context.uploads


@pytest.fixture
def clock(served: Daemon) -> Clock:
    return served.clock


class Gated:
    """An upload file whose writes wait until they are released."""

    def __init__(self, staged: UploadFile) -> None:
        self._staged = staged
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self.fail = False

    def write(self, index: int, piece: Buffer) -> None:
        self.began.release()
        assert self.go.wait(10)
        if self.fail:
            raise StoreRefusedError("the disk")
        self._staged.write(index, piece)

    @property
    def received(self) -> int:
        return self._staged.received


def code_of(call: object, *args: object) -> str:
    with pytest.raises(Refused) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.code


def gated(uploads: UploadRegistry, files: OwnerFiles) -> tuple[Upload, Gated]:
    upload = uploads.open_upload(WHO, files, F, 0, 0)
    gate = Gated(upload.staged)
    upload.staged = gate  # type: ignore[assignment]
    return upload, gate


def test_a_piece_that_is_being_written_is_not_written_twice(
    uploads: UploadRegistry, files: OwnerFiles
) -> None:
    upload, gate = gated(uploads, files)
    writing = threading.Thread(target=upload.write, args=(0, bytes(PIECE), 0))
    writing.start()
    assert gate.began.acquire(timeout=10)
    assert code_of(upload.write, 0, b"other", 0) == "busy"
    gate.go.set()
    writing.join()
    assert upload.write(0, b"other", 0) == PIECE  # stored already: nothing is written
    assert upload.wait_for_writes() == PIECE


def test_wait_for_writes_waits_for_running_writes(
    uploads: UploadRegistry, files: OwnerFiles
) -> None:
    upload, gate = gated(uploads, files)
    writing = threading.Thread(target=upload.write, args=(0, bytes(PIECE), 0))
    writing.start()
    assert gate.began.acquire(timeout=10)
    threading.Timer(0.05, gate.go.set).start()
    assert upload.wait_for_writes() == PIECE
    writing.join()


def test_a_failed_write_can_be_repeated(uploads: UploadRegistry, files: OwnerFiles) -> None:
    upload, gate = gated(uploads, files)
    gate.go.set()
    gate.fail = True
    with pytest.raises(StoreRefusedError):
        upload.write(0, b"last", 0)
    gate.fail = False
    assert upload.write(0, b"last", 0) == 4
    assert files.ledger.used == 4


def test_pieces_come_in_any_order_within_the_window(
    uploads: UploadRegistry, files: OwnerFiles
) -> None:
    upload = uploads.open_upload(WHO, files, F, 0, 0)
    assert upload.write(PIECE, bytes(PIECE), 0) == 0
    assert code_of(upload.write, 0, b"short", 0) == "bad-request"
    assert code_of(upload.write, WINDOW, bytes(PIECE), 0) == "bad-request"
    assert upload.write(2 * PIECE, b"end", 0) == 0
    assert upload.write(0, bytes(PIECE), 0) == 2 * PIECE + 3
    size, leaves, _ = upload.seal()
    assert (size, len(leaves)) == (2 * PIECE + 3, 3)


def test_one_commit_at_a_time(uploads: UploadRegistry, files: OwnerFiles) -> None:
    upload = uploads.open_upload(WHO, files, F, 0, 0)
    upload.write(0, b"all", 0)
    upload.begin_commit()
    assert code_of(upload.begin_commit) == "busy"
    assert code_of(upload.write, PIECE, b"more", 0) == "upload-lost"
    assert code_of(uploads.abort, upload) == "busy"
    upload.end_commit()
    upload.begin_commit()
    uploads.forget(upload)
    upload.end_commit()
    assert code_of(upload.begin_commit) == "upload-lost"
    assert code_of(uploads.get, "ada", upload.upload_id) == "upload-lost"
    assert files.ledger.used == 0  # a version holds the bytes now


def test_announced_bytes_are_reserved_and_released(
    uploads: UploadRegistry, files: OwnerFiles
) -> None:
    files.loaded_ledger()
    upload = uploads.open_upload(WHO, files, F, 700, 1000)
    assert files.ledger.used == 700
    assert code_of(uploads.open_upload, WHO, files, F, 301, 1000) == "quota"
    unknown = uploads.open_upload(WHO, files, F, 0, 1000)
    unknown.write(0, bytes(300), 1000)
    assert files.ledger.used == 1000
    assert code_of(unknown.write, PIECE, b"x", 1000) == "bad-request"
    uploads.abort(upload)
    uploads.abort(unknown)
    assert files.ledger.used == 0


def test_an_upload_under_commit_is_not_dropped_for_idleness(served: Daemon) -> None:
    clock = Clock(0.0)
    uploads = UploadRegistry(served.context.store.create_upload_file, DescriptorBudget(), clock)
    files = served.context.index.for_user("ada")
    busy, idle = (uploads.open_upload(WHO, files, F, 0, 0) for _ in range(2))
    busy.write(0, b"all", 0)
    busy.begin_commit()
    clock.now = LIFETIME + 1.0
    assert uploads.drop_idle() == 1
    assert code_of(uploads.get, "ada", idle.upload_id) == "upload-lost"
    assert uploads.get("ada", busy.upload_id) is busy


def test_uploads_stay_within_the_descriptor_budget(served: Daemon, files: OwnerFiles) -> None:
    share, clock = DescriptorBudget(3 * PER_UPLOAD), Clock(0.0)
    uploads = UploadRegistry(served.context.store.create_upload_file, share, clock)
    files.loaded_ledger()
    assert code_of(uploads.open_upload, WHO, files, F, 11, 10) == "quota"
    dropped, idle, committed = (uploads.open_upload(WHO, files, F, 0, 0) for _ in range(3))
    assert code_of(uploads.open_upload, WHO, files, F, 0, 0) == "busy"
    uploads.abort(dropped)
    another = uploads.open_upload(WHO, files, F, 0, 0)
    assert code_of(uploads.open_upload, WHO, files, F, 0, 0) == "busy"
    committed.write(0, b"all", 0)
    committed.begin_commit()
    uploads.forget(committed)
    uploads.forget(committed)
    clock.now = LIFETIME + 1.0
    assert code_of(uploads.get, "ada", idle.upload_id) == "upload-lost"
    assert code_of(uploads.get, "ada", another.upload_id) == "upload-lost"
    assert share.acquire(3 * PER_UPLOAD)
    assert not share.acquire(1)


def test_a_failed_close_returns_its_descriptors(
    served: Daemon, files: OwnerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = DescriptorBudget(PER_UPLOAD)
    store = served.context.store
    uploads = UploadRegistry(store.create_upload_file, share, Clock(0.0))
    upload, close = uploads.open_upload(WHO, files, F, 0, 0), store.files.close

    def failing(handle: int) -> None:
        close(handle)
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "close", failing)
        with pytest.raises(OSError, match="broken"):
            uploads.abort(upload)
    assert share.acquire(PER_UPLOAD)


def test_a_dropped_upload_reserves_nothing(uploads: UploadRegistry, files: OwnerFiles) -> None:
    """As for a piece that arrives while the upload is dropped."""
    upload = uploads.open_upload(WHO, files, F, 0, 0)
    upload.finish()
    assert code_of(upload.reserve, 100, 0) == "upload-lost"
    assert files.ledger.used == 0


@pytest.mark.parametrize("look", ["for idle ones", "for those that replace"])
def test_an_upload_whose_commit_just_began_is_not_dropped(
    served: Daemon, uploads: UploadRegistry, files: OwnerFiles, look: str
) -> None:
    """Its bytes may be in the log by the time its file would be removed."""

    class Raced(Upload):
        """An upload whose commit begins right after it was looked up."""

        @property
        def last_bytes(self) -> float:
            return 0.0 if look == "for idle ones" else served.clock.now - 1

        @last_bytes.setter
        def last_bytes(self, at: float) -> None:
            pass

        @property
        def committing(self) -> bool:
            if self._committing:
                return True
            self.begin_commit()
            return False

    first, _ = (uploads.open_upload(WHO, files, F, 10, 0, replaces=1) for _ in range(2))
    first.write(0, b"x" * 10, 0)
    first.__class__ = Raced
    if look == "for idle ones":
        assert uploads.drop_idle() == 0
    else:
        uploads.open_upload(WHO, files, F, 10, 0, replaces=1)
    assert first._committing
    assert first.seal()[0] == 10
    assert first.staged.path.exists()


def test_a_dropped_upload_is_not_committed(uploads: UploadRegistry, files: OwnerFiles) -> None:
    upload = uploads.open_upload(WHO, files, F, 0, 0)
    assert upload.close_unless_committing()
    assert code_of(upload.begin_commit) == "upload-lost"


def is_open(uploads: UploadRegistry, upload: Upload) -> bool:
    try:
        return uploads.get("ada", upload.upload_id) is upload
    except Refused:
        return False


def test_an_abandoned_upload_gives_way_after_a_minute(
    uploads: UploadRegistry, files: OwnerFiles, clock: Clock
) -> None:
    files.loaded_ledger()
    left = uploads.open_upload(ended(), files, file_id(2), 700, 1000)
    clock.now += ABANDONED
    with pytest.raises(Refused) as caught:
        uploads.open_upload(WHO, files, F, 700, 1000)
    assert caught.value.code == "quota"
    clock.now += 1
    assert is_open(uploads, uploads.open_upload(WHO, files, file_id(3), 300, 1000))
    assert is_open(uploads, left)  # nothing needed its room
    uploads.open_upload(WHO, files, F, 700, 1000)
    assert not is_open(uploads, left)
    assert files.ledger.used == 1000


def test_an_upload_of_an_open_session_never_gives_way(
    uploads: UploadRegistry, files: OwnerFiles, clock: Clock
) -> None:
    files.loaded_ledger()
    uploads.open_upload(WHO, files, F, 700, 1000)
    clock.now += ABANDONED + 1
    for name in (F, file_id(2)):
        with pytest.raises(Refused):
            uploads.open_upload(ended(), files, name, 700, 1000)


def test_abandoned_uploads_give_way_to_another_upload(
    uploads: UploadRegistry, files: OwnerFiles, clock: Clock
) -> None:
    for number in range(PER_USER):
        uploads.open_upload(ended(), files, file_id(2 + number), 0, 0)
    with pytest.raises(Refused):
        uploads.open_upload(WHO, files, F, 0, 0)
    clock.now += ABANDONED + 1
    uploads.open_upload(WHO, files, F, 0, 0)


def test_a_put_replaces_an_abandoned_upload_of_its_file(
    uploads: UploadRegistry, files: OwnerFiles
) -> None:
    left = uploads.open_upload(ended(), files, F, 700, 1000)
    with pytest.raises(Refused):  # another machine, whose user may be the one that comes back
        uploads.open_upload(ended("192.0.2.2"), files, F, 700, 1000)
    again = uploads.open_upload(WHO, files, F, 700, 1000)
    assert not is_open(uploads, left)
    with pytest.raises(Refused):  # two puts of one file at once
        uploads.open_upload(WHO, files, F, 700, 1000)
    assert is_open(uploads, again)


def test_a_session_aborts_all_of_its_uploads(uploads: UploadRegistry, files: OwnerFiles) -> None:
    other = Principal("ada", 1, Access.FULL, 2, 0, WHO.address)
    kept = uploads.open_upload(other, files, F, 100, 1000)
    committing = uploads.open_upload(WHO, files, F, 100, 1000)
    committing.begin_commit()
    dropped = [uploads.open_upload(WHO, files, F, 100, 1000) for _ in range(2)]
    uploads.abort_session(WHO)
    assert [is_open(uploads, one) for one in (kept, committing, *dropped)] == [True, True] + [
        False
    ] * 2
    assert files.ledger.used == 200
