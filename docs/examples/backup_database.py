"""Back up a SQLite database every night, as a service of the system's timer.

The copy is made by SQLite itself, so it is whole although programs write meanwhile. Each night is a
new version of one name; the newest 30 are kept.

    backup_database.py shop.sqlite3 backups/shop.sqlite3
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import sfsc

KEEP = 30


def main(database: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        with sfsc.connect() as store:
            put = store.put(copy, name=name)
            store.prune(name, keep=KEEP)
    print(f"version {put.version} of {name}, {put.size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
