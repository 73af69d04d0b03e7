"""The client for asyncio::

    import sfsc.aio

    async with sfsc.aio.connect() as store:
        await store.put("report.pdf", name="docs/report.pdf")
        await store.get("docs/report.pdf", "copy.pdf")

It needs the package greenlet: ``pip install 'sealed-file-store[aio]'``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sfsc.aio.store import ProgressOnLoop, Reader, Store, Transaction
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home
from sfsc.store import Store as BlockingStore

if TYPE_CHECKING:
    from sfsc.session.limits import Timeouts
    from sfsc.session.progress import Progress
    from sfsc.session.waiting import Waiting

__all__ = ["Reader", "Store", "Transaction", "connect"]


def connect(
    home: Home = None,
    *,
    passphrase: Passphrase = None,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    auto_rotate: bool | None = None,
    min_wrap_alg: str | None = None,
    limit_rate: int | None = None,
) -> Store:
    """Return a store that connects when it is entered: ``async with sfsc.aio.connect() as store``.

    Arguments and errors are those of `sfsc.connect`; entering raises the errors. A function
    `passphrase` is called on the thread of the store, `progress` on the event loop.
    """

    def opened(waiting: Waiting, loop: asyncio.AbstractEventLoop) -> BlockingStore:
        where = home_folder(home)
        return BlockingStore(
            unlock_home(where, passphrase),
            where,
            timeouts,
            None if progress is None else ProgressOnLoop(loop, progress),
            auto_rotate=auto_rotate,
            min_wrap_alg=min_wrap_alg,
            limit_rate=limit_rate,
            waiting=waiting,
        )

    return Store(opened)
