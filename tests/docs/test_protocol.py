"""The tables, limits and dumps in docs/protocol.md match the code."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from msgspec import Meta

import sfsd.operations  # noqa: F401 - fills OPERATIONS
from protocol.codec.encoding import MAX_BODY, Buffer
from protocol.codec.fields import OneOf, Struct, empty_or_hash, empty_or_signature
from protocol.codec.names import check_file_id, check_principal, check_user_name
from protocol.records.records import (
    MAX_RECORD,
    OWN_KEYS,
    Device,
    FileRecord,
    LeaveRecord,
    RecoveryKey,
    RotationFinish,
    ServerStatement,
    Statement,
    Writer,
)
from protocol.records.signatures import Label
from protocol.wire.connection import _LEGAL, MAX_OUTSTANDING, ConnectionState, Role
from protocol.wire.frames import MAX_OPENING_BODY
from protocol.wire.messages import Message, Request, registered
from protocol.wire.messages.base import ERROR_CODES, LEAVES_PER_PAGE, MAX_REQUEST, MAX_SMALL, PIECE
from protocol.wire.messages.session import OPENING
from sfsd.rules import context
from sfsd.rules.context import OPERATIONS
from tests.protocol.wire.messages.test_base import REQUEST_DEPTH, REQUEST_ELEMENTS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "protocol.md").read_text("utf-8")
FRAMES = {
    vector["message"]: bytes.fromhex(vector["frame"])
    for vector in json.loads((REPOSITORY / "tests/vectors/protocol.json").read_text("utf-8"))[
        "frames"
    ]
}
LARGEST = 2**53
SESSIONS = {
    context.EVERYONE: "everyone",
    context.USER: "user",
    context.OWN_KEYS: "user, old keys, joining, recovery",
    context.JOINING: "user, joining",
    context.RECOVERING: "user, recovery",
    context.OPERATOR: "operator",
    context.MONITORING: "operator, monitor",
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head row and without backticks."""
    section = re.split(r"^#+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[
        0
    ]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[2:]
    ]


def notation(hint: Any) -> str:  # noqa: ANN401 - a type hint
    """Return a field's type in the notation of the page."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *caps = get_args(hint)
        return _capped(base, caps[-1])
    if origin in (Union, types.UnionType) and hint != Buffer:
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return f"{notation(inner)} or nil"
    if origin is tuple:
        args = [arg for arg in get_args(hint) if arg is not Ellipsis]
        return f"[{', '.join(map(notation, args))}{'…' if Ellipsis in get_args(hint) else ''}]"
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint.__name__
    return {bool: "bool", bytes: "bin", str: "str", int: "int", Buffer: "bulk"}[hint]


def _capped(base: object, cap: object) -> str:
    named: dict[object, str] = {
        check_user_name: "user",
        check_principal: "user or operator",
        check_file_id: "file id",
        empty_or_hash: "bin 0 or 32",
        empty_or_signature: "bin 0 or 64",
    }
    if not isinstance(cap, Meta | OneOf):
        return named[cap]
    if isinstance(cap, OneOf):
        return "code" if cap.values == ERROR_CODES else " / ".join(cap.values)
    if cap.max_length is not None:
        sign = "" if cap.min_length == cap.max_length else "≤ "
        return f"{notation(base)} {sign}{cap.max_length}"
    assert cap.ge is not None
    assert cap.le is not None
    low, high = int(cap.ge), int(cap.le)
    if high == LARGEST:
        return "int" if low == 0 else f"int ≥ {low}"
    power = high.bit_length() - 1
    shown = f"2^{power}" if power > 20 and high == 1 << power else str(high)
    return f"int {low} to {shown}"


def fields(cls: type[Struct]) -> str:
    declared = cls.__declared__.items()
    return ", ".join(f"{name.rstrip('_')}: {notation(hint)}" for name, hint in declared)


def parts() -> set[type[Struct]]:
    """Return every part of a message, at any depth."""
    found: set[type[Struct]] = set()
    waiting: list[Any] = [*registered().values()]
    while waiting:
        hint = waiting.pop()
        if isinstance(hint, type) and issubclass(hint, Struct):
            if not issubclass(hint, Message):
                found.add(hint)
            waiting.extend(hint.__declared__.values())
        else:
            waiting.extend(get_args(hint))
    return found


def test_messages() -> None:
    expected = [
        [str(number), cls.__name__, fields(cls) or "none", *_asking(cls)]
        for number, cls in sorted(registered().items())
    ]
    assert rows("Messages") == expected


def _asking(cls: type[Message]) -> list[str]:
    """Return (answered by, asked by, logged as) of a request; empty for a reply."""
    if not issubclass(cls, Request):
        return ["", "", ""]
    replies = ", ".join(reply.__name__ for reply in cls.REPLIES)
    if cls in OPENING:
        logged = {"Login": "login", "Enroll": "enrol"}
        return [replies, "stranger", logged.get(cls.__name__, "")]
    operation = OPERATIONS[cls]
    return [replies, SESSIONS[operation.access], operation.logged or ""]


def test_parts() -> None:
    assert [row[:2] for row in rows("Parts")] == sorted(
        [cls.__name__, fields(cls)] for cls in parts()
    )


def test_signed_records() -> None:
    labels: dict[type[Struct], Label | None] = {
        ServerStatement: Label.SERVER_STATEMENT,
        Statement: Label.STATEMENT,
        Device: None,
        RecoveryKey: None,
        Writer: None,
        FileRecord: Label.RECORDS,
        RotationFinish: Label.ROTATION_FINISH,
        LeaveRecord: Label.LEAVE,
    }
    own = [[op, ", ".join(keys) or "none"] for op, keys in OWN_KEYS.items()]
    expected = [
        [cls.__name__, fields(cls), label.value.decode() if label else "a part of Statement"]
        for cls, label in labels.items()
    ]
    assert rows("Signed records") == expected
    assert rows("Keys by op") == own


def test_errors() -> None:
    assert tuple(row[0] for row in rows("Errors")) == ERROR_CODES


def test_limits() -> None:
    assert [row[1] for row in rows("Limits")] == [
        f"{MAX_OPENING_BODY} bytes",
        f"{MAX_BODY} bytes",
        f"{MAX_REQUEST} bytes",
        f"{REQUEST_ELEMENTS}",
        f"{REQUEST_DEPTH}",
        f"{MAX_OUTSTANDING}",
        f"{MAX_SMALL} bytes",
        f"{PIECE} bytes",
        f"{LEAVES_PER_PAGE}",
        f"{MAX_RECORD} bytes",
    ]


def test_legal_order() -> None:
    for state, server, client, _ in rows("Legal order"):
        for role, said in ((Role.SERVER, server), (Role.CLIENT, client)):
            legal, limit = _LEGAL[role, ConnectionState[state]]
            assert said.endswith(f"≤ {limit}") or (said, legal) == ("nothing", frozenset())
            if "repl" not in said and "request" not in said.replace("request id", ""):
                assert set(re.findall(r"[A-Z]\w+", said)) == {cls.__name__ for cls in legal}
    assert [row[0] for row in rows("Legal order")] == ["WELCOME", "OPENING", "OPEN"]


DUMPS = re.findall(r"^```hex (\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
LINE = re.compile(r"((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: … (\d+) more)? +(\S.*)")


def test_the_page_shows_every_step_of_an_opening() -> None:
    assert [name for name, _ in DUMPS] == ["Welcome", "Login", "Session", "Ping", "Pong", "Data"]


@pytest.mark.parametrize(("name", "dump"), DUMPS, ids=[name for name, _ in DUMPS])
def test_dumps(name: str, dump: str) -> None:
    frame, at = FRAMES[name], 0
    for line in dump.splitlines():
        found = LINE.fullmatch(line)
        assert found is not None
        shown = bytes.fromhex(found[1])
        assert frame[at : at + len(shown)] == shown
        at += len(shown) + int(found[2] or 0)
    assert at == len(frame)
