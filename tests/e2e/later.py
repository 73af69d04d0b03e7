"""Runs `sfsd` or `sfsc` with a clock that is ahead: ``python -m tests.e2e.later FILE sfsd|sfsc …``.

FILE holds the number of seconds, and is read at each call of `time.time`.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path


def main() -> None:
    ahead, program, *arguments = sys.argv[1:]
    real, file = time.time, Path(ahead)
    # Before the first import, which binds default arguments.
    setattr(time, "time", lambda: real() + float(file.read_text()))  # noqa: B010
    sys.argv = [program, *arguments]
    sys.exit(importlib.import_module(f"{program}.cli").main())


if __name__ == "__main__":
    main()
