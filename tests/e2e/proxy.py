"""TCP proxy that breaks connections after a number of bytes, like a bad network."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_CHUNK = 64 * 1024


@dataclass
class Proxy:
    """Forwards connections to `target` (host, port).

    Connection number i is closed in both directions after the client has sent `cuts[i]` bytes, or
    with `downwards` received as many. Later connections are not cut. `accepted` counts connections.
    """

    target: tuple[str, int]
    cuts: list[int]
    downwards: bool = False
    accepted: int = 0
    threads: list[threading.Thread] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            number, self.accepted = self.accepted, self.accepted + 1
            left = self.cuts[number] if number < len(self.cuts) else None
            thread = threading.Thread(target=self._relay, args=(client, left), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket, left: int | None) -> None:
        with client, socket.create_connection(self.target) as server:
            up, down = (None, left) if self.downwards else (left, None)
            back = threading.Thread(target=_forward, args=(server, client, down), daemon=True)
            back.start()
            _forward(client, server, up)
            back.join()


def _forward(source: socket.socket, sink: socket.socket, left: int | None) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK if left is None else min(_CHUNK, left)):
            sink.sendall(chunk)
            if left is not None:
                left -= len(chunk)
                if left == 0:
                    break
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(
    address: str, cuts: list[int], *, downwards: bool = False
) -> Iterator[tuple[Proxy, str]]:
    """Yield (proxy, its HOST:PORT) in front of the server at `address`."""
    host, _, port = address.rpartition(":")
    proxy = Proxy((host, int(port)), cuts, downwards)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy, f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for each in (thread, *proxy.threads):
                each.join(10)
