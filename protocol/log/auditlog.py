"""The lines of the audit log and the chain that binds them; pure, bytes in and bytes out.

An entry is one line of compact JSON. Its `hash` is SHA-256 over the line's bytes ahead of
``,"hash"``, its `prev` the hash of the line before (the first has `GENESIS`). A line is accepted
only when it is, byte for byte, what this module would write: one entry has one form, so nothing can
be hidden in white space, key order or doubled keys. The chain can be checked with jq and sha256sum.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from protocol.codec.base64text import from_text, to_text
from protocol.codec.errors import LogError
from protocol.codec.values import Value, field

GENESIS = hashlib.sha256(b"sfs/v1/genesis").digest()
"""32 bytes: what the first entry follows."""
MAX_LINE = 64 * 1024
"""Bytes of the longest line, newline excluded."""
SALT_SIZE = 16
KEYS = (
    "seq",
    "time",
    "op",
    "actor",
    "owner",
    "file",
    "version",
    "session",
    "stage",
    "rec",
    "sigs",
    "salt",
    "detail",
    "prev",
    "hash",
)
TOMBSTONE = "tombstone"
TOMBSTONE_SIGS = "tombstone_sigs"
"""In the detail of a move: the record of the file that it left, base64, and its signatures."""
_HASH_KEY = b',"hash":"'
_TAIL = len(_HASH_KEY) + 64 + len(b'"}')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")


class EntryDraft(Value):
    """What is known of an entry before it has its place in the log.

    `owner`, `file` (file_id) and `version` are None where the op has none; `session` is the seq of
    the login entry; `rec` the exact signed bytes and `sigs` {key id or generation: signature}.
    `accounts` are the users whose history this entry belongs to; `detail` holds everything else
    but `paths` and `accounts`, which the committer and the journal fill in.
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


class LogEntry(Value):
    """One entry as it stands in the log. `salt` is 16 bytes, `prev` and `hash` 32."""

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
    prev: bytes
    hash: bytes

    @property
    def paths(self) -> dict[str, bytes | None]:
        """What the entry left under each path it touched: 32 bytes, or None for no file."""
        return _paths(self.detail)

    @property
    def records(self) -> tuple[tuple[bytes, dict[str, bytes]], ...]:
        """Every signed record in the entry, exact bytes and signatures: its `rec`, and of a move
        the tombstone too."""
        own = () if self.rec is None else ((self.rec, self.sigs),)
        if TOMBSTONE not in self.detail:
            return own
        sigs = {name: from_text(text) for name, text in self.detail[TOMBSTONE_SIGS].items()}
        return (*own, (from_text(self.detail[TOMBSTONE]), sigs))

    @property
    def accounts(self) -> dict[str, tuple[int, bytes]]:
        """For each account the entry belongs to: how many came before, and the last one's hash."""
        stated = self.detail.get("accounts", {})
        return {user: (count, bytes.fromhex(known)) for user, (count, known) in stated.items()}


def encode(
    draft: EntryDraft, *, seq: int, time: str, salt: bytes, detail: Mapping[str, Any], prev: bytes
) -> tuple[bytes, bytes]:
    """(line without newline, its hash) of `draft` in its place; `detail` is the whole of it.

    Raises `LogError` for a line past `MAX_LINE`.
    """
    body = _spelled(
        seq,
        time,
        draft.op,
        draft.actor,
        draft.owner,
        draft.file,
        draft.version,
        draft.session,
        draft.stage,
        None if draft.rec is None else to_text(draft.rec),
        {name: to_text(signature) for name, signature in draft.sigs.items()},
        to_text(salt),
        detail,
        prev.hex(),
    )
    if len(body) + _TAIL > MAX_LINE:
        raise LogError(f"a line of {len(body) + _TAIL} bytes; {MAX_LINE} are allowed", seq=seq)
    digest = hashlib.sha256(body).digest()
    return b'%b%b%b"}' % (body, _HASH_KEY, digest.hex().encode()), digest


def line_hash(line: bytes, *, seq: int = 0) -> bytes:
    """The hash a line states, 32 bytes, checked against its bytes. Raises `LogError`."""
    if not _TAIL < len(line) <= MAX_LINE or line[-_TAIL : -_TAIL + len(_HASH_KEY)] != _HASH_KEY:
        raise LogError("not a line of the log", seq=seq)
    digest = hashlib.sha256(memoryview(line)[:-_TAIL]).digest()
    if line[-66:] != digest.hex().encode() + b'"}':
        raise LogError("the hash is not that of the line", seq=seq)
    return digest


def parse(line: bytes, *, seq: int | None = None) -> LogEntry:
    """The entry of a line without newline, its hash checked; its place is `verify_chain`'s matter.

    `seq` names the entry in errors, where known, and must be the one it states. Raises `LogError`.
    """
    at = 0 if seq is None else seq
    digest = line_hash(line, seq=at)
    try:
        value = _DECODER.decode(line.decode("ascii"))
        if not isinstance(value, dict) or tuple(value) != KEYS:
            raise LogError("not exactly the keys of an entry", seq=at)
        *fields, _ = value.values()
        # Other spellings, and keys that stand twice. What is in no form that an entry's field has
        # is refused in either case.
        if _spelled(*fields) != line[:-_TAIL]:
            raise LogError("not in the one form an entry has", seq=at)
        entry = _entry(fields, digest)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as exc:
        raise LogError("malformed", seq=at) from exc
    if seq is not None and entry.seq != seq:
        raise LogError(f"it says it is entry {entry.seq}", seq=seq)
    return entry


def paths_of(line: bytes) -> dict[str, bytes | None]:
    """`LogEntry.paths` of a line that is known to be one that `parse` accepts."""
    return _paths(json.loads(line)["detail"])


def verify_chain(
    lines: Iterable[bytes], *, first: int = 0, prev: bytes = GENESIS
) -> Iterator[LogEntry]:
    """The entries of consecutive lines from seq `first` on, each checked to follow the one before.

    Raises `LogError` with the first seq that is wrong.
    """
    for seq, line in enumerate(lines, first):
        entry = parse(line, seq=seq)
        if entry.prev != prev:
            raise LogError("does not follow from the entry before", seq=seq)
        yield entry
        prev = entry.hash


def _entry(fields: Sequence[Any], digest: bytes) -> LogEntry:
    """The entry whose values of `KEYS`, but for its hash, are `fields`. Raises ValueError,
    TypeError, AttributeError or KeyError for a field of a wrong form."""
    seq, time, op, actor, owner, file, version, session, stage, rec, *others = fields
    sigs, salt, detail, prev = others
    _need(_TIME.fullmatch(time) is not None and _HEX.fullmatch(prev) is not None)
    _need(type(seq) is int and seq >= 0)
    _need(type(op) is str and type(actor) is str and type(detail) is dict)
    for text in (owner, file, stage):
        _need(text is None or type(text) is str)
    for number in (version, session):
        _need(number is None or type(number) is int)
    entry = LogEntry(
        seq,
        time,
        op,
        actor,
        owner,
        file,
        version,
        session,
        stage,
        rec=None if rec is None else from_text(rec),
        sigs={name: from_text(text) for name, text in sigs.items()},
        salt=from_text(salt),
        detail=detail,
        prev=bytes.fromhex(prev),
        hash=digest,
    )
    _need(len(entry.salt) == SALT_SIZE)
    for known in detail.get("paths", {}).values():
        _need(known is None or _HEX.fullmatch(known) is not None)
    for count, last in detail.get("accounts", {}).values():
        _need(type(count) is int and _HEX.fullmatch(last) is not None)
    _need(len(entry.records) <= 2)
    return entry


def _paths(detail: Mapping[str, Any]) -> dict[str, bytes | None]:
    stated = detail.get("paths", {})
    return {path: None if known is None else bytes.fromhex(known) for path, known in stated.items()}


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError("a field of a wrong form")


def _spelled(
    seq: int,
    time: str,
    op: str,
    actor: str,
    owner: str | None,
    file: str | None,
    version: int | None,
    session: int | None,
    stage: str | None,
    rec: str | None,
    sigs: Mapping[str, str],
    salt: str,
    detail: Mapping[str, Any],
    prev: str,
) -> bytes:
    """The bytes of a line ahead of its hash: an encoder's of these under `KEYS`, at a third of its
    time. Raises TypeError or ValueError for what JSON cannot hold, or text cannot be."""
    signed = ",".join([f"{_TEXT(name)}:{_TEXT(one)}" for name, one in sigs.items()])
    return (
        f'{{"seq":{seq},"time":{_TEXT(time)},"op":{_TEXT(op)},"actor":{_TEXT(actor)},'
        f'"owner":{_optional(owner)},"file":{_optional(file)},"version":{_number(version)},'
        f'"session":{_number(session)},"stage":{_optional(stage)},"rec":{_optional(rec)},'
        f'"sigs":{{{signed}}},"salt":{_TEXT(salt)},"detail":{_detail(detail)},'
        f'"prev":{_TEXT(prev)}'
    ).encode()


def _detail(detail: Mapping[str, Any]) -> str:
    """What nearly every entry has in it is put together here."""
    members = []
    for name, value in detail.items():
        if name == "paths":
            text = ",".join([f"{_TEXT(path)}:{_optional(known)}" for path, known in value.items()])
            text = f"{{{text}}}"
        elif name == "accounts":
            text = ",".join(
                [f"{_TEXT(user)}:[{count},{_TEXT(last)}]" for user, (count, last) in value.items()]
            )
            text = f"{{{text}}}"
        else:
            text = _ENCODER.encode(value)
        members.append(f"{_TEXT(name)}:{text}")
    return f"{{{','.join(members)}}}"


def _optional(text: str | None) -> str:
    return "null" if text is None else _TEXT(text)


def _number(number: int | None) -> str:
    return "null" if number is None else str(number)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"a number of a wrong form: {text[:20]}")


_ENCODER = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=True, allow_nan=False, check_circular=False
)
_TEXT = json.encoder.encode_basestring_ascii
_DECODER = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse)
