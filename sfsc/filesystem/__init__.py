"""A file system for fsspec: `sfs://t/x` is the name `t/x` of the account in SFSC_HOME."""

from __future__ import annotations

from sfsc.filesystem.filesystem import SfsFileSystem

__all__ = ["SfsFileSystem"]
