"""Waiting for sockets, and for time."""

from __future__ import annotations

import socket
import time

import pytest

from sfsc.session.waiting import Blocking


@pytest.mark.parametrize("writing", [False, True])
def test_a_wait_ends_when_the_socket_has_bytes_or_takes_some(writing: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waits = Blocking().for_socket(ours)
        assert waits.wait(writing=writing, seconds=0.01) == writing
        theirs.send(b"x")
        assert waits.wait(writing=writing, seconds=30.0)
        assert waits.wait(writing=writing, seconds=-1.0)
        waits.close()
        waits.close()


def test_a_pause_takes_its_time() -> None:
    began = time.monotonic()
    Blocking().pause(0.02)
    assert time.monotonic() - began >= 0.02
