"""Many connections to a real daemon, on blocking sockets, which cost the test little memory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

from protocol.records.invitation import parse_address
from protocol.records.records import login_body
from protocol.records.signatures import Label, SigningKey
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Message, Request
from protocol.wire.messages.session import PROTOCOL_VERSION, Login
from sfsc.keys.keyring import KeyringFile
from sfsd import server_keys
from tests.harness import Client, Daemon
from tests.wire import any_server

SECONDS = 20.0
_TLS = any_server()


def local_address(number: int) -> str:
    """Return one of 4 million addresses of this machine, not 127.0.0.1."""
    return f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def connect(address: str, source: str | None = None) -> socket.socket:
    """Connect to ``HOST:PORT`` from the local address `source`. Raises OSError."""
    bound = None if source is None else (source, 0)
    return socket.create_connection(parse_address(address), SECONDS, bound)


class Account:
    """Keys of a client's device, to log in without `sfsc`."""

    def __init__(self, daemon: Daemon, client: Client, passphrase: str | None = None) -> None:
        keyring = KeyringFile.unlock(client.home / "keyring", passphrase).contents
        self.user = keyring.user
        self.address = daemon.address
        self.server_id = keyring.server_id
        self.spki = server_keys.load(daemon.root / "keys").spki_sha256
        self.device_id = keyring.device.device_id
        self.key = SigningKey.from_seed(keyring.device.sign_seed)


class BlockingWire:
    """One TLS connection on a blocking socket, with the real client protocol."""

    def __init__(self, plain: socket.socket) -> None:
        self.tls = _TLS.wrap_socket(plain)
        self.connection = Connection(Role.CLIENT)
        self.receive()

    @classmethod
    def log_in(cls, account: Account, source: str | None = None) -> tuple[Self, Message]:
        """Connect and log in as the account; return the server's reply, too."""
        wire = cls(connect(account.address, source))
        body = login_body(
            server=account.server_id,
            spki=account.spki,
            welcome=wire.connection.welcome_sha256,
            version=PROTOCOL_VERSION,
            user=account.user,
            device_id=account.device_id,
            generation=1,
        )
        signature = account.key.sign(Label.LOGIN, body)
        login = Login(PROTOCOL_VERSION, account.user, account.device_id, 1, 0, signature)
        return wire, wire.ask(login)

    def send(self, message: Request) -> None:
        self.tls.sendall(b"".join(self.connection.request(message)[1]))

    def receive(self) -> Message:
        """Return the next message. Raises EOFError if the server has closed the connection."""
        while True:
            count = self.tls.recv_into(self.connection.get_buffer(-1))
            if count == 0:
                raise EOFError
            if received := self.connection.buffer_updated(count):
                return received[0].message

    def ask(self, message: Request) -> Message:
        self.send(message)
        return self.receive()

    def close(self) -> None:
        self.tls.close()


def memory(daemon: Daemon, field: str = "VmRSS") -> int:
    """Return resident bytes of the daemon: now, or at most since its start ("VmHWM")."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
