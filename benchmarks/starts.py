"""What a command costs before it does anything, as whole processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Pipe, Work, run_python
from benchmarks.works import random_file
from tests.harness import Client, command, environment

_LIBRARIES = """
import sys, sfsc.store
wanted = ("cryptography", "msgpack", "msgspec")
print(*sorted(name for name in sys.modules if name.split(".")[0] in wanted))
"""


def works(client: Client, pipe: Pipe, scratch: Path) -> list[Work]:
    """`client` has a passphrase."""
    small = random_file(scratch / "kilobyte", 1024)
    libraries = bare_libraries()
    return [
        Work(
            "sfsc --version",
            1,
            "runs",
            lambda _turn: subprocess.run(
                [*command("sfsc"), "--version"],
                check=True,
                stdout=subprocess.DEVNULL,
                env=environment({}),
            ),
            lambda _turn: run_python("-c", "pass"),
            "python -c pass",
            goal=0.25,
        ),
        Work(
            "import sfsc.store",
            1,
            "runs",
            lambda _turn: run_python("-c", "import sfsc.store"),
            lambda _turn: run_python("-c", f"import {', '.join(libraries)}"),
            "its libraries",
            goal=0.5,
        ),
        Work(
            "put of 1 KiB",
            1,
            "runs",
            lambda turn: client.run("put", small, "--name", f"kilobyte-{turn}"),
            lambda turn: pipe.run("up", small, f"kilobyte-{turn}"),
            limit=0.35,
        ),
    ]


def bare_libraries() -> list[str]:
    """The modules of other packages that the client loads; ``import sfsc`` alone loads none."""
    done = subprocess.run(
        [sys.executable, "-c", _LIBRARIES], check=True, capture_output=True, text=True
    )
    return done.stdout.split()
