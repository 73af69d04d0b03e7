"""`sfsd` and `sfsc` at another time: ``python -m tests.e2e.later FILE sfsd|sfsc …`` runs the
program with a clock that is ahead by as many seconds as FILE says, looked at each time."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path


def main() -> None:
    ahead, program, *arguments = sys.argv[1:]
    real, file = time.time, Path(ahead)
    # Ahead of the first import: defaults are bound then.
    setattr(time, "time", lambda: real() + float(file.read_text()))  # noqa: B010
    sys.argv = [program, *arguments]
    sys.exit(importlib.import_module(f"{program}.cli").main())


if __name__ == "__main__":
    main()
