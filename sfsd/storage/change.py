"""What the committer can be asked to do: a `Change` is one log entry and its effects on the store.

An operation decides and returns one; nothing has happened until the committer says so. Paths are
``/``-separated and relative to ROOT/store/users. What a file's bytes are known by is its *digest*,
32 bytes: of a ciphertext (a path that ends in ``.ct``) the segments_root, the RFC 6962 root over
its 1 MiB pieces; of everything else SHA-256. `expect`, the log's `detail.paths`, packs and the
store's cache all mean this.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
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

# Lower case only, so two paths never meet on a system that folds case; no part starts with a dot,
# so none is "..", or a temporary of ours; none ends in one, which Windows would drop.
_PART = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9_-])?"
_PATH = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}")


def check_path(path: str) -> None:
    """Raise `PathError` unless `path` is one that the store can have."""
    if len(path) > MAX_PATH or not _PATH.fullmatch(path):
        raise PathError(f"not a path of the store: {path[:MAX_PATH]!r}")


def is_ciphertext(path: str) -> bool:
    return path.endswith(".ct")


def digest_of(path: str, data: Buffer) -> bytes:
    """The 32 bytes by which `data` under `path` is known."""
    if not is_ciphertext(path):
        return hashlib.sha256(data).digest()
    pieces = merkle.PieceHasher()
    pieces.update(data)
    return pieces.finish()


class Write(Value):
    """`data` becomes the file `path`. A callable gets the entry's seq: a sidecar states its own.

    `digest` saves hashing bytes that were hashed already; it must be `digest_of(path, data)`. A
    callable is asked for it once `data` was called.
    """

    path: str
    data: bytes | Callable[[int], bytes]
    digest: bytes | Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        check_path(self.path)


class Adopt(Value):
    """A finished upload becomes the ciphertext `path`."""

    path: str
    staged: UploadFile

    def __post_init__(self) -> None:
        _check_ciphertext(self.path)


class Link(Value):
    """The ciphertext `source`, whose segments_root is `root`, stands under `path` as well.

    It is `Stale` if `source` is not there, or touched by an earlier change of the same group.
    """

    path: str
    source: str
    root: bytes

    def __post_init__(self) -> None:
        _check_ciphertext(self.path)
        _check_ciphertext(self.source)


class Remove(Value):
    """No file stands under `path` afterwards; that none stood there before is fine."""

    path: str

    def __post_init__(self) -> None:
        check_path(self.path)


Effect = Write | Adopt | Link | Remove


class Claim(Protocol):
    """Something a change needs a share of, such as quota. Both run on the committer thread."""

    def acquire(self) -> None:
        """Raises an SfsdError to fail this change alone."""

    def release(self) -> None:
        """The change was not made after all. Never called after a success; must not raise."""


class Change(Value):
    """One log entry and what it does, wholly or not at all.

    `expect` maps a path to the digest its file must have, None for no file. `claim` is taken once
    that holds. `then(seq)` runs on the committer thread once the change is durable and published
    and before anyone is answered: for indexes, caches and ledgers; it must not raise.
    """

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
        raise PathError(f"not the path of a ciphertext: {path}")
