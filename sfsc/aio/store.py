"""`Store` for asyncio: the methods of `sfsc.Store`, to be awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from protocol.codec.values import Mutable
from sfsc import store
from sfsc.aio.core import Core, OnLoop, finished, suspend
from sfsc.errors import SfscError, UsageError
from sfsc.files.transaction import Transaction as BlockingTransaction
from sfsc.session.progress import Progress
from sfsc.transfer.download import Got, Target
from sfsc.transfer.reader import Reader as RemoteReader

if TYPE_CHECKING:
    from sfsc.files.transaction import Changed
    from sfsc.session.waiting import Waiting
    from sfsc.transfer.source import Source

Blocking = store.Store
_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")
_TOGETHER: Final = 1024
"""Files that are fetched together: a few requests, which are sent without waiting for each."""
_AHEAD: Final = 256
"""Entries of a listing that are taken together: handing over each would cost more than it."""


class _Awaited(Generic[_Params, _Result]):
    """Descriptor: a method of the blocking store, to be awaited."""

    def __init__(self, method: Callable[Concatenate[Blocking, _Params], _Result]) -> None:
        self.__wrapped__ = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, opened: None, owner: object) -> Self: ...
    @overload
    def __get__(
        self, opened: Store, owner: object
    ) -> Callable[_Params, Coroutine[Any, Any, _Result]]: ...
    def __get__(
        self, opened: Store | None, owner: object
    ) -> Self | Callable[_Params, Coroutine[Any, Any, _Result]]:
        if opened is None:
            return self

        @functools.wraps(self.__wrapped__)
        async def called(*arguments: _Params.args, **options: _Params.kwargs) -> _Result:
            return await opened.call(self.__wrapped__, *arguments, **options)

        return called


class _Iterated(Generic[_Params, _Item]):
    """Descriptor: a method of the blocking store that returns an iterator, as an asynchronous
    iterator. `ahead` items are taken at once."""

    def __init__(
        self,
        method: Callable[Concatenate[Blocking, _Params], Iterator[_Item]],
        ahead: int = 1,
    ) -> None:
        self.__wrapped__ = method
        self.__doc__ = method.__doc__
        self._ahead = ahead

    @overload
    def __get__(self, opened: None, owner: object) -> Self: ...
    @overload
    def __get__(
        self, opened: Store, owner: object
    ) -> Callable[_Params, AsyncGenerator[_Item, None]]: ...
    def __get__(
        self, opened: Store | None, owner: object
    ) -> Self | Callable[_Params, AsyncGenerator[_Item, None]]:
        if opened is None:
            return self

        @functools.wraps(self.__wrapped__)
        async def called(
            *arguments: _Params.args, **options: _Params.kwargs
        ) -> AsyncGenerator[_Item, None]:
            items = await opened.call(self.__wrapped__, *arguments, **options)
            try:
                taken = _Taken[_Item]([], False, None)
                while not taken.ended:
                    taken = await opened.call(lambda _store: _take(items, self._ahead))
                    for item in taken.items:
                        yield item
                if taken.failure is not None:
                    raise taken.failure
            finally:
                if opened.is_open and inspect.isgenerator(items):
                    await opened.call(lambda _store: items.close())

        return called


class _Taken(Mutable, Generic[_Item]):
    """Items that an iterator has yielded; whether it has `ended`, and by which error."""

    items: list[_Item]
    ended: bool
    failure: BaseException | None


def _take(items: Iterator[_Item], most: int) -> _Taken[_Item]:
    """Return the next items, at most `most`, and whether these were the last ones."""
    taken = _Taken[_Item]([], False, None)
    try:
        while len(taken.items) < most:
            taken.items.append(next(items))
    except StopIteration:
        taken.ended = True
    except SfscError as exc:
        taken.ended, taken.failure = True, exc
    return taken


class _Asked(Mutable):
    """A `get` that waits to be done with others."""

    name: str
    target: Target | None
    done: asyncio.Future[Got]
    batch: asyncio.Future[None] | None = None


class Store:
    """One account on its server, for the tasks of one event loop; made by `connect`.

    ::

        async with sfsc.aio.connect() as store:
            await store.put("report.pdf", name="docs/report.pdf")
            async for entry in store.ls("docs/"):
                print(entry.name, entry.size)

    The methods are those of `sfsc.Store`, with the same arguments, results and errors. Those that
    return an iterator there return an asynchronous one: end it with `contextlib.aclosing` if you
    leave the loop early. Cryptography and files are worked on by a thread of the store, and the
    event loop waits for the network. Streams that are read from or written to are used on that
    thread; `skip` and `progress` are called on the event loop.

    Several tasks may use one store. Its calls take turns, and iterators do so with each item. Many
    calls of `get` that wait are done together. Open a store more for what must not wait for a long
    transfer.

    A task may be cancelled wherever it waits. Then the call is undone as if the connection were
    lost: files appear whole or not at all. A change that was sent already may still be made.
    """

    def __init__(self, connect: Callable[[Waiting, asyncio.AbstractEventLoop], Blocking]) -> None:
        """Use `connect`."""
        self._connect = connect
        self._blocking: Blocking | None = None
        self._core: Core | None = None
        self._turn = asyncio.Lock()
        self._asked: deque[_Asked] = deque()
        self._getting: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the store is connected, and not closed."""
        return self._blocking is not None

    async def __aenter__(self) -> Self:
        if self._core is not None:
            raise UsageError("the store is open, or was closed", "connect again")
        self._core, loop = Core(), asyncio.get_running_loop()
        try:
            self._blocking = await self._core.run(lambda: self._connect(OnLoop(), loop))
        except BaseException:
            self._core.close()
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Log out and close the connection, after the call under way. Calls that wait for their
        turn raise `UsageError`. Idempotent."""
        if self._getting is not None:
            self._getting.cancel()
        async with self._turn:
            blocking, core, self._blocking = self._blocking, self._core, None
            if blocking is not None and core is not None:
                try:
                    await core.run(blocking.close, whole=True)
                finally:
                    core.close()
        for asked in self._asked:
            if not asked.done.done():
                asked.done.set_exception(_closed())
        self._asked.clear()

    async def call(
        self,
        method: Callable[Concatenate[Blocking, _Params], _Result],
        *arguments: _Params.args,
        **options: _Params.kwargs,
    ) -> _Result:
        """Return the result of a function that is given the blocking store, and these arguments; it
        runs on the thread of this store, in turn."""
        skip = options.get("skip")
        if callable(skip):
            options["skip"] = functools.partial(_on_loop, skip)
        async with self._turn:
            blocking, core = self._opened()
            return await core.run(functools.partial(method, blocking, *arguments, **options))

    def _opened(self) -> tuple[Blocking, Core]:
        if self._blocking is None or self._core is None:
            raise _closed()
        return self._blocking, self._core

    async def get(
        self,
        name: str,
        target: Target | None = None,
        *,
        version: int | None = None,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Got:
        """Fetch a file, as `sfsc.Store.get`. Calls that wait at the same time are done together, in
        few requests."""
        alone = version is not None or not overwrite or newer
        if alone or not isinstance(target, str | Path | None):
            return await self.call(
                Blocking.get, name, target, version=version, overwrite=overwrite, newer=newer
            )
        return await self._get_with_others(name, target)

    async def read_bytes(self, name: str, *, version: int | None = None) -> bytes:
        """Return the content of a file, as `sfsc.Store.read_bytes`; calls are done together as
        those of `get`."""
        if version is not None:
            return await self.call(Blocking.read_bytes, name, version=version)
        content = io.BytesIO()
        await self._get_with_others(name, content)
        return content.getvalue()

    async def _get_with_others(self, name: str, target: Target | None) -> Got:
        self._opened()
        asked = _Asked(name, target, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._getting is None or self._getting.done():
            self._getting = asyncio.create_task(self._get_asked())
        try:
            return await asked.done
        except asyncio.CancelledError:
            if asked.batch is not None:
                await finished(asked.batch)  # it ends too, and leaves nothing half done
            raise

    async def _get_asked(self) -> None:
        """Do the calls of `get` that wait, until there is none."""
        while self._asked:
            async with self._turn:
                some = [self._asked.popleft() for _ in range(min(len(self._asked), _TOGETHER))]
                await self._get_together([one for one in some if not one.done.done()])

    async def _get_together(self, asked: list[_Asked]) -> None:
        """Do some calls of `get`. If one of them is cancelled meanwhile, the others that are not
        done wait again."""
        blocking, core = self._opened()
        done = deque[tuple[int, Got | SfscError]]()

        def fetch() -> None:
            done.extend(blocking.get_each([(one.name, one.target) for one in asked]))

        def report() -> None:
            while done:
                index, outcome = done.popleft()
                _finish(asked[index].done, outcome)

        batch = asyncio.ensure_future(core.run(fetch, between=report))

        def stop(one: asyncio.Future[Got]) -> None:
            if one.cancelled():
                batch.cancel()

        for one in asked:
            one.batch = batch
            one.done.add_done_callback(stop)
        try:
            cancelled = await finished(batch, cancel=True)
        finally:
            for one in asked:
                one.done.remove_done_callback(stop)
        left = [one for one in asked if not one.done.done()]
        if batch.cancelled():
            self._asked.extendleft(reversed(left))
        elif (error := batch.exception()) is not None:
            for one in left:
                one.done.set_exception(error)
        if cancelled is not None:
            raise cancelled

    def open(self, name: str, *, version: int | None = None) -> _Opening:
        """Open a file for reading, as `sfsc.Store.open`: ``async with store.open(name) as file``,
        or ``file = await store.open(name)``."""
        return _Opening(self, lambda blocking: blocking.open(name, version=version))

    def open_shared(
        self,
        owner: str,
        name: str,
        *,
        version: int | None = None,
        file_id: str | None = None,
        trust_first_use: bool = False,
    ) -> _Opening:
        """Open a file that `owner` shares, as `open` does; arguments as in `sfsc.Store`."""

        def opened(blocking: Blocking) -> io.BufferedReader:
            return blocking.open_shared(
                owner, name, version=version, file_id=file_id, trust_first_use=trust_first_use
            )

        return _Opening(self, opened)

    def transaction(self) -> Transaction:
        """Return a transaction, as `sfsc.Store.transaction`: ``async with store.transaction() as
        change: await change.put(...)``."""
        return Transaction(self)

    put: Final = _Awaited(Blocking.put)
    put_command: Final = _Awaited(Blocking.put_command)
    put_many: Final = _Iterated(Blocking.put_many)
    write_bytes: Final = _Awaited(Blocking.write_bytes)
    put_tree: Final = _Iterated(Blocking.put_tree)
    get_each: Final = _Iterated(Blocking.get_each)
    get_many: Final = _Iterated(Blocking.get_many)
    get_tree: Final = _Iterated(Blocking.get_tree)
    sync: Final = _Iterated(Blocking.sync)
    ls: Final = _Iterated(Blocking.ls, _AHEAD)
    trash: Final = _Awaited(Blocking.trash)
    stat: Final = _Awaited(Blocking.stat)
    exists: Final = _Awaited(Blocking.exists)
    du: Final = _Awaited(Blocking.du)
    mkdir: Final = _Awaited(Blocking.mkdir)
    rmdir: Final = _Awaited(Blocking.rmdir)
    rm: Final = _Awaited(Blocking.rm)
    rm_many: Final = _Iterated(Blocking.rm_many)
    rm_tree: Final = _Iterated(Blocking.rm_tree)
    mv: Final = _Awaited(Blocking.mv)
    mv_many: Final = _Iterated(Blocking.mv_many)
    mv_tree: Final = _Iterated(Blocking.mv_tree)
    history: Final = _Awaited(Blocking.history)
    restore: Final = _Awaited(Blocking.restore)
    restore_many: Final = _Iterated(Blocking.restore_many)
    restore_tree: Final = _Iterated(Blocking.restore_tree)
    export_dek: Final = _Awaited(Blocking.export_dek)
    prune: Final = _Awaited(Blocking.prune)
    prune_tree: Final = _Iterated(Blocking.prune_tree)
    purge: Final = _Awaited(Blocking.purge)
    purge_many: Final = _Iterated(Blocking.purge_many)
    purge_tree: Final = _Iterated(Blocking.purge_tree)
    purge_trash: Final = _Iterated(Blocking.purge_trash)
    give_up_damaged: Final = _Awaited(Blocking.give_up_damaged)
    share: Final = _Awaited(Blocking.share)
    share_tree: Final = _Iterated(Blocking.share_tree)
    unshare: Final = _Awaited(Blocking.unshare)
    unshare_tree: Final = _Iterated(Blocking.unshare_tree)
    readers: Final = _Awaited(Blocking.readers)
    shares: Final = _Iterated(Blocking.shares, _AHEAD)
    padding: Final = _Awaited(Blocking.padding)
    set_padding: Final = _Awaited(Blocking.set_padding)
    shared_folders: Final = _Awaited(Blocking.shared_folders)
    inbox: Final = _Awaited(Blocking.inbox)
    leave: Final = _Awaited(Blocking.leave)
    block: Final = _Awaited(Blocking.block)
    unblock: Final = _Awaited(Blocking.unblock)
    blocked: Final = _Awaited(Blocking.blocked)
    stat_shared: Final = _Awaited(Blocking.stat_shared)
    shared_history: Final = _Awaited(Blocking.shared_history)
    get_shared: Final = _Awaited(Blocking.get_shared)
    person: Final = _Awaited(Blocking.person)
    verify_person: Final = _Awaited(Blocking.verify_person)
    proof_of: Final = _Awaited(Blocking.proof_of)
    audit_log: Final = _Iterated(Blocking.audit_log, _AHEAD)
    audit_verify: Final = _Awaited(Blocking.audit_verify)
    audit_compare: Final = _Awaited(Blocking.audit_compare)
    checkpoint: Final = _Awaited(Blocking.checkpoint)
    rotation_plan: Final = _Awaited(Blocking.rotation_plan)
    rotation_is_due: Final = _Awaited(Blocking.rotation_is_due)
    rotate: Final = _Awaited(Blocking.rotate)
    verify_rotation: Final = _Awaited(Blocking.verify_rotation)
    devices: Final = _Awaited(Blocking.devices)
    label_device: Final = _Awaited(Blocking.label_device)
    backup: Final = _Awaited(Blocking.backup)
    has_recovery: Final = _Awaited(Blocking.has_recovery)
    check_recovery: Final = _Awaited(Blocking.check_recovery)
    set_recovery: Final = _Awaited(Blocking.set_recovery)
    whoami: Final = _Awaited(Blocking.whoami)
    status: Final = _Awaited(Blocking.status)
    check_content: Final = _Awaited(Blocking.check_content)
    server_time: Final = _Awaited(Blocking.server_time)
    rotation_due: Final = _Awaited(Blocking.rotation_due)
    distrust_evidence: Final = _Awaited(Blocking.distrust_evidence)

    @property
    def link(self) -> str:
        """Link to this account, as `sfsc.Store.link`."""
        return self._opened()[0].link


class Reader:
    """An open file: `name`, `version` and `size` (bytes) as it was when it was opened."""

    def __init__(self, opened: Store, file: io.BufferedReader) -> None:
        """Use `Store.open`."""
        self._store = opened
        self._file = file

    @property
    def name(self) -> str:
        """Name of the file."""
        return self._remote.name

    @property
    def version(self) -> int:
        """Version that is read."""
        return self._remote.version

    @property
    def size(self) -> int:
        """Size of the content in bytes."""
        return self._remote.size

    @property
    def _remote(self) -> RemoteReader:
        return cast(RemoteReader, self._file.raw)

    async def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`, or all that are left; empty at the end. Raises
        `NetworkError`, and `Tampered` for what is not what was signed."""
        return await self._store.call(lambda _store: self._file.read(size))

    async def readline(self, size: int = -1, /) -> bytes:
        """Return the next line, with its end; empty at the end. Raises as `read`."""
        return await self._store.call(lambda _store: self._file.readline(size))

    async def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a position, as `io.IOBase.seek`; return it."""
        return await self._store.call(lambda _store: self._file.seek(offset, whence))

    async def tell(self) -> int:
        """Return the position in bytes."""
        return await self._store.call(lambda _store: self._file.tell())

    async def close(self) -> None:
        """Discard what was requested ahead. Idempotent."""
        if self._store.is_open:
            await self._store.call(lambda _store: self._file.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class _Opening:
    """A file that `Store.open` is about to open: awaited, or entered, for the `Reader`."""

    def __init__(self, opened: Store, file: Callable[[Blocking], io.BufferedReader]) -> None:
        self._store = opened
        self._open = file
        self._reader: Reader | None = None

    def __await__(self) -> Generator[Any, None, Reader]:
        return self._opened().__await__()

    async def _opened(self) -> Reader:
        self._reader = Reader(self._store, await self._store.call(self._open))
        return self._reader

    async def __aenter__(self) -> Reader:
        return await self._opened()

    async def __aexit__(self, *_error: object) -> None:
        if self._reader is not None:
            await self._reader.close()


class Transaction:
    """Changes that are made together or not at all; see `sfsc.Transaction`."""

    def __init__(self, opened: Store) -> None:
        """Use `Store.transaction`."""
        self._store = opened
        self._change: BlockingTransaction

    async def __aenter__(self) -> Self:
        self._change = await self._store.call(lambda blocking: blocking.transaction().__enter__())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._store.call(lambda _store: self._change.__exit__(kind, error, traceback))

    async def put(self, name: str, source: Source, *, expected: int | None = None) -> None:
        """Store `source` as the newest version of `name`, as `sfsc.Transaction.put`."""
        await self._store.call(lambda _store: self._change.put(name, source, expected=expected))

    async def delete(self, name: str) -> None:
        """Delete `name`, as `sfsc.Transaction.delete`."""
        await self._store.call(lambda _store: self._change.delete(name))

    async def move(self, name: str, to: str) -> None:
        """Rename `name`, as `sfsc.Transaction.move`."""
        await self._store.call(lambda _store: self._change.move(name, to))

    @property
    def results(self) -> tuple[Changed, ...]:
        """The changes that were made, as `sfsc.Transaction.results`."""
        return self._change.results


def _closed() -> UsageError:
    return UsageError("the store is closed", "connect again")


def _finish(done: asyncio.Future[Got], outcome: Got | SfscError) -> None:
    if done.done():  # it was cancelled
        return
    if isinstance(outcome, SfscError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _on_loop(function: Callable[..., object], *arguments: object) -> None:
    """Call a function on the event loop, for a call that runs on the thread of the store."""

    async def called() -> None:
        function(*arguments)

    suspend(called)


class ProgressOnLoop(Progress):
    """Tells `progress` on the event loop what a call on the thread of the store reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        self._call = loop.call_soon_threadsafe
        self._progress = progress

    def expect(self, size: int) -> None:
        self._call(self._progress.expect, size)

    def advance(self, size: int) -> None:
        self._call(self._progress.advance, size)

    def expect_items(self, count: int, *, more: bool = False) -> None:
        self._call(functools.partial(self._progress.expect_items, count, more=more))

    def advance_items(self, count: int = 1) -> None:
        self._call(self._progress.advance_items, count)

    def begin_file(self, name: str, size: int | None) -> None:
        self._call(self._progress.begin_file, name, size)

    def reconnecting(self, cause: str, seconds: float) -> None:
        self._call(self._progress.reconnecting, cause, seconds)

    def reconnected(self) -> None:
        self._call(self._progress.reconnected)
