"""Files of the store that follow from the log and from other files, made again without any key.

An inbox note is empty, leaf hashes follow from their ciphertext, an identity chain is in the log, a
tag key is in the account's settings too, and a ciphertext may have a second name. So has a key
bundle once it has a successor. A file is put in place only if it has the digest that the log says.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from protocol.codec import merkle
from protocol.codec.base64text import from_text
from protocol.codec.errors import RemoteProtocolError
from protocol.codec.merkle import PIECE_SIZE
from protocol.codec.values import Mutable, Value, field
from protocol.log.auditlog import IDENTITY_OPS, LogEntry
from protocol.records.records import Statement
from sfsd.errors import DamagedError
from sfsd.fs.files import NO_DESCRIPTORS, Files
from sfsd.storage.change import is_ciphertext
from sfsd.storage.json_files import StoredStatement, encode_statements, parse_account
from sfsd.storage.paths import account_path

_Read = TypeVar("_Read")
_EMPTY_DIGEST: Final = hashlib.sha256(b"").digest()


class ExpectedFile(Value):
    """The file that entry `seq` requires under `path`; `stage` names its pack."""

    seq: int
    path: str
    digest: bytes | None
    stage: str | None


class LoggedState(Mutable):
    """The store according to the log: each path's digest and the entry that wrote it, and every
    user's chain. `waiting` is what entries past `applied` touch, which may still be in the
    stage."""

    applied: int
    paths: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    chains: dict[str, list[StoredStatement]] = field(default_factory=dict)
    waiting: dict[str, ExpectedFile] = field(default_factory=dict)

    def apply(self, entry: LogEntry) -> None:
        """Add the next entry."""
        for path, digest in entry.paths.items():
            if entry.seq > self.applied:
                self.waiting[path] = ExpectedFile(entry.seq, path, digest, entry.stage)
            if digest is None:
                self.paths.pop(path, None)
            else:
                self.paths[path] = (digest, entry.seq)
        if entry.op in IDENTITY_OPS and entry.owner is not None and entry.rec is not None:
            self._link(entry, entry.owner, entry.rec)

    def _link(self, entry: LogEntry, owner: str, body: bytes) -> None:
        try:
            statement = Statement.parse(body)
            possession = from_text(str(entry.detail.get("possession", "")))
        except (RemoteProtocolError, ValueError):
            return  # what is derived from it will not have the digest
        signatures = tuple(entry.sigs.values())
        link = StoredStatement(body, signatures, entry.seq, statement, possession)
        self.chains.setdefault(owner, []).append(link)


def derive_file(files: Files, users: Path, logged: LoggedState, path: str, digest: bytes) -> bool:
    """Put the file `path` with this digest in place durably, if it follows from the rest; return
    whether it does. A source that cannot be read is passed over. Raises OSError."""
    if is_ciphertext(path):
        return _link_same_content(files, users, logged, path, digest)
    derived = None
    if digest == _EMPTY_DIGEST:
        derived = b""  # an inbox note is empty: its name is its content
    elif path.endswith(".leaves"):
        blob = users / f"{path.removesuffix('.leaves')}.ct"
        leaves = _read(lambda: leaves_of(blob))
        derived = None if leaves is None else b"".join(leaves)
    elif path.endswith("/statements.json"):
        chain = logged.chains.get(path.partition("/")[0])
        derived = encode_statements(chain) if chain else None
    elif path.endswith("/bundle"):
        derived = _find_bundle((users / path).parent, digest)
    elif path.endswith("/tag.key"):
        derived = _tag_key_of(users, path.partition("/")[0])
    if derived is None or hashlib.sha256(derived).digest() != digest:
        return False
    files.make_folder((users / path).parent)
    files.replace_durable(users / path, derived)
    return True


def _tag_key_of(users: Path, user: str) -> bytes | None:
    """Return the tag key in an account's settings."""
    path = account_path(user)
    raw = _read((users / path).read_bytes)
    try:
        return None if raw is None else parse_account(path, raw).tag_key
    except DamagedError:
        return None


def _find_bundle(folder: Path, digest: bytes) -> bytes | None:
    """Return the kept bundle with this digest, None if none can be read."""
    for name in sorted(_read(lambda: os.listdir(folder)) or ()):
        if name.startswith("bundle."):
            found = _read((folder / name).read_bytes)
            if found is not None and hashlib.sha256(found).digest() == digest:
                return found
    return None


def _link_same_content(
    files: Files, users: Path, logged: LoggedState, path: str, digest: bytes
) -> bool:
    """Link another ciphertext of the same content, common after a restore or a move."""
    for other, (known, _) in logged.paths.items():
        if known != digest or other == path or not is_ciphertext(other):
            continue
        source, target = users / other, users / path
        leaves = _read(functools.partial(leaves_of, source))
        if leaves is not None and merkle.root(leaves) == digest:
            files.remove(target)
            files.make_folder(target.parent)
            files.link_or_copy(source, target)
            files.sync_folder(target.parent)
            return True
    return False


def _read(read: Callable[[], _Read]) -> _Read | None:
    """Return the result of `read`, None if its file is missing or cannot be read. Raises OSError if
    this process or the system has too much open: that says nothing about the file."""
    try:
        return read()
    except OSError as exc:
        if exc.errno in NO_DESCRIPTORS:
            raise
        return None


def leaves_of(ciphertext: Path, pace: Callable[[int], None] = lambda _size: None) -> list[bytes]:
    """Return the leaf hashes of a ciphertext, 32 bytes each. Calls `pace` with the bytes of each
    piece that was read. Raises OSError."""
    leaves = []
    with ciphertext.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_SIZE):
            leaves.append(merkle.leaf_hash(piece))
            pace(len(piece))
    return leaves or [merkle.leaf_hash(b"")]
