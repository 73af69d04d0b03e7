"""``make bench-rotation``: wraps made anew, versions a second, and that memory does not grow with
their number.

`sfsc rotate` from X-Wing to X-Wing, a whole process against a real daemon, over a fifth of
`BENCH_FILES` small files and then over all of them. The daemon is started anew for each, so that
the peaks (VmHWM) are of that rotation. JSON lines go to stdout.

    BENCH_FILES  default 10,000    BENCH_DIR  where to work
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import sfsc
from benchmarks.memory import anew, finish, peak, start
from tests.harness import Client, Daemon

FILES = int(os.environ.get("BENCH_FILES", "10000"))
SIZE = 100


def put(client: Client, folder: Path, first: int, end: int) -> None:
    """Files `first` to `end`, of `SIZE` bytes."""
    sources = []
    for number in range(first, end):
        path = folder / f"{number:06}"
        path.write_bytes(b"%6d" % number * (SIZE // 6))
        sources.append((path, path.name))
    with sfsc.connect(client.home) as store:
        for _ in store.put_many(sources):
            pass


def rotate(daemon: Daemon, client: Client, files: int) -> None:
    anew(daemon)
    began = time.perf_counter()
    memory = finish(start(client, "rotate"))
    seconds = time.perf_counter() - began
    line = {
        "work": f"rotate {files} versions",
        "versions": files,
        "seconds": round(seconds, 2),
        "versions_per_second": round(files / seconds, 1),
        "client_mib": round(memory, 1),
        "daemon_mib": round(peak(daemon), 1),
    }
    print(json.dumps(line), flush=True)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as made:
        scratch = Path(made)
        folder = scratch / "files"
        folder.mkdir()
        daemon = Daemon(scratch / "root")
        daemon.init()
        with daemon:
            client = daemon.client("mover", scratch / "home", "--no-passphrase")
            done = 0
            for files in (FILES // 5, FILES):
                put(client, folder, done, files)
                rotate(daemon, client, files)
                done = files
    return 0


if __name__ == "__main__":
    sys.exit(main())
