"""The limit of small requests: answers of a fixed size over the same TLS, and none of the product.

An asyncio server, as the product's daemon is one: whoever sends `REQUEST` bytes is answered with
`ANSWER` bytes, as many as a Stat and the answer to it have of a file with one reader. What has come
together is answered together.

    python -m benchmarks.bare_echo FOLDER     prints the port, serves until terminated
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

from benchmarks.bare_wire import make_certificate, server_context

REQUEST, ANSWER = 48, 1788


class Echo(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self) -> None:
        self._received = memoryview(bytearray(64 * REQUEST))
        self._count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio names it
        return self._received[self._count :]

    def buffer_updated(self, nbytes: int) -> None:
        whole, rest = divmod(self._count + nbytes, REQUEST)
        self._count = rest
        if whole:
            self._transport.write(bytes(whole * ANSWER))


async def serve(folder: Path) -> None:
    """For ever, on a port of the system's choice."""
    make_certificate(folder)
    server = await asyncio.get_running_loop().create_server(
        Echo, "127.0.0.1", 0, ssl=server_context(folder)
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
