"""What the bare pipe's two programs share: one TLS 1.3 connection, and pieces with their hashes.

A request is ``direction (1 byte) | length of name (1) | name``; a piece is ``u32 big-endian length
| SHA-256 | bytes``, the last one is empty; who received answers with one byte.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import struct
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PIECE = 1 << 20
HEADER = struct.Struct(">I32s")
DONE = b"."
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


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS as the product's daemon has it, with the certificate in `folder`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def connect(port: int, folder: Path, direction: bytes, name: str) -> ssl.SSLSocket:
    """A connection to a pipe's server on which `name` has been asked for in `direction`."""
    peer = dial(port, folder)
    peer.sendall(direction + bytes([len(name)]) + name.encode())
    return peer


def dial(port: int, folder: Path) -> ssl.SSLSocket:
    """A connection to a server with the certificate in `folder`."""
    context = ssl.create_default_context(cafile=str(folder / CERTIFICATE))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname="localhost")


class Sender:
    """Sends pieces of up to `PIECE` bytes; fill `room`, then say how much of it to `send`."""

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._peer = peer
        self._buffer = bytearray(HEADER.size + PIECE)
        self._view = memoryview(self._buffer)
        self.room = self._view[HEADER.size :]

    def send(self, length: int) -> None:
        digest = hashlib.sha256(self.room[:length]).digest()
        HEADER.pack_into(self._buffer, 0, length, digest)
        self._peer.sendall(self._view[: HEADER.size + length])


class Receiver:
    """Receives pieces, each checked; one is good until the next is asked for."""

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._peer = peer
        self._head = memoryview(bytearray(HEADER.size))
        self._body = memoryview(bytearray(PIECE))

    def receive(self) -> memoryview:
        """The next piece, empty at the end. Raises `PipeError`."""
        fill(self._peer, self._head)
        length, digest = HEADER.unpack(self._head)
        piece = self._body[:length]
        fill(self._peer, piece)
        if hashlib.sha256(piece).digest() != digest:
            raise PipeError("a piece changed on its way")
        return piece


def fill(peer: ssl.SSLSocket, view: memoryview) -> None:
    """Receive exactly as many bytes as `view` has. Raises `PipeError`."""
    while view:
        count = peer.recv_into(view)
        if not count:
            raise PipeError("the connection ended early")
        view = view[count:]


def wait_done(peer: ssl.SSLSocket) -> None:
    """Wait until the other end says that it has something for good. Raises `PipeError`."""
    if peer.recv(1) != DONE:
        raise PipeError("no acknowledgement")


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
