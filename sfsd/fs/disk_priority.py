"""Priority of a thread's reads and writes, where the system has one."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Final

_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
"""Numbers of ioprio_set(2), for which C libraries have no function."""
_THIS_THREAD: Final = 0
_PROCESS: Final = 1
_LOWEST: Final = 2 << 13 | 7
"""The lowest level of the class "best effort". That of idle programs would not do: it may wait
forever, and others would wait for a lock that the thread holds."""


def lower_disk_priority() -> None:
    """Let the disk serve other threads before this one, where that is possible."""
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, _PROCESS, _THIS_THREAD, _LOWEST)
