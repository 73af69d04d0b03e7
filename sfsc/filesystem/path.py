"""The class of a `upath.UPath` with the protocol `sfs`, for universal-pathlib, which warns of
protocols that have none."""

from __future__ import annotations

from upath import UPath


class SfsPath(UPath):  # type: ignore[misc]  # mypy does not read upath
    """Path of a stored file: ``UPath("sfs://t/x")``."""

    __slots__ = ()
