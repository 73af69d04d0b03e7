"""64 clients with one small request each, beside one client with 64 requests under way, and both
beside bare connections that send and get as many bytes.

All are driven by this one thread, so that all cost the asking side the same. The request is Stat
of one file: authorised and answered from what the daemon has in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Final, Self

from benchmarks.bare_echo import ANSWER, REQUEST
from benchmarks.bare_wire import dial, fill
from benchmarks.measure import Work
from protocol.wire.messages.files import Stat, Stated
from sfsc.closing import Closing
from sfsc.keys.home import home_folder, unlock_home
from sfsc.session.session import Session
from sfsc.transfer.upload import Uploads
from sfsc.trust.state import open_client_state
from tests.harness import PASSPHRASE

CLIENTS: Final = 64
ROUNDS: Final = 100
_NAME: Final = "asked-for"


class Clients(Closing):
    """`CLIENTS` sessions of the account in `home`, and one more. A context: logs them all out."""

    def __init__(self, home: Path) -> None:
        file = unlock_home(home_folder(home), PASSPHRASE)
        self._state = open_client_state(home, file)
        self._sessions = [Session(file.contents, self._state) for _ in range(CLIENTS + 1)]
        self._latencies: list[float] = []

    def works(self, bare: Bare) -> list[Work]:
        """The ratio; what of it is the machine's; on stderr the latencies."""
        name, amount, unit = f"{CLIENTS} clients, Stat", CLIENTS * ROUNDS, "requests"
        window = f"window of {CLIENTS}"
        return [
            Work(name, amount, unit, self.many, self.one, window, goal=0.9),
            Work(name, amount, unit, self.many, bare.many, f"{CLIENTS} echoes"),
            Work(f"{window}, Stat", amount, unit, self.one, bare.one, "one echo"),
        ]

    def many(self, turn: int) -> None:
        self._latencies.clear()
        self._ask(self._sessions[1:])
        slowest = statistics.quantiles(self._latencies, n=100)[-1]
        single = self._single()
        told = {"p99_ms": slowest * 1e3, "single_ms": single * 1e3, "ratio": slowest / single}
        print(json.dumps({"work": "latency", "turn": turn, **told}), file=sys.stderr)

    def one(self, _turn: int) -> None:
        self._ask(self._sessions[:1] * CLIENTS)

    def _ask(self, sessions: list[Session]) -> None:
        for _ in range(ROUNDS):
            asked = [
                (session, time.perf_counter(), session.transport.submit(self._stat))
                for session in sessions
            ]
            for session, start, ticket in asked:
                _check(session.transport.result(ticket))
                self._latencies.append(time.perf_counter() - start)

    def _single(self) -> float:
        """Seconds of one request when nothing else is asked, the median."""
        times = []
        for _ in range(50):
            start = time.perf_counter()
            _check(self._sessions[0].transport.call(self._stat))
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def __enter__(self) -> Self:
        for session in self._sessions:
            session.connect()
        first = self._sessions[0]
        source = Path(os.devnull)
        put = Uploads(first).put(source, _NAME)
        self._stat = Stat(first.account.user, put.file_id, 0)
        return self

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._state.close()


class Bare(Closing):
    """As many connections to a bare echo (`bare_echo`)."""

    def __init__(self, port: str, folder: Path) -> None:
        self._peers = [dial(int(port), folder) for _ in range(CLIENTS)]
        self._answers = memoryview(bytearray(CLIENTS * ANSWER))

    def many(self, _turn: int) -> None:
        for _ in range(ROUNDS):
            for peer in self._peers:
                peer.sendall(bytes(REQUEST))
            for peer in self._peers:
                fill(peer, self._answers[:ANSWER])

    def one(self, _turn: int) -> None:
        for _ in range(ROUNDS):
            self._peers[0].sendall(bytes(CLIENTS * REQUEST))
            fill(self._peers[0], self._answers)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


def _check(reply: object) -> None:
    if not isinstance(reply, Stated):
        raise SystemExit(f"not an answer to Stat: {reply}")
