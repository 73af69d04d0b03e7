"""Store each new picture of a camera once, under a name that is never overwritten.

The camera writes pictures into a folder. One that was stored is removed from the camera; one that
could not be stored stays for the next run.

    camera.py /media/card/DCIM cam
"""

from __future__ import annotations

import sys
from pathlib import Path

import sfsc


def main(folder: str, prefix: str) -> int:
    failed = 0
    with sfsc.connect() as store:
        for picture in sorted(Path(folder).glob("*.jpg")):
            try:
                store.put(picture, name=f"{prefix}/{picture.name}", expected=0)  # only if it is new
            except sfsc.ConflictError as exc:
                failed += 1
                print(f"{picture.name} stays here: {exc}", file=sys.stderr)
            else:
                picture.unlink()
                print(f"stored {picture.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
