"""A simulated server, and a user with an open session on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.records.invitation import parse_invitation
from sfsc.account import enrol
from sfsc.keys.home import unlock_home
from sfsc.session.limits import Timeouts
from sfsc.session.session import Session
from sfsc.session.waiting import Blocking
from sfsc.trust.state import open_client_state
from tests.sfsc.simulator import Simulator, running_simulator

QUICK = Timeouts(connect=30.0, opening=30.0, idle=30.0)


class Impatient(Blocking):
    """Never pauses between attempts."""

    def pause(self, seconds: float) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Simulator]:
    with running_simulator(tmp_path) as simulator:
        yield simulator


@pytest.fixture
def home(server: Simulator, tmp_path: Path) -> Path:
    """The folder of ada's keys; ada is enrolled."""
    folder = tmp_path / "home"
    invitation = parse_invitation(server.invitation("ada"))
    enrol.enrol_account(invitation, folder, "x25519", None, timeouts=QUICK)
    return folder


@pytest.fixture
def session(home: Path) -> Iterator[Session]:
    """Ada's session, which reconnects without a pause."""
    yield from opened(home)


@pytest.fixture
def other(home: Path) -> Iterator[Session]:
    """Ada on another machine: the same keys, nothing remembered."""
    elsewhere = home.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "keyring").write_bytes((home / "keyring").read_bytes())
    yield from opened(elsewhere)


def opened(home: Path) -> Iterator[Session]:
    file = unlock_home(home, None)
    with open_client_state(home, file) as state:
        session = Session(file.contents, state, QUICK, waiting=Impatient())
        session.connect()
        yield session
        session.close()
