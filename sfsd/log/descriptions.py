"""Descriptions in words of what an entry of the log did, for operators.

An entry is untrusted where the log was rewritten: every member of its detail may be missing or of
another type. A description is then less precise, and is never refused. It may hold any character,
so the caller makes it printable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from protocol.codec.errors import RemoteProtocolError
from protocol.codec.terminal_text import counted, human_size, human_time
from protocol.log.auditlog import DOWNLOAD, LEAVE, LOST, RETENTION, REWRAP, LogEntry
from protocol.records import records
from protocol.records.records import FileRecord, Statement

STORED: Final = "stored"
OPENED: Final = "opened"
REMOVED: Final = "removed"
SHARED: Final = "shared"
KEYS: Final = "keys"
LOGINS: Final = "logins"
ADMINISTRATION: Final = "administration"
REFUSED: Final = "refused"
OTHER: Final = "other"
KINDS: Final = {
    STORED: "Stored or changed",
    OPENED: "Opened",
    REMOVED: "Removed",
    SHARED: "Shared",
    KEYS: "Keys and rotations",
    LOGINS: "Logins",
    ADMINISTRATION: "Administration",
    REFUSED: "Refused",
    OTHER: "Other",
}
"""Kinds of operations, with their headings."""
_LISTED: Final = 3
"""Files or users that a description names; of the others it has the number."""
_PLACES: Final = 8
"""Digits of the id of a device, as `sfsc device list` shows it."""


class Operation(NamedTuple):
    """An operation of the log: one of `KINDS`, what it is, and what describes an entry of it.
    `severity` is 0 to 10, as CEF has it: 3 is ordinary, 6 and more calls for a look."""

    kind: str
    meaning: str
    describe: Callable[[LogEntry, bool], str]
    severity: int = 3


def operation_of(entry: LogEntry) -> Operation:
    """Return the operation of an entry; one of a later version is of the kind `OTHER`."""
    return OPERATIONS.get(entry.op, _UNKNOWN)


def describe(entry: LogEntry, *, local: bool = False) -> str:
    """Return what was done, without who did it: ``disabled bob: left the company``.

    Times in it are in UTC, or with `local` in this machine's time zone. Not printable as it is.
    """
    text = operation_of(entry).describe(entry, local)
    if entry.in_set is not None:
        first, count = entry.in_set
        text += f" (change {entry.seq - first + 1} of {count} made together)"
    return text


def time_of(entry: LogEntry) -> int | None:
    """Return the time of an entry in whole Unix seconds, None if it states no possible time."""
    try:
        return int(datetime.fromisoformat(entry.time).timestamp())
    except (ValueError, OverflowError):
        return None


def shown_time(entry: LogEntry, *, local: bool = False) -> str:
    """Return the time of an entry as people read it, in UTC or in this machine's time zone."""
    seconds = time_of(entry)
    return entry.time if seconds is None else human_time(seconds, local=local)


def attempts(entry: LogEntry) -> int:
    """Return how many refused requests an entry of the operation `refused` counts, 1 if it does
    not say."""
    return _number(entry.detail, "count") or 1


def statement_of(entry: LogEntry) -> Statement | None:
    """Return the identity statement of an entry, None if it has no valid one."""
    try:
        return None if entry.rec is None else Statement.parse(entry.rec)
    except RemoteProtocolError:
        return None


def content_size(entry: LogEntry) -> int | None:
    """Return the bytes of the ciphertext that an entry's file record describes, or None."""
    record = _file_record(entry)
    return None if record is None else record.ciphertext_size


def _file_record(entry: LogEntry) -> FileRecord | None:
    try:
        return None if entry.rec is None else FileRecord.parse(entry.rec)
    except RemoteProtocolError:
        return None


# --- members of a detail, of any type


def _text(detail: Mapping[str, Any], key: str, default: str = "?") -> str:
    value = detail.get(key, default)
    return value if isinstance(value, str) else json.dumps(value)


def _number(detail: Mapping[str, Any], key: str) -> int | None:
    value = detail.get(key)
    return value if type(value) is int and value >= 0 else None


def _list(detail: Mapping[str, Any], key: str) -> list[str]:
    value = detail.get(key)
    if not isinstance(value, list):
        return []
    return [one if isinstance(one, str) else json.dumps(one) for one in value]


def _counts(detail: Mapping[str, Any], key: str) -> str:
    """Return ``token 3, denied 1`` of a map of numbers."""
    value = detail.get(key)
    if not isinstance(value, dict):
        return ""
    return _listed([f"{name} {json.dumps(count)}" for name, count in value.items()])


def _time(detail: Mapping[str, Any], key: str, local: bool) -> str:
    seconds = _number(detail, key)
    return "an unknown time" if seconds is None else human_time(seconds, local=local)


def _quota(detail: Mapping[str, Any], key: str) -> str:
    size = _number(detail, key)
    if size is None:
        return "an unknown quota"
    return f"{human_size(size)}" if size else "no limit"


def _because(detail: Mapping[str, Any], key: str = "reason") -> str:
    reason = _text(detail, key, "")
    return f": {reason}" if reason else ""


def _listed(names: list[str], most: int = _LISTED) -> str:
    """Return ``a, b, c and 4 more``."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _file(entry: LogEntry) -> str:
    """Return ``file ID of alice``, without the owner if the actor is the owner."""
    whose = "" if entry.owner in (entry.actor, None) else f" of {entry.owner}"
    return f"file {entry.file or '?'}{whose}"


def _version(entry: LogEntry) -> str:
    return _file(entry) if entry.version is None else f"version {entry.version} of {_file(entry)}"


def _of_owner(entry: LogEntry) -> str:
    return entry.owner or "?"


# --- descriptions


def _stored(entry: LogEntry, _local: bool) -> str:
    size = content_size(entry)
    return f"stored {_version(entry)}" + ("" if size is None else f", {human_size(size)}")


def _reencrypted(entry: LogEntry, _local: bool) -> str:
    return f"encrypted {_version(entry)} again"


def _restored(entry: LogEntry, _local: bool) -> str:
    source = _number(entry.detail, "from")
    return f"made version {'?' if source is None else source} the newest, as {_version(entry)}"


def _moved(entry: LogEntry, _local: bool) -> str:
    source = _list(entry.detail, "from")
    return f"moved file {source[0] if source else '?'} to {_file(entry)}"


def _opened(entry: LogEntry, _local: bool) -> str:
    files = [f"{file} version {version}" for file, version in entry.versions]
    whose = "" if entry.owner in (entry.actor, None) else f" of {entry.owner}"
    number = "" if len(files) == 1 else counted(len(files), "file") + ": "
    return f"opened {number}{_listed(files)}{whose}"


def _deleted(entry: LogEntry, _local: bool) -> str:
    return f"deleted {_file(entry)}"


def _purged(entry: LogEntry, _local: bool) -> str:
    record = _file_record(entry)
    numbers = () if record is None else record.purged or ()
    return f"removed the content of {_versions(list(map(str, numbers)))} of {_file(entry)}"


def _versions(numbers: list[str]) -> str:
    if not numbers:
        return "versions"
    return f"version{'' if len(numbers) == 1 else 's'} {_listed(numbers, 8)}"


def _retention(entry: LogEntry, _local: bool) -> str:
    detail = entry.detail
    if "bundles" in detail:
        count = counted(len(_list(detail, "bundles")), "old bundle of keys", "old bundles of keys")
        return f"removed {count} of {_of_owner(entry)}"
    if "reader" in detail:
        why = {"expired": ": it expired", "removed": ": the account was removed"}
        because = why.get(_text(detail, "why", ""), "")
        return f"ended the access of {_text(detail, 'reader')} to {_file(entry)}{because}"
    versions = _versions(_list(detail, "purged"))
    return f"removed the content of {versions} of {_file(entry)}{_because(detail, 'why')}"


def _lost(entry: LogEntry, _local: bool) -> str:
    what = (
        _version(entry)
        if entry.file
        else f"what entries {_listed(_list(entry.detail, 'entries'))} wrote"
    )
    why = _text(entry.detail, "why", "")
    return f"marked {what} as lost" + ("" if why in ("", LOST) else f": {why}")


def _shared(entry: LogEntry, _local: bool) -> str:
    added, dropped = _list(entry.detail, "added"), _list(entry.detail, "dropped")
    done = [f"shared {_file(entry)} with {_listed(added)}"] if added else []
    if dropped:
        done.append(f"took {'it' if added else _file(entry)} back from {_listed(dropped)}")
    return " and ".join(done) or f"renewed the access to {_file(entry)}"


def _left(entry: LogEntry, _local: bool) -> str:
    return f"left {_file(entry)}"


def _blocked(entry: LogEntry, _local: bool) -> str:
    verb = "blocked" if entry.detail.get("blocked") is True else "no longer blocks"
    return f"{verb} {_text(entry.detail, 'user')}"


def _enrolled(entry: LogEntry, _local: bool) -> str:
    return f"enrolled with keys of type {_text(entry.detail, 'wrap_alg')}"


def _statement(entry: LogEntry, _local: bool) -> str:
    about = {
        records.DEVICE: "changed the devices of the account",
        records.RECOVERY_KEY: "changed the recovery key",
    }
    reason = _text(entry.detail, "reason")
    done = about.get(reason, f"changed the account ({reason})")
    return f"{done}, statement {_text(entry.detail, 'n')}"


def _rotation_begun(entry: LogEntry, _local: bool) -> str:
    about = {
        records.COMPROMISED: " after a theft",
        records.RECOVERY: " with the recovery code",
    }
    reason = about.get(_text(entry.detail, "reason"), "")
    return f"began a rotation to keys of generation {_text(entry.detail, 'generation')}{reason}"


def _rotation_finished(entry: LogEntry, _local: bool) -> str:
    left_out = _number(entry.detail, "left_out")
    also = f", {left_out} left out because they are damaged" if left_out else ""
    generation = _text(entry.detail, "generation")
    versions = counted(_number(entry.detail, "files") or 0, "version")
    return f"finished the rotation to generation {generation}: {versions}{also}"


def _rewrapped(entry: LogEntry, _local: bool) -> str:
    versions = counted(_number(entry.detail, "count") or 0, "version")
    whose = "" if entry.owner in (entry.actor, None) else f" of {entry.owner}"
    generation = _text(entry.detail, "generation")
    return f"encrypted the keys of {versions}{whose} for generation {generation}"


def _due(entry: LogEntry, local: bool) -> str:
    generation = _text(entry.detail, "generation")
    until = _time(entry.detail, "expires", local)
    return f"the keys of {_of_owner(entry)}, generation {generation}, are due; valid until {until}"


def _forced(entry: LogEntry, _local: bool) -> str:
    return f"requires {_of_owner(entry)} to rotate{_because(entry.detail)}"


def _logged_in(entry: LogEntry, _local: bool) -> str:
    detail = entry.detail
    device = _text(detail, "device", "")
    by = f", device {device[:_PLACES]}" if device else ""
    access = _text(detail, "access", "")
    only = "" if access in ("", "full", "operator") else f", access {access}"
    return f"logged in from {_text(detail, 'address')}{by}{only}"


def _invited(entry: LogEntry, local: bool) -> str:
    until = _time(entry.detail, "expires", local)
    return f"invited {_of_owner(entry)} until {until}, quota {_quota(entry.detail, 'quota')}"


def _access(entry: LogEntry, _local: bool) -> str:
    known = {True: "disabled", False: "enabled"}
    disabled = entry.detail.get("disabled")
    verb = known[disabled] if isinstance(disabled, bool) else "changed the access of"
    return f"{verb} {_of_owner(entry)}{_because(entry.detail)}"


def _revoked(entry: LogEntry, _local: bool) -> str:
    return f"revoked the devices of {_of_owner(entry)}{_because(entry.detail)}"


def _account_removed(entry: LogEntry, local: bool) -> str:
    when = _time(entry.detail, "removal", local)
    return f"removed {_of_owner(entry)}, files from {when} on{_because(entry.detail)}"


def _erased(entry: LogEntry, _local: bool) -> str:
    return f"removed the files of {_of_owner(entry)}"


def _quota_set(entry: LogEntry, _local: bool) -> str:
    before = _quota(entry.detail, "before")
    return f"set the quota of {_of_owner(entry)} to {_quota(entry.detail, 'quota')}, was {before}"


def _started(entry: LogEntry, _local: bool) -> str:
    return f"the daemon started on {_text(entry.detail, 'address')}"


def _refused(entry: LogEntry, _local: bool) -> str:
    detail = entry.detail
    codes, users = _counts(detail, "codes"), _counts(detail, "users")
    about = "; ".join(filter(None, (codes, users and f"as {users}")))
    done = f"refused {counted(attempts(entry), 'request')} from {_text(detail, 'address')}"
    return f"{done}: {about}" if about else done


def _other(entry: LogEntry, _local: bool) -> str:
    about = [] if entry.owner is None else [entry.owner]
    about += [_version(entry)] if entry.file else []
    about += list(_members(entry.detail))
    return f"{entry.op}: {', '.join(about)}" if about else entry.op


def _members(detail: Mapping[str, Any]) -> Iterator[str]:
    for key, value in detail.items():
        if key != "paths":
            yield f"{key}={json.dumps(value)[:100]}"


def _said(text: str) -> Callable[[LogEntry, bool], str]:
    return lambda _entry, _local: text


OPERATIONS: Final[Mapping[str, Operation]] = {
    "upload": Operation(STORED, "a version of a file was stored", _stored),
    "restore": Operation(STORED, "an old version was made the newest", _restored),
    "move": Operation(STORED, "a file was moved", _moved),
    "reencrypt": Operation(STORED, "a version was encrypted again", _reencrypted),
    DOWNLOAD: Operation(OPENED, "versions of files were opened", _opened),
    "delete": Operation(REMOVED, "a file was deleted", _deleted),
    "purge": Operation(REMOVED, "the content of versions was removed", _purged),
    RETENTION: Operation(REMOVED, "the server removed what its settings let expire", _retention),
    LOST: Operation(REMOVED, "bytes are gone", _lost, 8),
    "access": Operation(SHARED, "the readers of a file were changed", _shared),
    LEAVE: Operation(SHARED, "a reader left a file", _left),
    "block": Operation(SHARED, "a user blocked another one, or ended that", _blocked),
    "enrol": Operation(KEYS, "a user enrolled", _enrolled),
    "statement": Operation(KEYS, "devices or recovery key were changed", _statement, 4),
    "rotate-force": Operation(KEYS, "the operator required a rotation", _forced, 5),
    "rotate-begin": Operation(KEYS, "a rotation began", _rotation_begun, 4),
    REWRAP: Operation(KEYS, "keys of versions were encrypted for new keys", _rewrapped),
    "rotate-finish": Operation(KEYS, "a rotation was finished", _rotation_finished),
    "rotation-due": Operation(KEYS, "the keys of a user fell due", _due, 5),
    "login": Operation(LOGINS, "a session was opened", _logged_in, 2),
    "user-add": Operation(ADMINISTRATION, "a user was invited", _invited, 4),
    "user-access": Operation(ADMINISTRATION, "a user was disabled or enabled", _access, 5),
    "user-revoke": Operation(ADMINISTRATION, "a user's devices were revoked", _revoked, 6),
    "user-remove": Operation(ADMINISTRATION, "a user was removed", _account_removed, 6),
    "user-erase": Operation(REMOVED, "the files of a removed user were removed", _erased, 5),
    "user-quota": Operation(ADMINISTRATION, "a quota was set", _quota_set, 4),
    "server-statement": Operation(
        ADMINISTRATION, "the server's keys were stated", _said("stated the keys of the server"), 5
    ),
    "start": Operation(ADMINISTRATION, "the daemon started", _started),
    "stop": Operation(ADMINISTRATION, "the daemon stopped", _said("the daemon stopped")),
    "refused": Operation(REFUSED, "requests were refused", _refused, 6),
}
"""Every operation that this version logs."""
_UNKNOWN: Final = Operation(OTHER, "an operation of another version", _other)
