"""Serve the files of a folder over HTTP, with asyncio: GET /NAME.

All requests share one store. Those that come at the same time are fetched together. Needs the extra
[aio]. It listens on the loopback address only: whoever can connect can read the folder.

    service.py public 8080
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import unquote

import sfsc
import sfsc.aio


async def answer(store: sfsc.aio.Store, folder: str, name: str) -> bytes:
    try:
        content = await store.read_bytes(f"{folder}/{name}")
    except (sfsc.NotFound, sfsc.UsageError):
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return head.encode() + content


async def main(folder: str, port: int) -> None:
    async with sfsc.aio.connect() as store:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = (await reader.readline()).decode("latin-1").split()
            if len(request) == 3 and request[0] == "GET":
                writer.write(await answer(store, folder, unquote(request[1].lstrip("/"))))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("listening on port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
