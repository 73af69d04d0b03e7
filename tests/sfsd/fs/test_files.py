from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsd.fs import files as files_module
from sfsd.fs.files import Files

SERVICE = 65_534
"""User and group id of a service account; it need not exist."""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has syncfs")


class Faulty(Files):
    """Real files: the named call fails with the given errno, all other calls are recorded."""

    def __init__(self, call: str = "", code: int = errno.EIO) -> None:
        self.call, self.code = call, code
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.call:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
        self._note("write")
        return super().write(handle, data[:3])

    def sync(self, handle: int) -> None:
        self._note("sync")
        super().sync(handle)

    def sync_folder(self, folder: Path) -> None:
        self._note("sync_folder")

    def allocate(self, handle: int, size: int) -> None:
        self._note("allocate")
        super().allocate(handle, size)

    def replace(self, source: Path | str, target: Path | str) -> None:
        self._note("replace")
        super().replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._note("link")
        super().link(source, target)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replace_durable_syncs_file_then_name_then_folder(tmp_path: Path) -> None:
    files = Faulty()
    files.replace_durable(tmp_path / "a", b"1234567")
    assert (tmp_path / "a").read_bytes() == b"1234567"
    assert files.calls == ["write", "write", "write", "sync", "replace", "sync_folder"]
    files.replace_durable(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b""
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["write", "sync", "replace"])
def test_a_failed_replace_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, call: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        Faulty(call, errno.ENOSPC).replace_durable(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_replace_survives_a_temporary_left_by_a_crash(tmp_path: Path) -> None:
    (tmp_path / ".a.tmp").write_bytes(b"torn")
    Files().replace_soon(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["a"]


def test_replace_staged_allocates_before_writing(tmp_path: Path) -> None:
    Files().replace_staged(tmp_path / "a", b"first")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        Faulty("allocate", errno.ENOSPC).replace_staged(tmp_path / "a", b"no room")
    assert (tmp_path / "a").read_bytes() == b"first"
    for data in (b"longer than it", b"", b"short"):
        Files().replace_staged(tmp_path / "a", data)
        assert (tmp_path / "a").read_bytes() == data
    assert names(tmp_path) == ["a"]


def test_write_new_refuses_an_existing_file(tmp_path: Path) -> None:
    files = Files()
    files.write_new(tmp_path / "a", b"first", durable=True)
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"second", durable=True)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.stat(tmp_path / "a").st_mode & 0o077 == 0


def test_a_failed_write_new_can_be_retried(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        Faulty("sync").write_new(tmp_path / "a", b"first", durable=True)
    assert caught.value.filename == str(tmp_path / "a")
    Files().write_new(tmp_path / "a", b"second", durable=True)
    assert (tmp_path / "a").read_bytes() == b"second"


def test_link_shares_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    Files().link_or_copy(tmp_path / "a", tmp_path / "b")
    assert os.stat(tmp_path / "a").st_ino == os.stat(tmp_path / "b").st_ino
    with pytest.raises(FileExistsError):
        Files().link_or_copy(tmp_path / "a", tmp_path / "b")


def test_link_copies_if_links_are_unsupported(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    files = Faulty("link", errno.EPERM)
    files.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 3_000_000
    assert os.stat(tmp_path / "a").st_ino != os.stat(tmp_path / "b").st_ino
    with pytest.raises(FileExistsError):
        files.link_or_copy(tmp_path / "a", tmp_path / "b")


def test_copying_a_missing_file_leaves_nothing_open(tmp_path: Path) -> None:
    files = Faulty("link", errno.EPERM)
    free = os.dup(0)
    os.close(free)
    with pytest.raises(FileNotFoundError):
        files.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == []
    again = os.dup(0)
    os.close(again)
    assert again == free


def test_link_reports_other_failures(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Faulty("link", errno.EIO).link_or_copy(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a"]


def test_reads_are_positional_and_exact(tmp_path: Path) -> None:
    files = Files()
    handle = files.open_append(tmp_path / "a")
    files.write_all(handle, b"0123456789")
    assert files.read_exactly(handle, 3, 4) == b"456"
    assert files.read_exactly(handle, 0, 99) == b""
    assert files.size(handle) == 10
    with pytest.raises(EOFError):
        files.read_exactly(handle, 3, 8)
    files.truncate(handle, 5)
    files.write_all(handle, b"x")  # appends at the new end
    assert files.read_at(handle, 99, 0) == b"01234x"
    files.close(handle)


def test_open_update_overwrites_in_place(tmp_path: Path) -> None:
    files = Files()
    (tmp_path / "a").write_bytes(b"0123")
    handle = files.open_update(tmp_path / "a")
    files.write_all(handle, b"ab")
    files.close(handle)
    assert (tmp_path / "a").read_bytes() == b"ab23"
    with pytest.raises(FileNotFoundError):
        files.open_update(tmp_path / "missing")


def test_remove_and_make_folder_are_repeatable(tmp_path: Path) -> None:
    files = Files()
    files.make_folder(tmp_path / "x" / "y")
    files.make_folder(tmp_path / "x" / "y")
    assert (tmp_path / "x" / "y").is_dir()
    files.sync_folder(tmp_path / "x")
    files.remove(tmp_path / "none")
    assert names(tmp_path) == ["x"]


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield handle
    os.close(handle)


@pytest.fixture
def fresh_library_cache() -> Iterator[None]:
    """Clear what another test cached about the kernel."""
    files_module._syncfs_library.cache_clear()
    yield
    files_module._syncfs_library.cache_clear()


@linux_only
@pytest.mark.parametrize(
    ("release", "reports"), [("5.7.19", False), ("5.8.0", True), ("6.1", True)]
)
def test_syncfs_needs_a_kernel_that_reports_failures(
    release: str, reports: bool, monkeypatch: pytest.MonkeyPatch, fresh_library_cache: None
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert (files_module._syncfs_library() is not None) is reports


@linux_only
def test_syncfs_is_not_used_on_an_unknown_file_system(
    open_folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_TRUSTED", frozenset[int]())
    assert files_module._syncfs(open_folder) is False


@linux_only
def test_syncfs_is_not_used_on_proc() -> None:
    handle = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert files_module._syncfs(handle) is False
    finally:
        os.close(handle)


@linux_only
def test_a_syncfs_failure_is_raised(open_folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = files_module._syncfs_library()
    assert found is not None
    monkeypatch.setattr(files_module, "_file_system_type", lambda *_: files_module._EXT)
    with pytest.raises(OSError) as raised:
        files_module._syncfs(-1)
    assert raised.value.errno == errno.EBADF


@pytest.fixture
def service_files(tmp_path: Path) -> Files:
    """Files of a root process below a root of another account."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(tmp_path, SERVICE, SERVICE)
    return Files.below(tmp_path)


def test_root_creates_everything_for_the_owner_of_the_root(
    tmp_path: Path, service_files: Files
) -> None:
    service_files.make_folder(tmp_path / "a" / "b")
    service_files.replace_durable(tmp_path / "a" / "b" / "new", b"1")
    for _ in range(2):
        service_files.close(service_files.open_append(tmp_path / "log"))
    service_files.make_folder(tmp_path / "a" / "b")
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert made == ["a", "a/b", "a/b/new", "log"]
    for path in tmp_path.rglob("*"):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (SERVICE, SERVICE)
        assert status.st_mode & 0o077 == 0


def test_root_gives_away_nothing_outside_the_root(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, service_files: Files
) -> None:
    """The owner of the root could put symlinks to files and folders of root into it."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_bytes(b"")
    (tmp_path / "folder").symlink_to(outside)
    (tmp_path / "log").symlink_to(outside / "secret")
    service_files.close(service_files.open_append(tmp_path / "log"))
    service_files.write_new(tmp_path / "folder" / "new", b"")
    service_files.make_folder(tmp_path / "folder" / "made")
    assert {path.stat().st_uid for path in [outside, *outside.iterdir()]} == {0}


def test_files_of_a_root_that_root_owns(tmp_path: Path, service_files: Files) -> None:
    os.chown(tmp_path, 0, 0)
    files = Files.below(tmp_path)
    files.make_folder(tmp_path / "a")
    files.write_new(tmp_path / "a" / "new", b"")
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {0}
