"""The write queue keeps the order of frames and writes few bytes at a time."""

from __future__ import annotations

import asyncio
import os

from protocol.codec.encoding import Buffer
from sfsd.net.write_queue import CHUNK, WriteQueue


class Pipe(asyncio.Transport):
    """Transport that records its writes and sends nothing."""

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


def test_small_frames_share_a_write_and_order_is_kept() -> None:
    async def run() -> None:
        pipe = Pipe()
        queue = WriteQueue(pipe)
        large: list[Buffer] = [b"head", os.urandom(1 << 20)]
        frames: list[list[Buffer]] = [[b"one"], [b"two"], large, [b"three"], [b"four"]]
        for frame in frames:
            queue.put(frame)
        await asyncio.sleep(0)
        assert pipe.writes[0] == b"onetwo"
        assert pipe.writes[-1] == b"threefour"
        assert b"".join(pipe.writes) == b"onetwo" + b"".join(large) + b"threefour"
        assert max(map(len, pipe.writes)) <= CHUNK
        assert queue.size == sum(map(len, pipe.writes))

    asyncio.run(run())


def test_paused_queue_writes_nothing_until_resumed() -> None:
    async def run() -> None:
        pipe = Pipe()
        queue = WriteQueue(pipe)
        queue.pause()
        data = os.urandom(CHUNK + 5)
        queue.put([b"head", data])
        queue.put([b"small"])
        await asyncio.sleep(0)
        assert pipe.writes == []
        assert queue.size == len(data) + 9
        queue.resume()
        assert b"".join(pipe.writes) == b"head" + data + b"small"

    asyncio.run(run())


def test_finish_writes_everything_and_drop_writes_nothing() -> None:
    async def run() -> None:
        kept, gone = Pipe(), Pipe()
        for pipe in (kept, gone):
            queue = WriteQueue(pipe)
            queue.pause()
            queue.put([b"a" * 20_000])
            queue.put([b"b"])
            if pipe is kept:
                queue.finish()
            else:
                queue.drop()
                queue.resume()
            await asyncio.sleep(0)
        assert b"".join(kept.writes) == b"a" * 20_000 + b"b"
        assert gone.writes == []

    asyncio.run(run())
