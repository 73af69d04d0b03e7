"""``make bench-memory``: the most memory that client and daemon hold while large files move.

One client with one file of `BENCH_BYTES` up and down, then `BENCH_CLIENTS` at once with one of
`BENCH_EACH`. Peak resident memory by the kernel's count (VmHWM); of the daemon since its start, so
it is started anew for each part. JSON lines go to stdout.

    BENCH_BYTES  default 4 GiB    BENCH_CLIENTS  default 16    BENCH_EACH  default 512 MiB
    BENCH_DIR    where to work
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.harness import Client, Daemon, command, environment

BYTES = int(os.environ.get("BENCH_BYTES", str(4 << 30)))
CLIENTS = int(os.environ.get("BENCH_CLIENTS", "16"))
EACH = int(os.environ.get("BENCH_EACH", str(512 << 20)))
MIB = 1 << 20
CLIENT_GOAL, DAEMON_GOAL, CROWD_GOAL = 120, 150, 400


def tell(work: str, mib: float, goal: int) -> None:
    line = {"work": work, "mib": round(mib, 1), "goal": goal, "reached": mib <= goal}
    print(json.dumps(line), flush=True)


def zeros(path: Path, size: int) -> Path:
    """A sparse file: what is measured does not depend on what is in it."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def start(client: Client, *arguments: str | Path) -> subprocess.Popen[bytes]:
    own = {"SFSC_HOME": str(client.home)}
    return subprocess.Popen(
        [*command("sfsc"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(own),
    )


def finish(process: subprocess.Popen[bytes]) -> float:
    """MiB that a client had at most. Raises `SystemExit` where it failed."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"sfsc ended with {process.returncode}")
    return usage.ru_maxrss * _RSS_UNIT / MIB


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak(daemon: Daemon) -> float:
    """MiB that the daemon has had at most since it started."""
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def anew(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start()


def one(daemon: Daemon, client: Client, scratch: Path) -> None:
    source = zeros(scratch / "big", BYTES)
    for work, arguments in (
        ("up", ("put", source, "--name", "big")),
        ("down", ("get", "big", "-o", scratch / "fetched")),
    ):
        anew(daemon)
        size = f"{BYTES / 2**30:g} GiB {work}"
        tell(f"{size}, client", finish(start(client, *arguments)), CLIENT_GOAL)
        tell(f"{size}, daemon", peak(daemon), DAEMON_GOAL)
    (scratch / "fetched").unlink()


def crowd(daemon: Daemon, client: Client, scratch: Path) -> None:
    source = zeros(scratch / "each", EACH)
    for work in ("up", "down"):
        anew(daemon)
        running = [
            start(client, "put", source, "--name", f"each{number}")
            if work == "up"
            else start(client, "get", f"each{number}", "-o", scratch / f"each{number}")
            for number in range(CLIENTS)
        ]
        for process in running:
            finish(process)
        size = f"{CLIENTS} × {EACH / MIB:g} MiB {work}"
        tell(f"{size}, daemon", peak(daemon), CROWD_GOAL)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sfs-bench-", dir=os.environ.get("BENCH_DIR")) as made:
        scratch = Path(made)
        daemon = Daemon(scratch / "root")
        daemon.init()
        (daemon.root / "sfsd.toml").write_text(
            "[limits]\nconnections_per_address = 80\nuser_connections = 80\n"
        )
        with daemon:
            client = daemon.client("mover", scratch / "home", "--no-passphrase")
            one(daemon, client, scratch)
            crowd(daemon, client, scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
