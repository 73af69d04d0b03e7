"""Lines of the audit log, their hash chain, and their leaves in the log's Merkle tree.

An entry is one line of compact JSON. Its `hash` is SHA-256 over the bytes before ``,"hash"``. Its
`prev` is the hash of the line before it; the first line has `GENESIS`. A line is accepted only if
it is byte for byte what this module would write. An entry then has one form, and nothing can be
hidden in white space, key order or repeated keys. jq and sha256sum can check the chain. Keys that
a later version adds stand between `detail` and `accounts`, and are kept.

Entries of an *atomic set* count together or not at all. Each states it as ``"set":[first,n]``,
directly before `accounts`: its set is the n entries from seq `first` on. Other entries have no such
key.

*Leaf data* is entry hash[32] ‖ tag[16]…, and follows from the line alone. By its tags an account
finds its entries without reading lines of others.
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from protocol.codec import json_text
from protocol.codec.base64text import from_text
from protocol.codec.errors import LogError
from protocol.codec.json_text import JsonDecoder, JsonObject
from protocol.codec.values import Value, field
from protocol.records.record_signatures import MAX_SIGNED

VERSION = 2
"""`v` of a line."""
GENESIS = hashlib.sha256(b"sfs/v2/genesis").digest()
"""`prev` of the first entry, 32 bytes."""
MAX_LINE = 64 * 1024
"""Longest line in bytes, without its newline."""
SALT_SIZE = 16
TAG_SIZE = 16
"""Bytes of a tag in leaf data."""
DOWNLOAD = "download"
REWRAP = "rewrap"
ITEMS = "items"
"""Key in the detail of a download: [file_id, version] of each version that was opened."""
MAX_SET = MAX_SIGNED
"""Most entries of an atomic set: the changes of one changeset."""
IDENTITY_OPS = frozenset({"enrol", "statement", "rotate-begin", "rotate-finish"})
"""Ops of entries whose `rec` is an identity statement of `owner`."""
LOST = "lost"
"""Op of an entry that marks a version as lost: its sidecar no longer has metadata and wraps."""
RETENTION = "retention"
"""Op of an entry by the server: `detail.purged` lists versions whose content it removed."""
LEAVE = "leave"
"""Op of an entry whose `rec` is a leave record by its actor, a reader of the owner's file."""
TOMBSTONE = "tombstone"
TOMBSTONE_SIGS = "tombstone_sigs"
"""Keys in the detail of a move: the base64 record that ends the old file, and its signatures."""
_HASH_KEY = b',"hash":"'
_TAIL = len(_HASH_KEY) + 64 + len(b'"}')
_PREV_TAIL = len(b',"prev":""') + 64 + _TAIL
"""Bytes of a line from ``,"prev"`` on."""
_ACCOUNTS_KEY = b',"accounts":{'
_TAGS_KEY = b',"tags":['
_SET = re.compile(rb',"set":\[(0|[1-9][0-9]{0,15}),([1-9][0-9]{0,2})\]\Z')
_LONGEST_SET = len(b',"set":[,]') + 16 + 3
_ONE_TAG = rb'"[A-Za-z0-9+/]{21}[AQgw]=="'
_TAGS = re.compile(rb"(?:%b(?:,%b)*)?\]" % (_ONE_TAG, _ONE_TAG))
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")


class EntryDraft(Value):
    """An entry before it has a place in the log.

    `owner`, `file` (file_id) and `version` are None if the op has none. `session` is the seq of the
    login entry, `rec` the exact signed bytes, `sigs` {key id or generation: signature}. `accounts`
    are the users to whose history the entry belongs; those who are not enrolled are left out.
    `identity` is (hash of the user's first statement, n) if `rec` is the user's statement n.
    `in_set` is (place, size) of an entry in an atomic set, whose first entry has place 0. `detail`
    holds everything else except `paths`, which the committer adds, as it adds the
    `tag_keys` {user: key}.
    """

    op: str
    actor: str
    owner: str | None = None
    file: str | None = None
    version: int | None = None
    session: int | None = None
    stage: str | None = None
    rec: bytes | None = None
    sigs: Mapping[str, bytes] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    accounts: tuple[str, ...] = ()
    identity: tuple[bytes, int] | None = None
    in_set: tuple[int, int] | None = None
    tag_keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class LogEntry(Value):
    """A logged entry. `salt` is 16 bytes, `prev` and `hash` are 32 bytes each.

    `accounts` has, for each account of the entry, the number of its earlier entries. `tags` are
    16 bytes each, in ascending order. `extra` are the keys that this version does not know.
    `in_set` is (first seq, number of entries) of its atomic set, None if it is in none.
    """

    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file: str | None
    version: int | None
    session: int | None
    stage: str | None
    rec: bytes | None
    sigs: dict[str, bytes]
    salt: bytes
    detail: dict[str, Any]
    extra: dict[str, Any]
    in_set: tuple[int, int] | None
    accounts: dict[str, int]
    tags: tuple[bytes, ...]
    prev: bytes
    hash: bytes

    @property
    def leaf_data(self) -> bytes:
        """The data of the entry's leaf in the log's tree: hash ‖ tags."""
        return self.hash + b"".join(self.tags)

    @property
    def paths(self) -> dict[str, bytes | None]:
        """SHA-256 of the file that the entry left at each path it changed; None if it left none."""
        return _paths(self.detail)

    @property
    def versions(self) -> tuple[tuple[str, int | None], ...]:
        """(file_id, version) of each file that the entry is about; None for no one version."""
        if self.op == DOWNLOAD:
            return tuple((file, version) for file, version in self.detail[ITEMS])
        return () if self.file is None else ((self.file, self.version),)

    @property
    def records(self) -> tuple[tuple[bytes, dict[str, bytes]], ...]:
        """Exact bytes and signatures of each signed record: `rec`, and the tombstone of a move."""
        own = () if self.rec is None else ((self.rec, self.sigs),)
        if TOMBSTONE not in self.detail:
            return own
        sigs = {name: from_text(text) for name, text in self.detail[TOMBSTONE_SIGS].items()}
        return (*own, (from_text(self.detail[TOMBSTONE]), sigs))


class _Line(JsonObject, kw_only=True):
    """The members of a line, in order."""

    v: int
    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file: str | None
    version: int | None
    session: int | None
    stage: str | None
    rec: bytes | None
    sigs: dict[str, bytes]
    salt: bytes
    detail: dict[str, Any]
    set: tuple[int, int] | None = None
    accounts: dict[str, int]
    tags: tuple[bytes, ...]
    prev: str
    hash: str = ""


KEYS = tuple(name for name in _Line.__struct_fields__ if name != "set")
"""The JSON keys of a line that is in no atomic set, in order."""


def encode(
    draft: EntryDraft,
    *,
    seq: int,
    time: str,
    salt: bytes,
    detail: Mapping[str, Any],
    accounts: Mapping[str, int],
    tags: Iterable[bytes],
    prev: bytes,
    extra: Mapping[str, Any] | None = None,
) -> tuple[bytes, bytes]:
    """Return (line without newline, its hash) for `draft`; `detail` is the complete detail.

    `accounts` has the number of earlier entries of each account, `tags` are 16 bytes each, in any
    order. Raises `LogError` for a line longer than `MAX_LINE`.
    """
    line = _Line(
        v=VERSION,
        seq=seq,
        time=time,
        op=draft.op,
        actor=draft.actor,
        owner=draft.owner,
        file=draft.file,
        version=draft.version,
        session=draft.session,
        stage=draft.stage,
        rec=draft.rec,
        sigs=dict(draft.sigs),
        salt=salt,
        detail=dict(detail),
        set=None if draft.in_set is None else (seq - draft.in_set[0], draft.in_set[1]),
        accounts=dict(accounts),
        tags=tuple(sorted(set(tags))),
        prev=prev.hex(),
    )
    body = _spelled(line, extra or {})[:-1]
    if len(body) + _TAIL > MAX_LINE:
        raise LogError(f"line has {len(body) + _TAIL} bytes, at most {MAX_LINE} allowed", seq=seq)
    digest = hashlib.sha256(body).digest()
    return b'%b%b%b"}' % (body, _HASH_KEY, digest.hex().encode()), digest


def leaf_data(line: bytes, *, seq: int = 0) -> bytes:
    """Return the leaf data of a line that states its hash correctly: hash ‖ tags.

    For a line that `parse` accepts it is `LogEntry.leaf_data`. Raises `LogError`.
    """
    digest = line_hash(line, seq=seq)
    try:
        return digest + tags_of(line)
    except ValueError as exc:
        raise LogError("not a line of the log", seq=seq) from exc


def tags_of(line: bytes) -> bytes:
    """Return the concatenated tags of a line, found from its end. Raises ValueError for a line
    whose tags are malformed."""
    # Nothing behind the key can hold it again: only base64 and the previous hash follow.
    start = line.rfind(_TAGS_KEY, 0, -_PREV_TAIL) + len(_TAGS_KEY)
    stated = line[start:-_PREV_TAIL]
    if start < len(_TAGS_KEY) or _TAGS.fullmatch(stated) is None:
        raise ValueError("no list of tags")
    tags = [a2b_base64(text) for text in stated[1:-2].split(b'","')] if len(stated) > 1 else []
    if any(first >= second for first, second in pairwise(tags)):
        raise ValueError("the tags are not in ascending order")
    return b"".join(tags)


def belongs_to(line: bytes, user: str) -> bool:
    """Return whether `accounts` of a line that `parse` is known to accept has this user, whose name
    needs no escapes in JSON."""
    end = line.rfind(_TAGS_KEY, 0, -_PREV_TAIL)
    start = line.rfind(_ACCOUNTS_KEY, 0, end) + len(_ACCOUNTS_KEY)
    return b'"%b":' % user.encode() in line[start:end]


def set_of(line: bytes) -> tuple[int, int] | None:
    """Return `LogEntry.in_set` of a line without parsing it. For a line that `parse` refuses the
    result means nothing."""
    end = line.rfind(_TAGS_KEY, 0, -_PREV_TAIL)
    start = line.rfind(_ACCOUNTS_KEY, 0, end)
    found = _SET.search(line[max(0, start - _LONGEST_SET) : start])
    return None if found is None else (int(found[1]), int(found[2]))


def line_hash(line: bytes, *, seq: int = 0) -> bytes:
    """Return the 32-byte hash that a line states, checked against it. Raises `LogError`."""
    if not _TAIL < len(line) <= MAX_LINE or line[-_TAIL : -_TAIL + len(_HASH_KEY)] != _HASH_KEY:
        raise LogError("not a line of the log", seq=seq)
    digest = hashlib.sha256(memoryview(line)[:-_TAIL]).digest()
    if line[-66:] != digest.hex().encode() + b'"}':
        raise LogError("the hash does not match the line", seq=seq)
    return digest


def parse(line: bytes, *, seq: int | None = None) -> LogEntry:
    """Parse a line without newline and check its hash, but not its place (see `verify_chain`).

    If `seq` is given, the entry must state it, and errors name it. Raises `LogError`.
    """
    at = 0 if seq is None else seq
    digest = line_hash(line, seq=at)
    try:
        found, extra = _DECODER.decode(line), dict[str, Any]()
        # Refuses other spellings, other orders and repeated keys.
        if _spelled(found, extra) != line:
            extra = _unknown_members(line)
            if not extra or _spelled(found, extra) != line:
                raise LogError("not in canonical form", seq=at)
        entry = _entry(found, extra, digest)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as exc:
        raise LogError("malformed", seq=at) from exc
    if seq is not None and entry.seq != seq:
        raise LogError(f"the line states seq {entry.seq}", seq=seq)
    return entry


def paths_of(line: bytes) -> dict[str, bytes | None]:
    """Return `LogEntry.paths` of a line that `parse` is known to accept."""
    return _paths(_DECODER.decode(line).detail)


def verify_chain(
    lines: Iterable[bytes], *, first: int = 0, prev: bytes = GENESIS
) -> Iterator[LogEntry]:
    """Yield the entries of consecutive lines from seq `first` on; each must follow the one before.

    Raises `LogError` with the first wrong seq.
    """
    for seq, line in enumerate(lines, first):
        entry = parse(line, seq=seq)
        if entry.prev != prev:
            raise LogError("does not follow the entry before it", seq=seq)
        yield entry
        prev = entry.hash


class SetCheck:
    """Checks, entry by entry, that atomic sets are whole: their entries stand one after the
    other."""

    def __init__(self) -> None:
        self.open: tuple[int, int] | None = None
        """The set, as `LogEntry.in_set`, of which the last entry is still to come; or None."""

    def add(self, entry: LogEntry) -> None:
        """Take the next entry. Raises `LogError` if it interrupts a set, or is in the middle of one
        that did not begin."""
        if self.open is None:
            follows = entry.in_set is None or entry.in_set[0] == entry.seq
        else:
            follows = entry.in_set == self.open
        if not follows:
            raise LogError("an atomic set is incomplete", seq=entry.seq)
        is_last = entry.in_set is None or sum(entry.in_set) == entry.seq + 1
        self.open = None if is_last else entry.in_set


def _unknown_members(line: bytes) -> dict[str, Any]:
    """Return the members of a line that this version does not know."""
    value = json_text.decode(line)
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return {name: one for name, one in value.items() if name not in _Line.__struct_fields__}


def _entry(found: _Line, extra: dict[str, Any], digest: bytes) -> LogEntry:
    """Build the entry of a canonical line. Raises ValueError, TypeError, AttributeError or KeyError
    for a malformed field."""
    _need(found.v == VERSION and found.seq >= 0 and len(found.salt) == SALT_SIZE)
    _need(_TIME.fullmatch(found.time) is not None and _HEX.fullmatch(found.prev) is not None)
    _need(all(count >= 0 for count in found.accounts.values()))
    _need(all(len(tag) == TAG_SIZE for tag in found.tags))
    _need(all(first < second for first, second in pairwise(found.tags)))
    if found.set is not None:
        first, count = found.set
        _need(1 <= count <= MAX_SET and 0 <= first <= found.seq < first + count)
    entry = LogEntry(
        found.seq,
        found.time,
        found.op,
        found.actor,
        found.owner,
        found.file,
        found.version,
        found.session,
        found.stage,
        found.rec,
        found.sigs,
        found.salt,
        found.detail,
        extra,
        found.set,
        found.accounts,
        found.tags,
        bytes.fromhex(found.prev),
        digest,
    )
    for known in entry.detail.get("paths", {}).values():
        _need(known is None or _HEX.fullmatch(known) is not None)
    _need(len(entry.records) <= 2)
    if entry.op == DOWNLOAD:
        for name, number in entry.versions:
            _need(type(name) is str and type(number) is int)
    return entry


def _paths(detail: Mapping[str, Any]) -> dict[str, bytes | None]:
    stated = detail.get("paths", {})
    return {path: None if known is None else bytes.fromhex(known) for path, known in stated.items()}


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError("malformed field")


def _spelled(line: _Line, extra: Mapping[str, Any]) -> bytes:
    """Return the bytes of a line: compact JSON in ASCII, with `extra` members behind `detail`.
    Raises TypeError or ValueError for text that has no UTF-8."""
    text = json_text.encode(line)
    if extra:
        at = text.rfind(_ACCOUNTS_KEY)
        if line.set is not None:
            at -= len(f',"set":[{line.set[0]},{line.set[1]}]')
        text = b"%b,%b%b" % (text[:at], json_text.encode(extra)[1:-1], text[at:])
    return text


_DECODER = JsonDecoder(_Line)
