"""All messages of protocol version 2; importing this package fills the registry."""

from __future__ import annotations

from protocol.wire.messages import (
    accounts,
    changes,
    downloads,
    files,
    log,
    rotation,
    session,
    sharing,
    uploads,
)
from protocol.wire.messages.base import (
    Done,
    Error,
    FileView,
    Message,
    Receipt,
    Reply,
    Request,
    decode,
    encode,
    registered,
)

__all__ = [
    "Done",
    "Error",
    "FileView",
    "Message",
    "Receipt",
    "Reply",
    "Request",
    "accounts",
    "changes",
    "decode",
    "downloads",
    "encode",
    "files",
    "log",
    "registered",
    "rotation",
    "session",
    "sharing",
    "uploads",
]
