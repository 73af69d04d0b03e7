"""Exported entries: the same facts in each format, and nothing in them is taken for more."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.log.auditlog import EntryDraft, LogEntry
from sfsd.log.export import FIELDS, export
from tests.sfsd import log_entries

HOSTILE = "=cmd|' /C calc'!A0\",\"\r\nCEF:0|x \\| a=b \u202e;=1+1"


def entry(op: str = "user-access", actor: str = "operator", **fields: object) -> LogEntry:
    return log_entries.entry(EntryDraft(op, actor, **fields), 3)  # type: ignore[arg-type]


def exported(kind: str, *entries: LogEntry) -> str:
    return "".join(export(iter(entries), kind))


def rows_of_csv(text: str) -> list[dict[str, str]]:
    assert text.count("\r\n") == text.count("\n")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def cef(line: str) -> tuple[list[str], dict[str, str]]:
    """Parse a line as the description of the format says: header fields end at an unescaped pipe,
    a value ends before the next key, and an equals sign in it is escaped."""
    *header, extension = re.split(r"(?<!\\)(?:\\\\)*\|", line.removesuffix("\n"), maxsplit=7)
    assert len(header) == 7
    parts = re.split(r"(?:^| )([A-Za-z0-9]+)(?<!\\)=", extension)
    assert parts[0] == ""
    return header, dict(zip(parts[1::2], parts[2::2], strict=True))


DISABLED = entry(owner="bob", detail={"disabled": True, "reason": "left"})
REFUSED = entry(
    "refused", "server", detail={"address": "192.0.2.9", "count": 12, "codes": {"token": 12}}
)


def test_json_lines_have_every_field() -> None:
    (line,) = exported("jsonl", DISABLED).splitlines()
    found = json.loads(line)
    assert list(found) == list(FIELDS)
    assert (found["seq"], found["operation"], found["kind"]) == (3, "user-access", "administration")
    assert (found["text"], found["attempts"]) == ("disabled bob: left", None)
    assert found["hash"] == DISABLED.hash.hex()
    assert json.loads(exported("jsonl", REFUSED))["attempts"] == 12


def test_csv_has_the_same_facts() -> None:
    first, second = rows_of_csv(exported("csv", DISABLED, REFUSED))
    told = json.loads(exported("jsonl", DISABLED))
    assert first == {name: "" if told[name] is None else str(told[name]) for name in FIELDS}
    assert (second["address"], second["attempts"]) == ("192.0.2.9", "12")
    assert exported("csv").splitlines() == [",".join(f'"{name}"' for name in FIELDS)]


def test_cef_has_the_same_facts() -> None:
    header, pairs = cef(exported("cef", REFUSED))
    assert header[0:3] + header[4:] == [
        "CEF:0",
        "sfs",
        "sfsd",
        "refused",
        "refused 12 requests from 192.0.2.9: token 12",
        "6",
    ]
    assert pairs == {
        "rt": "1795512600123",
        "externalId": "3",
        "act": "refused",
        "cat": "refused",
        "outcome": "failure",
        "suser": "server",
        "cnt": "12",
        "src": "192.0.2.9",
        "cs1": REFUSED.hash.hex(),
        "cs1Label": "entryHash",
        "msg": "refused 12 requests from 192.0.2.9: token 12",
    }


@pytest.mark.parametrize(
    ("address", "key"), [("192.0.2.9", "src"), ("2001:db8::1", "c6a2"), ("others", "cs3")]
)
def test_cef_has_a_key_for_each_kind_of_address(address: str, key: str) -> None:
    _, pairs = cef(exported("cef", entry("login", "bob", detail={"address": address})))
    assert pairs[key] == address


def test_hostile_text_is_harmless_in_every_format() -> None:
    hostile = entry(owner=HOSTILE, actor="@SUM(1)", detail={"disabled": True, "reason": HOSTILE})
    told = exported("jsonl", hostile)
    assert told.count("\n") == 1
    assert told.isascii()
    assert json.loads(told)["owner"] == HOSTILE
    (row,) = rows_of_csv(exported("csv", hostile))
    assert row["owner"].startswith("'=cmd")
    assert row["actor"] == "'@SUM(1)"
    assert all(value.isprintable() for value in row.values())
    line = exported("cef", hostile)
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    header, pairs = cef(line)
    assert header[6] == "5"
    assert pairs["act"] == "user-access"
    assert r"\nCEF:0|x \\| a\=b " in pairs["duser"]


@given(st.text(max_size=30))
def test_csv_cells_are_no_formulas_and_lose_nothing(text: str) -> None:
    try:
        made = entry(owner=text, detail={})
    except UnicodeEncodeError:
        return
    exported_text = exported("csv", made)
    (row,) = rows_of_csv(exported_text)
    assert not row["owner"].startswith(("=", "+", "-", "@"))
    if text.isprintable():
        assert row["owner"].removeprefix("'") == text.removeprefix("'") or row["owner"] == text
    assert exported_text.count("\n") == 2


@given(st.text(max_size=30))
def test_cef_is_one_line_with_the_known_keys(text: str) -> None:
    try:
        made = entry(owner=text or None, detail={"disabled": True, "reason": text})
    except UnicodeEncodeError:
        return
    line = exported("cef", made)
    assert line.count("\n") == 1
    _, pairs = cef(line)
    known = {
        "rt",
        "externalId",
        "act",
        "cat",
        "outcome",
        "suser",
        "duser",
        "cs1",
        "cs1Label",
        "msg",
    }
    assert known - {"duser"} <= set(pairs) <= known
