"""Connections of a user that wait to read get one turn of the loop together."""

from __future__ import annotations

import asyncio
from functools import partial

from sfsd.net.read_turns import ReadTurns


def test_one_connection_of_each_user_reads_in_a_turn_of_the_loop() -> None:
    async def run() -> None:
        turns, read = ReadTurns(), list[str]()
        for name in ("mallory 1", "mallory 2", "mallory 3", "alice 1"):
            turns.wait(name.split()[0], partial(read.append, name))
        assert read == []
        for expected in (["mallory 1", "alice 1"], ["mallory 2"], ["mallory 3"], []):
            read.clear()
            await asyncio.sleep(0)
            assert read == expected

    asyncio.run(run())


def test_only_a_user_with_several_connections_waits() -> None:
    turns = ReadTurns()
    assert not turns.note_bulk("alice", 1)
    assert not turns.note_bulk("alice", 1)
    assert turns.note_bulk("alice", 2)
    assert turns.note_bulk("alice", 1)
    assert not turns.note_bulk("alice", 1)
    assert not turns.note_bulk("mallory", 3)
