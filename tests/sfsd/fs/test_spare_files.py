from __future__ import annotations

import threading
from pathlib import Path

from sfsd.fs.files import Files
from sfsd.fs.spare_files import SpareFiles


def test_spare_files_replace_a_file_and_are_given_back(tmp_path: Path) -> None:
    spares = SpareFiles(tmp_path / "spare", Files(), count=2, size=8192)
    assert not spares.write(tmp_path / "a", b"none yet")
    spares.refill()
    assert spares.can_hold([8192, 1])
    assert not spares.can_hold([1, 1, 1])
    assert not spares.can_hold([8193])
    (tmp_path / "a").write_bytes(b"old" * 100)
    assert spares.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not spares.give_back(tmp_path / "a")  # its blocks are gone
    assert spares.write(tmp_path / "b", b"pack", whole=True)
    assert (tmp_path / "b").read_bytes().rstrip(b"\0") == b"pack"
    assert not spares.write(tmp_path / "c", b"x")
    assert spares.give_back(tmp_path / "b")
    assert spares.write(tmp_path / "c", b"x" * 8192)


def test_a_new_process_uses_the_spare_files_that_are_whole(tmp_path: Path) -> None:
    SpareFiles(tmp_path / "spare", Files(), count=3, size=4096).refill()
    cut = sorted((tmp_path / "spare").iterdir())[1]
    cut.write_bytes(b"used when the process was killed")
    again = SpareFiles(tmp_path / "spare", Files(), count=3, size=4096)
    assert again.can_hold([1, 1])
    assert not again.can_hold([1, 1, 1])
    again.refill()
    assert again.can_hold([1, 1, 1])


class FullDisk(Files):
    def free(self, folder: Path) -> int:
        return 3 * 4096


def test_a_disk_without_room_gets_no_spare_files(tmp_path: Path) -> None:
    SpareFiles(tmp_path / "spare", FullDisk(), count=2, size=4096).refill()
    assert list((tmp_path / "spare").iterdir()) == []


class PausedReplace(Files):
    """Pauses the rename to a file `new` until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def replace(self, source: Path | str, target: Path | str) -> None:
        if Path(target).name == "new":
            self.reached.set()
            assert self.go_on.wait(30)
        super().replace(source, target)


def test_a_file_given_back_does_not_take_the_name_of_one_being_written(tmp_path: Path) -> None:
    files = PausedReplace()
    spares = SpareFiles(tmp_path / "spare", files, count=1, size=4096)
    spares.refill()
    (tmp_path / "pack").write_bytes(bytes(4096))
    writing = threading.Thread(target=spares.write, args=(tmp_path / "new", b"new"))
    giving = threading.Thread(target=spares.give_back, args=(tmp_path / "pack",))
    writing.start()
    assert files.reached.wait(30)
    giving.start()
    giving.join(0.3)  # long enough to rename the pack, if nothing stops it
    files.go_on.set()
    writing.join()
    giving.join()
    assert (tmp_path / "new").read_bytes() == b"new"
    assert spares.write(tmp_path / "next", b"next")
