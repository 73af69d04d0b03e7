"""Entries of the log in the formats that other programs read: JSON lines, CSV and CEF.

All three have the same facts, one entry a line, and need memory for one entry. Nothing in an entry
can begin a line of its own.

- JSON lines: one object a line, in ASCII, with the members of `FIELDS`, unchanged.
- CSV: RFC 4180, with a header. A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or
  ``@`` for a formula, so such a text gets an apostrophe in front (OWASP, "CSV injection"). Every
  text is quoted, because some spreadsheets separate cells at semicolons too. Unsafe characters are
  escaped as on a terminal.
- CEF: ArcSight Common Event Format, version 0, with keys of its extension dictionary. Unsafe
  characters other than line breaks are escaped as on a terminal.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from protocol import VERSION
from protocol.codec.terminal_text import printable
from protocol.log.auditlog import LogEntry
from sfsd.log.descriptions import REFUSED, attempts, content_size, describe, operation_of

FIELDS: Final = {
    "seq": "number of the entry, from 0",
    "time": "ISO 8601, UTC, with milliseconds",
    "operation": "such as upload or user-quota",
    "kind": "kind of operation, such as stored, opened or refused",
    "severity": "0 to 10; 6 and more calls for a look",
    "actor": "user who did it, or operator or server",
    "owner": "user whose files or account it is about",
    "file": "id of the file, if it is about one",
    "version": "version of that file",
    "files": "number of versions that it is about",
    "size": "bytes of the ciphertext that was stored",
    "attempts": "number of refused requests",
    "address": "address from which it was done",
    "device": "id of the device that logged in",
    "set_first": "seq of the first of the changes that were made together",
    "set_size": "number of changes that were made together",
    "text": "what was done, in words",
    "hash": "hash of the entry, 64 hex digits",
}
"""Members of an exported entry, in order, with their meaning. Each is null (in CSV and CEF:
missing) if the operation has none."""
_FORMULAS: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters by which a formula begins, also in their wide forms."""
_LONGEST: Final = 1023
"""Characters of a text in CEF (dictionary: `msg`, `suser`)."""
_LONGEST_NAME: Final = 512

Row = dict[str, str | int | None]


def export(entries: Iterator[LogEntry], format_name: str) -> Iterator[str]:
    """Yield the lines of entries in one of `FORMATS`, each with its line break, the header first.
    Raises KeyError for another name, and what the iterator raises."""
    header, line_of = FORMATS[format_name]
    yield from header
    for entry in entries:
        yield line_of(_row(entry))


def _row(entry: LogEntry) -> Row:
    operation = operation_of(entry)
    in_set = entry.in_set or (None, None)
    return {
        "seq": entry.seq,
        "time": entry.time,
        "operation": entry.op,
        "kind": operation.kind,
        "severity": operation.severity,
        "actor": entry.actor,
        "owner": entry.owner,
        "file": entry.file,
        "version": entry.version,
        "files": len(entry.versions),
        "size": content_size(entry),
        "attempts": attempts(entry) if operation.kind == REFUSED else None,
        "address": _optional_text(entry, "address"),
        "device": _optional_text(entry, "device"),
        "set_first": in_set[0],
        "set_size": in_set[1],
        "text": describe(entry),
        "hash": entry.hash.hex(),
    }


def _optional_text(entry: LogEntry, key: str) -> str | None:
    value = entry.detail.get(key)
    return value if isinstance(value, str) else None


def _json_line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


def _csv_line(cells: Row | dict[str, str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC).writerow(
        [_csv_cell(cell) for cell in cells.values()]
    )
    return line.getvalue()


def _csv_cell(cell: str | int | None) -> str | int | None:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _cef_line(row: Row) -> str:
    header = ("CEF:0", "sfs", "sfsd", VERSION, row["operation"], row["text"], row["severity"])
    prefix = "|".join([_cef_header(str(part)) for part in header])
    pairs = " ".join(f"{key}={_cef_value(value)}" for key, value in _cef_pairs(row))
    return f"{prefix}|{pairs}\n"


def _cef_pairs(row: Row) -> Iterator[tuple[str, str | int]]:
    """Yield the pairs of the extension. Keys for an address exist for each kind of address."""
    stated: dict[str, str | int | None] = {
        "rt": _milliseconds(str(row["time"])),
        "externalId": row["seq"],
        "act": row["operation"],
        "cat": row["kind"],
        "outcome": "failure" if row["kind"] == REFUSED else "success",
        "suser": row["actor"],
        "duser": row["owner"],
        "fileId": row["file"],
        "fsize": row["size"],
        "cnt": row["attempts"],
        "cs1": row["hash"],
        "cs2": row["device"],
        "cn1": row["version"],
        "cn2": row["set_first"],
        "cn3": row["set_size"],
        "msg": row["text"],
    }
    address = row["address"]
    if isinstance(address, str):
        try:
            is_long = ipaddress.ip_address(address).version == 6
            stated["c6a2" if is_long else "src"] = address
        except ValueError:
            stated["cs3"] = address
    for key, value in stated.items():
        if value is not None and value != "":
            yield key, value
            if key in _LABELS:
                yield f"{key}Label", _LABELS[key]


_LABELS: Final = {
    "cs1": "entryHash",
    "cs2": "deviceId",
    "cs3": "address",
    "cn1": "fileVersion",
    "cn2": "setFirst",
    "cn3": "setSize",
    "c6a2": "Source IPv6 Address",
}


def _milliseconds(time: str) -> int | None:
    """Return the time of an entry in Unix milliseconds, None if there is no such day."""
    try:
        moment = datetime.fromisoformat(time).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return round(moment.timestamp() * 1000)


def _cef_header(text: str) -> str:
    return printable(text)[:_LONGEST_NAME].replace("\\", "\\\\").replace("|", "\\|")


def _cef_value(value: str | int) -> str:
    lines = [printable(line) for line in str(value)[:_LONGEST].splitlines()]
    return "\\n".join(line.replace("\\", "\\\\").replace("=", "\\=") for line in lines)


FORMATS: Final[dict[str, tuple[tuple[str, ...], Callable[[Row], str]]]] = {
    "jsonl": ((), _json_line),
    "csv": ((_csv_line({name: name for name in FIELDS}),), _csv_line),
    "cef": ((), _cef_line),
}
"""The lines before the first entry, and what makes the line of an entry, by format."""
