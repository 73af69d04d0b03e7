"""`sfsc server set`: another address of the pinned server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sfsc.keys.home import unlock_home
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell


def test_only_addresses_of_the_pinned_server_are_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SFSC_AUTO_ROTATE", "0")
    with (
        LyingServer(tmp_path / "own") as own,
        LyingServer(tmp_path / "other") as other,
        socket.socket() as silent,  # bound, and nobody listens
    ):
        shell = Shell(own.enrol("ada", key_type="x25519"), tmp_path, capsys)
        silent.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        port = own.address.rpartition(":")[2]
        named = f"localhost:{port}"

        def addresses() -> tuple[str, ...]:
            return unlock_home(shell.home, None).contents.addresses

        before = addresses()
        for given, code, said in (
            (other.address, 5, "not the pinned server"),
            (f"{named},{other.address}", 5, "not the pinned server"),
            (dead, 7, "nothing listens at"),
            ("nas.example", 2, "not an address"),
            (f"nas.example:0,{named}", 2, "not a port"),
            ("", 2, "not an address"),
            (",".join(f"host{n}:1" for n in range(17)), 2, "1 to 16"),
        ):
            assert said in shell.run("server", "set", given, code=code)[1], given
            assert addresses() == before

        shell.run("server", "set", f"{dead}, {named},{dead}")
        assert f"{dead} does not answer" in caplog.text
        assert addresses() == (dead, named)
        shell.run("status")
        assert shell.json("server", "set", named) == [{"addresses": [named]}]
        assert shell.json("whoami")[0]["address"] == named
