"""Unauthenticated and stuck clients are disconnected in time and do not affect other clients."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error
from protocol.wire.messages.downloads import OpenedVersion, Read
from protocol.wire.messages.session import Ping, Pong
from protocol.wire.messages.session import Session as Entered
from protocol.wire.messages.uploads import PutOpen
from sfsc.keys.keyring import KeyringFile
from sfsc.session.session import Session
from sfsc.trust.state import open_client_state
from sfsd import server_keys
from sfsd.state.uploads import PER_USER
from tests.e2e.flood import Account, BlockingWire
from tests.harness import PASSPHRASE, Client, Daemon, command
from tests.opens import only_result, open_one
from tests.waiting import until
from tests.wire import GONE, Wire, any_server

LIMITS = """
[limits]
login_seconds = 3
unauthenticated = 48
unauthenticated_per_address = 24
connections = 64
connections_per_address = 16
user_connections = 40
idle_seconds = 600
write_seconds = 2
"""
ELSEWHERE = "127.0.0.2"
"""Another address of this machine, whose flood is not counted against 127.0.0.1."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Daemon]:
    """Return a daemon with short timeouts; check at the end that it printed no traceback."""
    served = Daemon(tmp_path / "root")
    served.init()
    with (served.root / "sfsd.toml").open("a") as file:
        file.write(LIMITS)
    with served:
        yield served
    output = served.log_path.read_text()
    assert "Traceback" not in output, output
    assert "ERROR" not in output, output


@pytest.fixture
def carol(guarded: Daemon, tmp_path: Path) -> Client:
    return guarded.client("carol", tmp_path / "carol")


def connections(daemon: Daemon) -> int:
    """Return the number of connections besides the operator's own."""
    told = json.loads(daemon.run("status", "--json").text)
    return int(told["connections"]) - 1


HALF = struct.pack(">I", 4000) + b"\x95\x11"
GARBAGE = bytes(range(256)) * 400
OVERSIZED = struct.pack(">I", 2**31)


async def rude(address: str, data: bytes, *, tls: bool) -> None:
    """Send `data` without a login, and check that the server disconnects soon."""
    async with await Wire.connect(address, any_server() if tls else None) as wire:
        try:
            await wire.send(data)
        except GONE:
            pass
        await wire.ended(15)


def test_unauthenticated_clients_are_disconnected(guarded: Daemon, carol: Client) -> None:
    """Slow and silent clients, half a frame, garbage, too long a frame; with and without TLS."""

    async def run() -> None:
        tries = [(data, tls) for data in (b"", HALF, GARBAGE, OVERSIZED) for tls in (True, False)]
        await asyncio.gather(*(rude(guarded.address, data, tls=tls) for data, tls in tries))

    asyncio.run(run())
    assert connections(guarded) == 0
    carol.run("ls")


def test_slow_bytes_do_not_extend_the_deadline(guarded: Daemon) -> None:
    async def run() -> bool:
        """Return whether the client is disconnected in a third of the time that its bytes take."""
        async with await Wire.welcomed(guarded.address) as wire:
            _, pieces = wire.connection.request(wire.login(SigningKey.generate(), b"", b""))
            for byte in b"".join(pieces)[:-1]:
                try:
                    await wire.send(bytes([byte]))
                    await wire.ended(0.1)
                except TimeoutError:
                    continue
                except GONE:
                    pass
                return True
        return False

    assert asyncio.run(run())


def test_only_tls_1_3(guarded: Daemon, carol: Client) -> None:
    context = any_server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def run() -> str | None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Wire.connect(guarded.address, context)
        async with await Wire.connect(guarded.address, any_server()) as wire:
            found: ssl.SSLObject = wire.writer.get_extra_info("ssl_object")
            return found.version()

    assert asyncio.run(run()) == "TLSv1.3"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux only")
def test_a_flood_from_one_address_does_not_block_others(guarded: Daemon, carol: Client) -> None:
    async def run() -> None:
        held = [await Wire.connect(guarded.address, None, ELSEWHERE) for _ in range(100)]
        # Each from the thirteenth on took the place of the oldest one.
        for wire in held[:88]:
            assert await wire.ended(5) == b""
        await asyncio.to_thread(carol.run, "ls")
        for wire in held:
            await wire.close()

    asyncio.run(run())
    carol.run("ls")


def test_sessions_of_one_address_are_limited(guarded: Daemon, carol: Client) -> None:
    account = Account(guarded, carol, PASSPHRASE)
    entered = [BlockingWire.log_in(account) for _ in range(17)]
    assert all(isinstance(reply, Entered) for _, reply in entered[:16])
    refused, reply = entered.pop()
    assert isinstance(reply, Error)
    assert reply.code == "busy"
    refused.close()
    told = carol.run("ls", code=7)
    assert "your address has as many connections as the server allows" in told.stderr
    assert connections(guarded) == 16, "the operator is not affected"
    for wire, _ in entered:
        assert isinstance(wire.ask(Ping()), Pong)
    entered.pop()[0].close()
    until(lambda: connections(guarded) == 15)
    carol.run("ls")
    for wire, _ in entered:
        wire.close()


def test_refused_logins_are_logged_together(guarded: Daemon) -> None:
    keys = server_keys.load(guarded.root / "keys")

    async def refuse() -> None:
        async with await Wire.welcomed(guarded.address) as wire:
            stranger = SigningKey.generate()
            reply = await wire.ask(wire.login(stranger, keys.server_id, keys.spki_sha256))
            assert isinstance(reply, Error)
            assert reply.code == "refused"
            assert await wire.ended(5) == b""

    async def run() -> None:
        for _ in range(30):
            await refuse()

    asyncio.run(run())
    assert guarded.stop() == 0
    entries = [json.loads(line) for line in guarded.run("audit", "log", "--json").lines]
    refusals = [entry["detail"] for entry in entries if entry["op"] == "refused"]
    assert len(refusals) <= 2, "one a minute"
    assert sum(detail["count"] for detail in refusals) == 30
    assert {detail["address"] for detail in refusals} == {"127.0.0.1"}
    assert "operator" in refusals[0]["users"]
    guarded.run("audit", "verify")
    guarded.start()


def test_a_client_that_reads_no_replies_is_disconnected(
    guarded: Daemon, carol: Client, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(12 * 1024 * 1024))
    carol.run("put", "big", cwd=tmp_path)
    with sfsc.connect(carol.home, passphrase=PASSPHRASE) as store:
        file_id = store.stat("big").file_id
    keyring = KeyringFile.unlock(carol.home / "keyring", PASSPHRASE).contents
    key, device = SigningKey.from_seed(keyring.device.sign_seed), keyring.device.device_id
    spki = server_keys.load(guarded.root / "keys").spki_sha256

    async def run() -> None:
        async with await Wire.welcomed(guarded.address) as wire:
            login = wire.login(key, keyring.server_id, spki, user="carol", device_id=device)
            entered = await wire.ask(login)
            assert isinstance(entered, Entered)
            opened = only_result(await wire.ask(open_one("carol", file_id)))
            assert isinstance(opened, OpenedVersion)
            # Requests 500 MiB and reads not one byte of it.
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(500):
                offset = number % 12 * 1024 * 1024
                _, pieces = wire.connection.request(Read(opened.handle, offset, 1024 * 1024))
                wire.writer.write(b"".join(pieces))
            await asyncio.to_thread(carol.run, "get", "big", "-o", tmp_path / "out")
            assert (tmp_path / "out").stat().st_size == 12 * 1024 * 1024
            async with asyncio.timeout(30):
                while await asyncio.to_thread(connections, guarded):
                    pass  # each check is a separate process

    before = resident(guarded)
    asyncio.run(run())
    assert resident(guarded) - before < 100 * 1024 * 1024
    carol.run("ls")


def resident(daemon: Daemon) -> int:
    """Return the daemon's peak memory in bytes; 0 if the system does not report it."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status")
    if not status.exists():
        return 0
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's limit")
def test_a_client_at_its_file_limit_does_not_block_others(tmp_path: Path) -> None:
    """With few file descriptors, those for the log must never run out."""
    few = ("sh", "-c", 'ulimit -n 128; exec "$@"', "sh", *command("sfsd"))
    daemon = Daemon(tmp_path / "root", program=few)
    daemon.init()
    with daemon:
        assert "at most 32 connections" in daemon.log_path.read_text()
        mallory, carol = (daemon.client(name, tmp_path / name) for name in ("mallory", "carol"))
        (tmp_path / "file").write_bytes(b"x" * 4096)
        keyring = KeyringFile.unlock(mallory.home / "keyring", PASSPHRASE)
        with open_client_state(mallory.home, keyring) as state:
            session = Session(keyring.contents, state)
            session.connect()
            asked = PutOpen("mallory", "0" * 32, 16 * 1024 * 1024)
            answers = [session.ask(asked) for _ in range(PER_USER)]
            refused = [one.code for one in answers if isinstance(one, Error)]
            assert 0 < len(refused) < PER_USER
            assert set(refused) == {"busy"}
            carol.run("put", "file", cwd=tmp_path)
            carol.run("get", "file", "-o", tmp_path / "out")
            session.close()
        assert (tmp_path / "out").read_bytes() == b"x" * 4096
        assert json.loads(daemon.run("status", "--json").text)["failed"] == ""
