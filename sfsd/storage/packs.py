"""Packs: one file in staging/ that makes a whole group of small files durable with one sync.

::

    magic "sfs-pack" | version u16 = 1 | members u32 | index size u32
    index: per member  kind u8 | digest 32 | size u64 | path length u8 | path | [upload id 16]
    SHA-256 of all of the above
    the contents of the members of kind 0, in the order of the index

Numbers are big-endian. Kind 0 is a member whose bytes stand in the pack; kind 1 is a ciphertext in
a file of its own, ``staging/<upload id in hex>.ct``. `digest` is what the log's `detail.paths` says
(`sfsd.storage.change.digest_of`), so contents are checked against it and not hashed a second time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from protocol.codec.encoding import Buffer
from protocol.codec.values import Value
from sfsd.errors import PackError, PathError
from sfsd.fs.files import Files
from sfsd.storage.change import check_path

MAGIC = b"sfs-pack"
VERSION = 1
MAX_MEMBERS = 1 << 16
MAX_INDEX = 1 << 24
"""Bytes; checked before an index is read."""
INLINE, BLOB = 0, 1

_HEAD = struct.Struct(">8sHII")
_MEMBER = struct.Struct(">B32sQB")
_BLOB_NAME = 16


class Member(Value):
    """One file of a pack, to be installed under `path`. Either `offset` is the position of its
    `size` bytes in the pack, or `blob` names the file in staging/ (without ``.ct``)."""

    path: str
    digest: bytes
    size: int
    offset: int = 0
    blob: str | None = None


def encode(members: Sequence[tuple[Member, Buffer]]) -> bytes:
    """Encode the pack of `members`, each with its bytes (none for a blob); offsets are ignored.
    Raises `PackError` past `MAX_MEMBERS` or `MAX_INDEX`."""
    index: list[bytes] = []
    contents: list[Buffer] = []
    for member, data in members:
        path = member.path.encode()
        kind = INLINE if member.blob is None else BLOB
        index.append(_MEMBER.pack(kind, member.digest, member.size, len(path)) + path)
        if member.blob is None:
            contents.append(data)
        else:
            index.append(bytes.fromhex(member.blob))
    size = sum(map(len, index))
    if len(members) > MAX_MEMBERS or size > MAX_INDEX:
        raise PackError(f"{len(members)} members and an index of {size} bytes are too many")
    head = b"".join([_HEAD.pack(MAGIC, VERSION, len(members), size), *index])
    return b"".join([head, hashlib.sha256(head).digest(), *contents])


def read_index(files: Files, handle: int) -> list[Member]:
    """Return the members of the open pack; their contents are not checked. Raises `PackError`."""
    try:
        head = files.read_exactly(handle, _HEAD.size, 0)
        magic, version, count, size = _HEAD.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise PackError("not a pack, or an unknown version")
        if count > MAX_MEMBERS or size > MAX_INDEX:
            raise PackError(f"{count} members and an index of {size} bytes are too many")
        index = files.read_exactly(handle, size, _HEAD.size)
        checksum = files.read_exactly(handle, 32, _HEAD.size + size)
    except EOFError as exc:
        raise PackError("the pack is truncated") from exc
    if hashlib.sha256(head + index).digest() != checksum:
        raise PackError("wrong checksum")
    members = _parse_index(index, count, _HEAD.size + size + 32)
    end = max((m.offset + m.size for m in members if m.blob is None), default=0)
    if end > files.size(handle):
        raise PackError("the pack is truncated")
    return members


def _parse_index(index: bytes, count: int, offset: int) -> list[Member]:
    members: list[Member] = []
    at = 0
    try:
        for _ in range(count):
            kind, digest, size, length = _MEMBER.unpack_from(index, at)
            at += _MEMBER.size
            path = index[at : at + length].decode("ascii")
            check_path(path)
            at += length
            if kind == BLOB:
                blob = index[at : at + _BLOB_NAME]
                at += _BLOB_NAME
                members.append(Member(path, digest, size, blob=blob.hex()))
            elif kind == INLINE:
                members.append(Member(path, digest, size, offset))
                offset += size
            else:
                raise PackError(f"unknown member kind {kind}")
    except (struct.error, UnicodeDecodeError, PathError) as exc:
        raise PackError("the index is malformed") from exc
    if at != len(index):
        raise PackError("wrong length of the index")
    return members
