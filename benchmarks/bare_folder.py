"""A folder of many files through the bare pipe.

A file is one or more pieces, the first of which begins with its path: ``u16 big-endian length |
path``, then a piece of no bytes. What goes up is durable in groups of `GROUP`, as a group commit
would do it: all its bytes in one file, synced, then each under its name, then one acknowledgement.
What comes down is written and not synced: it can be fetched again.
"""

from __future__ import annotations

import os
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.bare_wire import DONE, PipeError, Receiver, Sender, sync_folder, wait_done

GROUP: Final = 64
"""Files that are made durable together; the next group is on its way meanwhile."""
_PATH = struct.Struct(">H")


def send_folder(peer: ssl.SSLSocket, folder: Path, *, acknowledged: bool) -> None:
    """Send every regular file below `folder`; where `acknowledged`, wait until all are durable."""
    sender = Sender(peer)
    groups = 0
    for count, path in enumerate(_files(folder)):
        if acknowledged and count % GROUP == 0 and count:
            groups += 1
            if groups > 1:
                wait_done(peer)
        _send_file(sender, path, path.relative_to(folder).as_posix().encode())
    sender.send(0)
    if acknowledged:
        if groups:
            wait_done(peer)
        wait_done(peer)


def receive_folder(peer: ssl.SSLSocket, folder: Path, *, durable: bool) -> None:
    """Write what comes below `folder`, where `durable` in groups that are acknowledged."""
    receiver = Receiver(peer)
    folder.mkdir(exist_ok=True)
    group: list[tuple[str, bytes]] = []
    number = 0
    while piece := receiver.receive():
        name, content = _receive_file(receiver, piece)
        if not durable:
            _write(folder / name, content)
            continue
        if len(group) == GROUP:
            _keep(peer, folder, number, group)
            number += 1
            group.clear()
        group.append((name, content))
    if durable:
        _keep(peer, folder, number, group)


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as scanned:
        found = sorted(scanned, key=lambda item: item.name)
    for item in found:
        if item.is_dir(follow_symlinks=False):
            yield from _files(Path(item.path))
        elif item.is_file(follow_symlinks=False):
            yield Path(item.path)


def _send_file(sender: Sender, path: Path, name: bytes) -> None:
    head = _PATH.pack(len(name)) + name
    sender.room[: len(head)] = head
    start = len(head)
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(sender.room[start:]):
            sender.send(start + length)
            start = 0
    if start:
        sender.send(start)  # an empty file
    sender.send(0)


def _receive_file(receiver: Receiver, piece: memoryview) -> tuple[str, bytes]:
    length = _PATH.unpack_from(piece)[0]
    name = bytes(piece[_PATH.size : _PATH.size + length]).decode()
    if name.startswith("/") or ".." in name.split("/"):
        raise PipeError("a path that leads away")
    parts = [bytes(piece[_PATH.size + length :])]
    while more := receiver.receive():
        parts.append(bytes(more))
    return name, b"".join(parts)


def _keep(peer: ssl.SSLSocket, folder: Path, number: int, group: list[tuple[str, bytes]]) -> None:
    with (folder / f"group-{number}").open("wb", buffering=0) as pack:
        pack.write(b"".join(content for _, content in group))
        os.fsync(pack.fileno())
    sync_folder(folder)
    for name, content in group:
        _write(folder / name, content)
    peer.sendall(DONE)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
