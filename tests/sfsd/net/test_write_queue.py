"""Frames leave in the order they were put, whole, and few bytes at a time."""

from __future__ import annotations

import asyncio
import os

from protocol.codec.encoding import Buffer
from sfsd.net.write_queue import CHUNK, WriteQueue


class Pipe(asyncio.Transport):
    """A transport that sends nothing, and has room as long as its test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.sent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes)) - self.sent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == CHUNK


def test_small_frames_share_a_write_and_large_ones_keep_their_place() -> None:
    async def run() -> None:
        pipe = Pipe()
        outgoing = WriteQueue(pipe)
        large: list[Buffer] = [b"head", os.urandom(1 << 20)]
        frames: list[list[Buffer]] = [[b"one"], [b"two"], large, [b"three"], [b"four"]]
        for frame in frames:
            outgoing.put(frame)
        await asyncio.sleep(0)
        assert pipe.writes[0] == b"onetwo"
        assert pipe.writes[-1] == b"threefour"
        assert b"".join(pipe.writes) == b"onetwo" + b"".join(large) + b"threefour"
        assert max(map(len, pipe.writes)) <= CHUNK
        assert outgoing.size == sum(map(len, pipe.writes))

    asyncio.run(run())


def test_what_there_is_no_room_for_waits_and_then_goes_on_in_order() -> None:
    async def run() -> None:
        pipe = Pipe()
        outgoing = WriteQueue(pipe)
        outgoing.pause()
        data = os.urandom(CHUNK + 5)
        outgoing.put([b"head", data])
        outgoing.put([b"small"])
        await asyncio.sleep(0)
        assert pipe.writes == []
        assert outgoing.size == len(data) + 9
        outgoing.resume()
        assert b"".join(pipe.writes) == b"head" + data + b"small"

    asyncio.run(run())


def test_all_goes_to_a_transport_that_is_to_be_closed_and_none_to_one_that_is_gone() -> None:
    async def run() -> None:
        kept, gone = Pipe(), Pipe()
        for pipe in (kept, gone):
            outgoing = WriteQueue(pipe)
            outgoing.pause()
            outgoing.put([b"a" * 20_000])
            outgoing.put([b"b"])
            if pipe is kept:
                outgoing.finish()
            else:
                outgoing.drop()
                outgoing.resume()
            await asyncio.sleep(0)
        assert b"".join(kept.writes) == b"a" * 20_000 + b"b"
        assert gone.writes == []

    asyncio.run(run())
