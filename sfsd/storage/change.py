"""A `Change` is one log entry and its effects on the store.

An operation decides on a change and returns it; the committer then makes it. Paths are
``/``-separated and relative to ROOT/store/users. A file's bytes are identified by its *digest*, 32
bytes: for a ciphertext (a path that ends in ``.ct``) the segments_root, the RFC 6962 root over its
1 MiB pieces; for every other file SHA-256. `expect`, the log's `detail.paths`, packs and the
store's cache all use this digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.codec.values import Value, field
from protocol.log.auditlog import EntryDraft
from sfsd.errors import PathError
from sfsd.storage.upload_file import UploadFile

MAX_PATH = 255
"""Bytes of the longest path."""

# Lower case only, so two paths never collide on a system that folds case. No part starts with a
# dot, so none is ".." or one of our temporary files. No part ends in a dot, which Windows would
# drop.
_PART = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9_-])?"
_PATH = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}")


def check_path(path: str) -> None:
    """Raise `PathError` unless `path` is a valid path of the store."""
    if len(path) > MAX_PATH or not _PATH.fullmatch(path):
        raise PathError(f"invalid path: {path[:MAX_PATH]!r}")


def is_ciphertext(path: str) -> bool:
    return path.endswith(".ct")


def digest_of(path: str, data: Buffer) -> bytes:
    """Return the digest of `data` under `path`, 32 bytes."""
    if not is_ciphertext(path):
        return hashlib.sha256(data).digest()
    return ciphertext_digest([data])


def ciphertext_digest(parts: Iterable[Buffer]) -> bytes:
    """Return the segments_root of a ciphertext that is given in parts, 32 bytes."""
    pieces = merkle.PieceHasher()
    for part in parts:
        pieces.update(part)
    return pieces.finish()


class Write(Value):
    """Write `data` to `path`. A callable gets the entry's seq, which a sidecar contains. `digest`
    avoids hashing bytes that were hashed already; it must equal `digest_of(path, data)`. A callable
    digest is called after `data` was called."""

    path: str
    data: bytes | Callable[[int], bytes]
    digest: bytes | Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        check_path(self.path)


class Adopt(Value):
    """Make a finished upload the ciphertext `path`."""

    path: str
    staged: UploadFile

    def __post_init__(self) -> None:
        _check_ciphertext(self.path)


class Link(Value):
    """Add `path` as a second name of the ciphertext `source`, whose segments_root is `root`. It is
    `Stale` if `source` does not exist, or an earlier change of the same group touches it."""

    path: str
    source: str
    root: bytes

    def __post_init__(self) -> None:
        _check_ciphertext(self.path)
        _check_ciphertext(self.source)


class Remove(Value):
    """Remove the file `path`; a missing file is no error."""

    path: str

    def __post_init__(self) -> None:
        check_path(self.path)


Effect = Write | Adopt | Link | Remove


class Claim(Protocol):
    """A resource that a change reserves, such as quota. Used on the committer thread."""

    def acquire(self) -> None:
        """Reserve it; what the change writes is encoded by then. Raises an SfsdError to fail this
        change alone."""

    def release(self) -> None:
        """Undo the reservation of a failed change; never called after a success. Must not raise."""


class Change(Value):
    """One log entry and its effects, made completely or not at all. `expect` maps a path to the
    digest that its file must have, None for no file. `claim` is acquired once that holds and the
    effects are encoded. `on_published(seq)` runs on the committer thread when the change is durable
    and published and before the request is answered; it updates indexes, caches and ledgers, and
    must not raise."""

    draft: EntryDraft
    expect: Mapping[str, bytes | None] = field(default_factory=lambda: MappingProxyType({}))
    effects: tuple[Effect, ...] = ()
    claim: Claim | None = None
    on_published: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        paths = [effect.path for effect in self.effects]
        if len(set(paths)) != len(paths):
            raise PathError("a change has two effects on one path")


def _check_ciphertext(path: str) -> None:
    check_path(path)
    if not is_ciphertext(path):
        raise PathError(f"not a ciphertext path: {path}")
