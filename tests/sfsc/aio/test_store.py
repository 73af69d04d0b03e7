"""`sfsc.aio.Store` against a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import random
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sfsc
import sfsc.aio
from protocol.wire.messages import Reply, Request
from protocol.wire.messages.downloads import Open
from sfsc.aio.core import OnLoop
from sfsc.aio.store import Store
from sfsc.keys.home import unlock_home
from sfsc.session.waiting import SocketWait, Waiting
from tests.lying_server import LyingServer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BIG = 3 * (1 << 20) + 5
CANCELS = int(os.environ.get("SFS_CANCELS", "5"))
"""How often each kind of work is cancelled at a random time, beside each of its waits."""
Body = Callable[[Store], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("server") / "root") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada")


@pytest.fixture
def seen(server: LyingServer) -> Iterator[list[Request]]:
    """The requests that the server is sent."""
    requests: list[Request] = []

    def note(_who: object, request: Request) -> Reply | None:
        requests.append(request)
        return None

    server.intercept = note
    yield requests
    server.honest()


def with_store(home: Path, body: Body) -> None:
    async def entered() -> None:
        async with sfsc.aio.connect(home) as store:
            await body(store)

    asyncio.run(asyncio.wait_for(entered(), 60))


def stored(home: Path, **contents: bytes) -> None:
    with sfsc.connect(home) as store:
        for name, content in contents.items():
            store.put(io.BytesIO(content), name=name)


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_methods_are_those_of_the_blocking_store() -> None:
    theirs_only, ours_only = {"for_thread"}, {"call", "is_open"}
    assert public(Store) - ours_only == public(sfsc.Store) - theirs_only
    others = {"close", "link", "open", "open_shared", "transaction"}
    for name in public(sfsc.Store) - theirs_only - others:
        ours, theirs = getattr(Store, name), getattr(sfsc.Store, name)
        assert inspect.signature(
            ours.__wrapped__ if name not in ("get", "read_bytes") else ours
        ) == inspect.signature(theirs), name
        yields = "Iterator" in str(inspect.signature(theirs).return_annotation)
        assert (type(ours).__name__ == "_Iterated") == yields, name


def test_files_are_stored_listed_fetched_and_read(home: Path, tmp_path: Path) -> None:
    content = os.urandom(BIG)
    (tmp_path / "big").write_bytes(content)

    async def body(store: Store) -> None:
        put = await store.put(tmp_path / "big", name="day/big")
        await store.put(io.BytesIO(b"one\ntwo\n"), name="day/text")
        assert [entry.name async for entry in store.ls("day/")] == ["day/big", "day/text"]
        assert (await store.stat("day/big")).version == put.version == 1
        got = await store.get("day/big", tmp_path / "copy")
        assert got.path is not None
        assert got.path.read_bytes() == content
        stream = io.BytesIO()
        await store.get("day/text", stream)
        assert stream.getvalue() == b"one\ntwo\n"
        async with store.open("day/text") as file:
            assert (file.name, file.version, file.size) == ("day/text", 1, 8)
            assert await file.readline() == b"one\n"
            assert await file.tell() == 4
            assert await file.seek(1) == 1
            assert await file.read(2) == b"ne"
            assert await file.read() == b"\ntwo\n"
        big = await store.open("day/big")
        await big.seek(BIG - 5)
        assert await big.read() == content[-5:]
        await big.close()
        with pytest.raises(sfsc.NotFound):
            await store.stat("day/other")

    with_store(home, body)


def test_changes_are_made_together_or_not_at_all(home: Path) -> None:
    stored(home, **{"set/old": b"old", "set/moved": b"moved"})

    async def body(store: Store) -> None:
        async with store.transaction() as change:
            await change.put("set/new", io.BytesIO(b"new"))
            await change.delete("set/old")
            await change.move("set/moved", "set/there")
        assert [one.name for one in change.results] == ["set/new", "set/old", "set/moved"]

        async def fails() -> None:
            async with store.transaction() as change:
                await change.put("set/never", io.BytesIO(b"never"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails()
        assert [one.name async for one in store.ls("set/")] == ["set/new", "set/there"]

    with_store(home, body)


def test_gets_that_wait_are_done_together_and_fail_alone(
    home: Path, tmp_path: Path, seen: list[Request]
) -> None:
    names = [f"many/{number}" for number in range(100)]
    with sfsc.connect(home) as store:
        list(store.put_many((io.BytesIO(name.encode()), name) for name in names))
    (tmp_path / "folder").mkdir()
    wrong = {"many/none": sfsc.NotFound, "": sfsc.UsageError, "many/5": sfsc.LocalError}

    async def body(store: Store) -> None:
        seen.clear()
        gets = [store.get(name, tmp_path / name.replace("/", "-")) for name in names]
        gets.append(store.get("many/none", tmp_path / "none"))
        gets.append(store.get("", tmp_path / "empty"))
        gets.append(store.get("many/5", tmp_path / "no folder" / "five"))
        *found, missing, nameless, placeless = await asyncio.gather(*gets, return_exceptions=True)
        for name, got in zip(names, found, strict=True):
            assert isinstance(got, sfsc.Got)
            assert got.path is not None
            assert got.path.read_bytes() == got.name.encode() == name.encode()
        assert [type(one) for one in (missing, nameless, placeless)] == list(wrong.values())
        assert len([one for one in seen if isinstance(one, Open)]) <= 3
        seen.clear()
        contents = await asyncio.gather(*map(store.read_bytes, names))
        assert contents == [name.encode() for name in names]
        assert await store.read_bytes(names[0], version=1) == contents[0]
        assert len([one for one in seen if isinstance(one, Open)]) <= 3

    with_store(home, body)


def test_tasks_take_turns(home: Path, tmp_path: Path) -> None:
    stored(home, **{"turn/a": b"a"})

    async def body(store: Store) -> None:
        async def writes(number: int) -> None:
            await store.put(io.BytesIO(b"x" * number), name=f"turn/{number}")

        async def lists() -> None:
            async for entry in store.ls("turn/"):
                assert (await store.stat(entry.name)).size == entry.size

        await asyncio.gather(*(writes(number) for number in range(10)), *(lists() for _ in "abc"))
        assert len([one async for one in store.ls("turn/")]) == 11

    with_store(home, body)


def test_streams_are_used_on_the_thread_and_callbacks_on_the_loop(
    home: Path, tmp_path: Path
) -> None:
    used: dict[str, int] = {}

    class Stream(io.BytesIO):
        def readinto(self, buffer: WriteableBuffer, /) -> int:
            used["stream"] = threading.get_ident()
            return super().readinto(buffer)

    class Progress(sfsc.Progress):
        total = done = 0

        def expect(self, size: int) -> None:
            self.total += size
            used["expect"] = threading.get_ident()

        def advance(self, size: int) -> None:
            self.done += size
            used["advance"] = threading.get_ident()

    def skip(_what: str, _error: sfsc.SfscError) -> None:
        used["skip"] = threading.get_ident()

    progress = Progress()

    async def body() -> None:
        async with sfsc.aio.connect(home, progress=progress) as store:
            await store.put(Stream(bytes(BIG)), name="calls/stream")
            await store.get("calls/stream", tmp_path / "copy")
            assert [one async for one in store.rm_many(["calls/none"], skip=skip)] == []
            await asyncio.sleep(0)

    asyncio.run(body())
    loop = threading.get_ident()
    assert used.pop("stream") != loop
    assert used == {"expect": loop, "advance": loop, "skip": loop}
    assert progress.done >= BIG


def test_an_iterator_that_is_left_ends_its_work(server: LyingServer, home: Path) -> None:
    async def body(store: Store) -> None:
        def sources() -> Iterator[tuple[io.BytesIO, str]]:
            for number in range(40):
                yield io.BytesIO(bytes(300_000)), f"left/{number:02}"

        async with contextlib.aclosing(store.put_many(sources())) as puts:
            async for _put in puts:
                break
        left = [one async for one in store.ls("left/")]
        assert 1 <= len(left) < 40
        assert not server.context.uploads._uploads
        with pytest.raises(sfsc.NotFound):
            async for _entry in store.rm_many(["left/none"]):
                pass

    with_store(home, body)


def test_a_closed_store_refuses_calls_and_ends_those_that_wait(home: Path, tmp_path: Path) -> None:
    stored(home, closed=b"closed")

    async def body() -> None:
        store = sfsc.aio.connect(home)
        with pytest.raises(sfsc.UsageError, match="closed"):
            await store.stat("closed")
        async with store:
            waiting = [
                asyncio.create_task(store.get("closed", tmp_path / f"{number}"))
                for number in range(3)
            ]
            await asyncio.sleep(0)
            await store.close()
            for task in waiting:
                with contextlib.suppress(sfsc.UsageError):
                    assert (await task).size == 6
        await store.close()
        with pytest.raises(sfsc.UsageError, match="closed"):
            await store.get("closed", tmp_path / "again")
        with pytest.raises(sfsc.UsageError, match="was closed"):
            await store.__aenter__()

    asyncio.run(body())
    for thread in [one for one in threading.enumerate() if one.name.startswith("sfsc-aio")]:
        thread.join(30)
        assert not thread.is_alive()


def test_a_lost_connection_is_opened_again(server: LyingServer, home: Path) -> None:
    async def body(store: Store) -> None:
        await store.put(io.BytesIO(b"before"), name="lost/file")
        await asyncio.to_thread(server.stop)
        again = asyncio.create_task(store.stat("lost/file"))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(server.start)
        assert (await again).version == 1

    with_store(home, body)


class _Counting(OnLoop):
    """Cancels the task `target` when it begins to wait for the time `last`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.target: asyncio.Task[object] | None = None
        self.left = -1
        self.connections = 0

    def for_socket(self, connected: socket.socket) -> SocketWait:
        self.connections += isinstance(connected, ssl.SSLSocket)
        return _CountingSocket(self, super().for_socket(connected))


class _CountingSocket:
    def __init__(self, counting: _Counting, waits: SocketWait) -> None:
        self._counting = counting
        self._waits = waits

    def wait(self, *, writing: bool, seconds: float) -> bool:
        counting = self._counting
        if counting.target is not None:
            counting.left -= 1
            if counting.left == 0:
                counting.loop.call_soon_threadsafe(counting.target.cancel)
        return self._waits.wait(writing=writing, seconds=seconds)

    def close(self) -> None:
        self._waits.close()


def counting_store(home: Path) -> tuple[Store, Callable[[], _Counting]]:
    made: list[_Counting] = []

    def connect(_waiting: Waiting, loop: asyncio.AbstractEventLoop) -> sfsc.Store:
        made.append(_Counting(loop))
        return sfsc.Store(unlock_home(home, None), home, waiting=made[0])

    return Store(connect), lambda: made[0]


async def puts_tree(store: Store, folder: Path) -> None:
    async with contextlib.aclosing(store.put_tree(folder / "source", name="cut/tree")) as puts:
        async for _put in puts:
            pass


async def gets_tree(store: Store, folder: Path) -> None:
    async with contextlib.aclosing(store.get_tree("cut/given", folder / "target")) as gets:
        async for _got in gets:
            pass


async def gets_many(store: Store, folder: Path) -> None:
    names = [f"cut/given/{number}" for number in range(8)]
    await asyncio.gather(*(store.get(name, folder / "target") for name in names))


async def changes(store: Store, folder: Path) -> None:
    async with store.transaction() as change:
        await change.put("cut/set/a", folder / "source" / "big")
        await change.put("cut/set/b", folder / "source" / "3")


Work = Callable[[Store, Path], Coroutine[Any, Any, None]]


@pytest.mark.parametrize("work", [puts_tree, gets_tree, gets_many, changes])
def test_cancelling_at_any_wait_leaves_nothing_half_done(
    server: LyingServer, tmp_path: Path, work: Work
) -> None:
    home = server.enrol(f"cut-{work.__name__.replace('_', '-')}")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    contents = {str(number): bytes([number]) * 3000 for number in range(8)}
    contents["big"] = os.urandom(BIG)
    for name, content in contents.items():
        (source / name).write_bytes(content)
    with sfsc.connect(home) as blocking:
        list(blocking.put_tree(source, name="cut/given"))

    async def cut(store: Store, counting: _Counting, waits: int, seconds: float | None) -> bool:
        """Cancel the work at one of its waits, or after some time; return whether it was."""
        task = asyncio.create_task(work(store, tmp_path))
        counting.target, counting.left = task, waits
        try:
            await asyncio.wait((task,), timeout=seconds)
            task.cancel()
            await asyncio.wait((task,))
        finally:
            counting.target = None
        if not task.cancelled():
            task.result()
        return task.cancelled()

    async def check(store: Store) -> None:
        for path in [one for one in target.rglob("*") if one.is_file()]:
            assert path.read_bytes() == contents[path.name]
            path.unlink()
        names = [entry.name async for entry in store.ls("cut/set/")]
        assert names in ([], ["cut/set/a", "cut/set/b"])
        whole = [entry async for entry in store.ls("cut/tree/") if entry.kind == "file"]
        for entry in whole:
            assert entry.size == len(contents[entry.name.rpartition("/")[2]])
        gone = [*names, *(entry.name for entry in whole)]
        assert [name async for name in store.rm_many(gone)] == gone
        assert not server.context.uploads._uploads

    async def body() -> None:
        store, counting = counting_store(home)
        async with store:
            waits, loop = 1, asyncio.get_running_loop()
            began = loop.time()
            while await cut(store, counting(), waits, None):
                await check(store)
                waits, began = waits + 1, loop.time()
            took = loop.time() - began
            assert waits > 1
            chosen = random.Random(1)
            for _ in range(CANCELS):
                await check(store)
                await cut(store, counting(), -1, chosen.uniform(0.0, took))
            await check(store)
            assert counting().connections == 1

    asyncio.run(asyncio.wait_for(body(), 600))
