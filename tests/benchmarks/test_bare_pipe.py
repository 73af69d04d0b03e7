"""The measure must measure: what goes through the pipe arrives, and a changed piece does not."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from benchmarks.bare_pipe import receive_file
from benchmarks.bare_wire import CERTIFICATE, HEADER, KEY, PipeError, make_certificate
from benchmarks.measure import bare_pipe
from benchmarks.works import check_same


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_a_file_goes_up_and_comes_down(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    with bare_pipe(tmp_path / "pipe") as pipe:
        pipe.run("up", source, "name")
        pipe.run("down", "name", tmp_path / "target")
    assert (tmp_path / "pipe" / "name").read_bytes() == source.read_bytes()
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_a_client_without_its_file_fails(tmp_path: Path) -> None:
    with bare_pipe(tmp_path / "pipe") as pipe, pytest.raises(subprocess.CalledProcessError):
        pipe.run("up", tmp_path / "absent", "name")


@pytest.mark.parametrize(
    "sent",
    [
        HEADER.pack(3, hashlib.sha256(b"abc").digest()) + b"abd",
        HEADER.pack(3, hashlib.sha256(b"abc").digest()) + b"ab",
        HEADER.pack(0, bytes(32)),
    ],
    ids=["changed", "cut", "wrong digest of nothing"],
)
def test_what_is_not_what_was_sent_is_refused(tmp_path: Path, sent: bytes) -> None:
    make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / KEY)
    client = ssl.create_default_context(cafile=str(tmp_path / CERTIFICATE))
    left, right = socket.socketpair()

    def send() -> None:
        with server.wrap_socket(left, server_side=True) as peer:
            peer.sendall(sent)
            peer.unwrap()

    sender = threading.Thread(target=send)
    sender.start()
    with client.wrap_socket(right, server_hostname="localhost") as peer:
        with pytest.raises(PipeError):
            receive_file(peer, tmp_path / "target")
        peer.unwrap()
    sender.join()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("count", [0, 130])
def test_a_folder_goes_up_and_comes_down(tmp_path: Path, count: int) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(count):
        folder = source / "below" if number % 2 else source
        (folder / f"f{number}").write_bytes(os.urandom(number % 9 and (1 << 20) * (number % 3)))
    with bare_pipe(tmp_path / "pipe") as pipe:
        pipe.run("up", source, "name")
        pipe.run("down", "name", tmp_path / "target")
    check_same(source, tmp_path / "pipe" / "name")
    check_same(source, tmp_path / "target")
