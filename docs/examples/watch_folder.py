"""Keep a folder in the store the same as one here, until the program is stopped.

A lost connection or a server that restarts does not end it.

    watch_folder.py work work
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import sfsc


def trouble(error: sfsc.SfscError, seconds: float) -> None:
    print(f"{error}; trying again in {seconds:g} s", file=sys.stderr)


def main(folder: str, prefix: str) -> None:
    with closing(sfsc.watch(Path(folder), prefix, trouble=trouble)) as changes:
        for change in changes:
            print(change.status, change.name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
