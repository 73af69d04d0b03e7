"""The limit to compare with: the same bytes through the same TLS, and none of the product.

Two processes, one TLS 1.3 connection over loopback, pieces of up to 1 MiB. Both ends take SHA-256
of every piece and the receiver compares. What goes up is durable before it is acknowledged:
written, fsynced, renamed, folder fsynced (of folders see `bare_folder`). Nothing is encrypted but
by TLS: file encryption is the product's own work.

    python -m benchmarks.bare_pipe serve FOLDER     prints the port, serves until terminated
    python -m benchmarks.bare_pipe up PORT FOLDER SOURCE NAME
    python -m benchmarks.bare_pipe down PORT FOLDER NAME TARGET

SOURCE or NAME may be a folder, which goes with all that is in it.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from pathlib import Path

from benchmarks.bare_folder import receive_folder, send_folder
from benchmarks.bare_wire import (
    DONE,
    Receiver,
    Sender,
    connect,
    fill,
    make_certificate,
    server_context,
    sync_folder,
    wait_done,
)

UP, DOWN, FOLDER_UP, FOLDER_DOWN = b"u", b"d", b"U", b"D"


def send_file(peer: ssl.SSLSocket, source: Path) -> None:
    """Send `source` in pieces and wait until the other end says that it has them for good."""
    sender = Sender(peer)
    with source.open("rb", buffering=0) as file:
        while length := file.readinto(sender.room):
            sender.send(length)
    sender.send(0)
    wait_done(peer)


def receive_file(peer: ssl.SSLSocket, target: Path) -> None:
    """Write what the other end sends to `target`, durably, then acknowledge it."""
    partial = target.with_name(target.name + ".part")
    receiver = Receiver(peer)
    with partial.open("wb", buffering=0) as file:
        while piece := receiver.receive():
            file.write(piece)
        os.fsync(file.fileno())
    partial.replace(target)
    sync_folder(target.parent)
    peer.sendall(DONE)


def serve(folder: Path) -> None:
    """Answer one connection after the other with files in `folder`, for ever."""
    make_certificate(folder)
    context = server_context(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            plain, _ = listener.accept()
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain, server_side=True) as peer:
                _answer(peer, folder)


def _answer(peer: ssl.SSLSocket, folder: Path) -> None:
    request = memoryview(bytearray(2))
    fill(peer, request)
    name = memoryview(bytearray(request[1]))
    fill(peer, name)
    path = folder / bytes(name).decode()
    match bytes(request[:1]):
        case b"u":
            receive_file(peer, path)
        case b"d":
            send_file(peer, path)
        case b"U":
            receive_folder(peer, path, durable=True)
        case b"D":
            send_folder(peer, path, acknowledged=False)


def up(port: int, folder: Path, source: Path, name: str) -> None:
    if source.is_dir():
        with connect(port, folder, FOLDER_UP, name) as peer:
            send_folder(peer, source, acknowledged=True)
    else:
        with connect(port, folder, UP, name) as peer:
            send_file(peer, source)


def down(port: int, folder: Path, name: str, target: Path) -> None:
    if (folder / name).is_dir():
        with connect(port, folder, FOLDER_DOWN, name) as peer:
            receive_folder(peer, target, durable=False)
    else:
        with connect(port, folder, DOWN, name) as peer:
            receive_file(peer, target)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", folder]:
            serve(Path(folder))
        case ["up", port, folder, source, name]:
            up(int(port), Path(folder), Path(source), name)
        case ["down", port, folder, name, target]:
            down(int(port), Path(folder), name, Path(target))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
