"""Many `get`s of one asyncio store at once, beside the same files in one blocking call."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Final

import sfsc
import sfsc.aio
from benchmarks.measure import Work
from tests.harness import PASSPHRASE, Client

GETS: Final = 1000
SIZE: Final = 4096


def works(client: Client, scratch: Path) -> list[Work]:
    """Both sides log in, fetch `GETS` files of 4 KiB into files, and log out."""
    names = [f"gets/{number}" for number in range(GETS)]
    with sfsc.connect(client.home, passphrase=PASSPHRASE) as store:
        list(store.put_many((io.BytesIO(bytes(SIZE)), name) for name in names))

    def targets(turn: int, side: str) -> list[tuple[str, Path]]:
        folder = scratch / "gets" / f"{side}-{turn}"
        folder.mkdir(parents=True)
        return [(name, folder / str(number)) for number, name in enumerate(names)]

    async def gather(wanted: list[tuple[str, Path]]) -> None:
        async with sfsc.aio.connect(client.home, passphrase=PASSPHRASE) as opened:
            await asyncio.gather(*(opened.get(name, target) for name, target in wanted))

    def blocking(wanted: list[tuple[str, Path]]) -> None:
        with sfsc.connect(client.home, passphrase=PASSPHRASE) as opened:
            for _index, outcome in opened.get_each(wanted):
                if isinstance(outcome, sfsc.SfscError):
                    raise outcome

    return [
        Work(
            f"{GETS} gets at once, asyncio",
            GETS,
            "files",
            lambda turn: asyncio.run(gather(targets(turn, "asyncio"))),
            lambda turn: blocking(targets(turn, "blocking")),
            "get_each",
            goal=1 / 1.3,
        )
    ]
