"""Every message: its number, round trips, and malformed input."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.encoding import MAX_BODY, VIEW_FROM
from protocol.codec.errors import (
    EncodingError,
    LocalProtocolError,
    MessageError,
    RemoteProtocolError,
    UnknownMessage,
)
from protocol.codec.fields import Struct, field_count, hints
from protocol.records.records import FileRecord, Statement
from protocol.wire.messages import (
    Error,
    Message,
    Reply,
    Request,
    base,
    decode,
    encode,
    registered,
)
from protocol.wire.messages.base import LEAVES_PER_PAGE
from protocol.wire.messages.downloads import Bytes, LeavesPage
from protocol.wire.messages.session import Ping, Pong
from protocol.wire.messages.uploads import Data
from tests.protocol.codec.test_encoding import VALUES
from tests.protocol.strategies import structs
from tests.vectors.protocol_examples import MESSAGES

# Wire numbers of version 1, which are never reused.
NUMBERS = {
    1: "Error",
    2: "Done",
    16: "Welcome",
    17: "Login",
    18: "Session",
    19: "Enroll",
    20: "Pong",
    21: "Ping",
    32: "PutSmall",
    33: "PutOpen",
    34: "UploadState",
    35: "Data",
    36: "PutResume",
    37: "PutCommit",
    38: "Aborted",
    39: "PutAbort",
    48: "GetOpen",
    49: "Opened",
    50: "GetLeaves",
    51: "LeavesPage",
    52: "Read",
    53: "Bytes",
    64: "Stat",
    65: "Stated",
    66: "List",
    67: "Listing",
    68: "History",
    69: "HistoryPage",
    70: "Record",
    72: "GiveUp",
    80: "Lookup",
    81: "Identity",
    82: "SetReaders",
    84: "Inbox",
    85: "InboxPage",
    96: "Usage",
    97: "UsageAnswer",
    98: "UserList",
    99: "AccountsPage",
    100: "UserShow",
    101: "UserAdd",
    102: "UserAccess",
    103: "Status",
    104: "StatusAnswer",
    112: "LogHead",
    113: "LogCheckpoint",
    114: "LogEntries",
    115: "LogPage",
    116: "LogProof",
    117: "LogProven",
    118: "LogLeaves",
    119: "LogLeavesPage",
    120: "LogLines",
    121: "LogLinesPage",
    128: "NewStatement",
    130: "GetBundle",
    131: "SealedBundle",
    132: "RotateBegin",
    134: "GetWraps",
    135: "WrapsPage",
    136: "Rewrap",
    137: "Rewrapped",
    138: "RotateFinish",
    142: "UserQuota",
    144: "ForceRotation",
}
CLASSES = list(registered().values())
ANY_MESSAGE = st.sampled_from(CLASSES).flatmap(structs)


def body_of(request_id: int, message: Message) -> bytes:
    return b"".join(encode(request_id, message))


def test_numbers() -> None:
    assert {number: cls.__name__ for number, cls in registered().items()} == NUMBERS
    assert {cls.TYPE for cls in CLASSES} == set(NUMBERS)


def test_message_numbers_are_unique() -> None:
    class Second(Reply):
        pass

    with pytest.raises(LocalProtocolError):
        base.message(20)(Second)
    assert registered()[20] is Pong


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(structs(cls))
    request_id = data.draw(st.integers(0, 2**32 - 1))
    body = body_of(request_id, message)
    if len(body) <= MAX_BODY:
        assert decode(memoryview(body)) == (request_id, message)
        assert encoding.unpack(body) == [cls.TYPE, request_id, *message.to_array()]


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_a_later_version_may_add_fields(message: Message) -> None:
    """New fields come at the end of a message, before its bulk, and at the end of every part."""
    fields = [getattr(message, field.name) for field in dataclasses.fields(message)]
    elements = [message.TYPE, 7, *map(_grown, fields)]
    bulk = [elements.pop()] if message.BULK else []
    body = encoding.pack([*elements, "new", {"new": 1}, *bulk])
    assert decode(memoryview(body)) == (7, message)


def _grown(value: object) -> object:
    """Return the wire form of a field with one additional element in each part."""
    if isinstance(value, Struct):
        names = [field.name for field in dataclasses.fields(value)]
        return [*(_grown(getattr(value, name)) for name in names), None]
    return list(map(_grown, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_too_few_fields(message: Message) -> None:
    elements = [message.TYPE, 7, *message.to_array()]
    for count in range(2, len(elements)):
        with pytest.raises(MessageError):
            decode(memoryview(encoding.pack(elements[:count])))


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_a_field_of_another_type(message: Message) -> None:
    good = [message.TYPE, 7, *message.to_array()]
    assert field_count(type(message)) == len(good) - 2
    for at, value in enumerate(good[2:], 2):
        wrong: list[object] = [1.5, [[]], {"key": 1}, "text" if type(value) is not str else 1]
        if type(value) is not bool:
            wrong.append(True)
        for other in wrong:
            with pytest.raises(MessageError):
                decode(memoryview(encoding.pack([*good[:at], other, *good[at + 1 :]])))


@pytest.mark.parametrize(
    "body",
    [
        "90",
        "9115",
        "9215c0",
        "92c015",
        "921501" + "00",
        "9215ff",
        "9215c3",
        "92c301",
        "9215a131",
        "9215cb0000000000000000",
        "92cb403500000000000001",
        "9215cf0000000100000000",
        "93a4506f6e6701",
        "82150100c0",
        "d415c0",
    ],
)
def test_malformed_messages(body: str) -> None:
    with pytest.raises((MessageError, EncodingError)):
        decode(memoryview(bytes.fromhex(body)))


@given(
    st.integers(-(2**63), 2**64 - 1).filter(lambda number: number not in NUMBERS),
    st.integers(0, 2**32 - 1),
    st.lists(VALUES, max_size=4),
)
def test_unknown_types_report_the_request_id(
    number: int, request_id: int, fields: list[object]
) -> None:
    with pytest.raises(UnknownMessage) as caught:
        decode(memoryview(encoding.pack([number, request_id, *fields])))
    assert (caught.value.number, caught.value.request_id) == (number, request_id)


@pytest.mark.parametrize("size", [0, 1, 1000, VIEW_FROM, base.PIECE])
def test_encoding_does_not_copy_bulk(size: int) -> None:
    for bulk in (bytes(size), bytearray(size), memoryview(bytes(size))):
        for message in (Data(bytes(16), 0, bulk), Bytes(bulk)):
            pieces = encode(1, message)
            assert pieces[-1] is bulk
            assert decode(memoryview(b"".join(pieces))) == (1, message)


def test_decoded_bulk_is_a_view_of_the_body() -> None:
    body = bytearray(body_of(1, Data(bytes(16), 0, bytes(base.PIECE))))
    _, message = decode(memoryview(body))
    assert isinstance(message, Data)
    body[-1] = 9
    assert message.data[-1] == 9


def test_long_last_fields_other_than_bulk_are_bytes() -> None:
    page = LeavesPage(bytes(LEAVES_PER_PAGE * 32))
    _, message = decode(memoryview(body_of(1, page)))
    assert isinstance(message, LeavesPage)
    assert type(message.leaves) is bytes
    assert message == page


def test_bulk_is_capped() -> None:
    body = body_of(1, Bytes(bytes(base.PIECE)))
    assert len(body) == base.PIECE + 8
    assert decode(memoryview(body))[0] == 1
    with pytest.raises(MessageError):
        Bytes(bytes(base.PIECE + 1))
    longer = encoding.pack([Bytes.TYPE, 1, bytes(base.PIECE + 1)])
    with pytest.raises(MessageError):
        decode(memoryview(longer))


def test_errors() -> None:
    for code in base.ERROR_CODES:
        assert decode(memoryview(body_of(1, Error(code, "text")))) == (1, Error(code, "text"))
    for code, text in (("no-such-code", ""), ("denied", "x" * 513)):
        with pytest.raises(MessageError):
            Error(code, text)


def test_field_types_match_get_type_hints() -> None:
    known: list[type[Struct]] = [FileRecord, Statement, *CLASSES]
    for cls in known:
        expected = get_type_hints(cls, include_extras=True)
        assert hints(cls) == {f.name: expected[f.name] for f in dataclasses.fields(cls)}


def test_every_class_is_a_request_or_a_reply_and_frozen() -> None:
    for cls in CLASSES:
        assert issubclass(cls, Request) is not issubclass(cls, Reply)
        assert issubclass(cls, Struct)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pong(1).time = 2  # type: ignore[misc]
    assert not hasattr(Ping(), "__dict__")


@given(st.lists(VALUES, max_size=8), st.sampled_from([*NUMBERS, 0, 255]))
def test_any_fields_decode_or_raise_remote_errors(fields: list[object], number: int) -> None:
    body = encoding.pack([number, 1, *fields])
    try:
        _, message = decode(memoryview(body))
    except RemoteProtocolError:
        return
    assert number == message.TYPE


@given(ANY_MESSAGE, st.data())
def test_damaged_messages_differ_or_raise_remote_errors(
    message: Message, data: st.DataObject
) -> None:
    body = bytearray(body_of(1, message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(body), 400) - 1))
        edit = data.draw(st.sampled_from(["flip", "insert", "remove", "cut"]))
        if edit == "flip":
            body[at] ^= data.draw(st.integers(1, 255))
        elif edit == "insert":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif edit == "remove" and len(body) > 1:
            del body[at]
        elif at:
            del body[at:]
    try:
        _, damaged = decode(memoryview(body))
    except RemoteProtocolError:
        return
    assert type(damaged) in CLASSES
