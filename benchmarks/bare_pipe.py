"""The limit to compare with: the same bytes through the same TLS, and none of the product.

Two processes, one TLS 1.3 connection over loopback, pieces of 1 MiB. Both ends take SHA-256 of
every piece and the receiver compares. What is received is durable before it is acknowledged:
written, fsynced, renamed, folder fsynced. Nothing is encrypted but by TLS: file encryption is the
product's own work.

    python -m benchmarks.bare_pipe serve FOLDER     prints the port, serves until terminated
    python -m benchmarks.bare_pipe up PORT FOLDER SOURCE NAME
    python -m benchmarks.bare_pipe down PORT FOLDER NAME TARGET

On the wire: a request is ``direction (1 byte) | length of name (1) | name``; a piece is
``u32 big-endian length | SHA-256 | bytes``, the last one is empty; who received answers with one
byte.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import struct
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PIECE = 1 << 20
HEADER = struct.Struct(">I32s")
UP, DOWN, DONE = b"u", b"d", b"."
CERTIFICATE, KEY = "pipe.crt", "pipe.key"


class PipeError(Exception):
    """Bytes arrived that are not the bytes that were sent, or too few."""


def make_certificate(folder: Path) -> None:
    """Write a self-signed P-256 certificate and its key to `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / KEY).write_bytes(private)
    (folder / CERTIFICATE).write_bytes(certificate.public_bytes(pem))


def send_file(peer: ssl.SSLSocket, source: Path) -> None:
    """Send `source` in pieces and wait until the other end says that it has them for good."""
    buffer = bytearray(HEADER.size + PIECE)
    view = memoryview(buffer)
    with source.open("rb", buffering=0) as file:
        while True:
            length = file.readinto(view[HEADER.size :])
            piece = view[HEADER.size : HEADER.size + length]
            HEADER.pack_into(buffer, 0, length, hashlib.sha256(piece).digest())
            peer.sendall(view[: HEADER.size + length])
            if not length:
                break
    if peer.recv(1) != DONE:
        raise PipeError("no acknowledgement")


def receive_file(peer: ssl.SSLSocket, target: Path) -> None:
    """Write what the other end sends to `target`, durably, then acknowledge it."""
    partial = target.with_name(target.name + ".part")
    head, body = memoryview(bytearray(HEADER.size)), memoryview(bytearray(PIECE))
    with partial.open("wb", buffering=0) as file:
        while True:
            _fill(peer, head)
            length, digest = HEADER.unpack(head)
            piece = body[:length]
            _fill(peer, piece)
            if hashlib.sha256(piece).digest() != digest:
                raise PipeError("a piece changed on its way")
            if not length:
                break
            file.write(piece)
        os.fsync(file.fileno())
    partial.replace(target)
    _sync_folder(target.parent)
    peer.sendall(DONE)


def _fill(peer: ssl.SSLSocket, view: memoryview) -> None:
    while view:
        count = peer.recv_into(view)
        if not count:
            raise PipeError("the connection ended early")
        view = view[count:]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def serve(folder: Path) -> None:
    """Answer one connection after the other with files in `folder`, for ever."""
    make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            plain, _ = listener.accept()
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain, server_side=True) as peer:
                _answer(peer, folder)


def _answer(peer: ssl.SSLSocket, folder: Path) -> None:
    request = memoryview(bytearray(2))
    _fill(peer, request)
    name = memoryview(bytearray(request[1]))
    _fill(peer, name)
    path = folder / bytes(name).decode()
    if bytes(request[:1]) == UP:
        receive_file(peer, path)
    else:
        send_file(peer, path)


def connect(port: int, folder: Path, direction: bytes, name: str) -> ssl.SSLSocket:
    """A connection to `serve` on which `name` has been asked for in `direction`."""
    context = ssl.create_default_context(cafile=str(folder / CERTIFICATE))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer = context.wrap_socket(plain, server_hostname="localhost")
    peer.sendall(direction + bytes([len(name)]) + name.encode())
    return peer


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve", folder]:
            serve(Path(folder))
        case ["up", port, folder, source, name]:
            with connect(int(port), Path(folder), UP, name) as peer:
                send_file(peer, Path(source))
        case ["down", port, folder, name, target]:
            with connect(int(port), Path(folder), DOWN, name) as peer:
                receive_file(peer, Path(target))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
