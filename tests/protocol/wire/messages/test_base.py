"""Every message: its number, round trips, and malformed input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from protocol.codec import encoding
from protocol.codec.encoding import MAX_BODY, VIEW_FROM, Buffer
from protocol.codec.errors import (
    EncodingError,
    LocalProtocolError,
    MessageError,
    RemoteProtocolError,
    UnknownMessage,
)
from protocol.codec.fields import Struct
from protocol.codec.values import changed
from protocol.records.records import MAX_RECORD
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
from protocol.wire.messages.changes import Change, Commit, WrapBatch
from protocol.wire.messages.downloads import Bytes, LeavesPage
from protocol.wire.messages.session import Ping, Pong
from protocol.wire.messages.uploads import Data
from tests.protocol.codec.test_encoding import VALUES
from tests.protocol.largest import largest
from tests.protocol.strategies import structs
from tests.protocol.wire_form import plain, unpacked
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
    33: "PutOpen",
    34: "UploadState",
    35: "Data",
    36: "PutResume",
    38: "Aborted",
    39: "PutAbort",
    40: "Commit",
    41: "Committed",
    48: "Open",
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
    72: "GiveUp",
    80: "Lookup",
    81: "Identity",
    84: "Inbox",
    85: "InboxPage",
    86: "LeaveFile",
    87: "BlockOwner",
    88: "ListBlocked",
    89: "BlockedOwners",
    96: "Usage",
    97: "UsageAnswer",
    98: "UserList",
    99: "AccountsPage",
    100: "UserShow",
    101: "UserAdd",
    102: "UserAccess",
    103: "Status",
    104: "StatusAnswer",
    105: "StartScrub",
    106: "UserRevoke",
    107: "UserRemove",
    108: "UserErase",
    109: "UserErased",
    112: "LogHead",
    113: "LogCheckpoint",
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
REQUESTS = [cls for cls in CLASSES if issubclass(cls, Request)]
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
@settings(max_examples=25)
@given(st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(structs(cls))
    request_id = data.draw(st.integers(0, 2**32 - 1))
    body = body_of(request_id, message)
    if len(body) <= MAX_BODY:
        assert decode(memoryview(body)) == (request_id, message)
        assert unpacked(body) == [cls.TYPE, request_id, *plain(message)]


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_unknown_elements_are_refused(message: Message) -> None:
    """At the end of a message, before its bulk, and at the end of every part."""
    elements = [message.TYPE, 7, *plain(message)]
    assert decode(memoryview(encoding.pack(elements))) == (7, message)
    longer = [[*elements, 1], [*elements, None], [*elements[:-1], b"", elements[-1]]]
    names = type(message).__struct_fields__
    for at, value in enumerate([getattr(message, name) for name in names], 2):
        longer += [[*elements[:at], more, *elements[at + 1 :]] for more in _grown(value)]
    for wrong in longer:
        with pytest.raises(MessageError):
            decode(memoryview(encoding.pack(wrong)))


def _grown(value: object) -> Iterator[object]:
    """Yield the wire form of a field with one more element in one part of it, for each part."""
    if isinstance(value, Struct):
        form = plain(value)
        yield [*form, None] if isinstance(form, list) else form | {"more": None}
        if isinstance(form, list):
            for at, name in enumerate(value.__struct_fields__):
                for more in _grown(getattr(value, name)):
                    yield [*form[:at], more, *form[at + 1 :]]
    elif isinstance(value, tuple):
        for at, item in enumerate(value):
            for more in _grown(item):
                yield [*value[:at], more, *value[at + 1 :]]


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_too_few_fields(message: Message) -> None:
    elements = [message.TYPE, 7, *plain(message)]
    for count in range(2, len(elements)):
        with pytest.raises(MessageError):
            decode(memoryview(encoding.pack(elements[:count])))


@pytest.mark.parametrize("message", [m for _, m in MESSAGES], ids=lambda m: type(m).__name__)
def test_a_field_of_another_type(message: Message) -> None:
    good = [message.TYPE, 7, *plain(message)]
    assert len(type(message).__struct_fields__) == len(good) - 2
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
            assert memoryview(pieces[-1]).obj is memoryview(bulk).obj
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


def test_a_long_body_is_used_up_and_a_short_one_is_not() -> None:
    for size, is_view in ((VIEW_FROM - 100, False), (VIEW_FROM, True), (base.PIECE, True)):
        body = bytearray(body_of(3, Data(bytes(16), 5, bytes(size))))
        before = bytes(body)
        assert decode(memoryview(body)) == decode(memoryview(before))
        _, message = decode(memoryview(bytearray(before)))
        assert isinstance(message, Data)
        assert (message.upload, message.offset, len(message.data)) == (bytes(16), 5, size)
        assert memoryview(message.data).readonly
        assert (body == before) is not is_view


def test_the_head_has_its_shortest_form() -> None:
    assert decode(memoryview(b"\x93\x14\x07\x05")) == (7, Pong(5))
    for long in (b"\xdc\x00\x03\x14\x07\x05", b"\x93\xcc\x14\x07\x05", b"\x93\x14\xcc\x07\x05"):
        assert unpacked(long) == [20, 7, 5]
        with pytest.raises(MessageError):
            decode(memoryview(long))


REQUEST_ELEMENTS = 16 * 1024
REQUEST_DEPTH = 8


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_fields_of_a_request_bound_its_elements_and_depth(cls: type[Message]) -> None:
    elements, depth = _most(cls)
    assert depth <= REQUEST_DEPTH
    if issubclass(cls, Request):
        assert elements + 2 <= REQUEST_ELEMENTS


def _most(hint: Any, cap: int = 0) -> tuple[int, int]:  # noqa: ANN401 - a type hint
    """Return the most elements and levels that a value of this type has."""
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        caps = [extra.max_length or 0 for extra in args[1:] if isinstance(extra, Meta)]
        return _most(args[0], max(caps, default=0))
    if hint == Buffer:
        return 1, 0
    if get_origin(hint) is tuple and args[1:] == (Ellipsis,):
        elements, depth = _most(args[0])
        return 1 + cap * elements, 1 + depth
    if get_origin(hint) is tuple:
        parts = [_most(arg) for arg in args]
    elif args:
        return max(_most(arg) for arg in args)
    elif isinstance(hint, type) and issubclass(hint, Struct):
        parts = [_most(inner) for inner in hint.__declared__.values()]
    else:
        return 1, 0
    return 1 + sum(count for count, _ in parts), 1 + max((depth for _, depth in parts), default=0)


@pytest.mark.parametrize("cls", REQUESTS, ids=lambda cls: cls.__name__)
def test_the_longest_request_is_decoded_and_has_no_more_elements_than_computed(
    cls: type[Request],
) -> None:
    """Its size is what remains to limit: with all byte strings full, some are too long."""
    message = largest(cls, most_bytes=64)
    assert _count(plain(message)) == _most(cls)
    assert decode(memoryview(bytearray(body_of(1, message)))) == (1, message)
    full = largest(cls, most_bytes=MAX_BODY)
    bulk = 0 if cls.BULK is None else len(getattr(full, cls.BULK))
    body = bytearray(body_of(1, full))
    if len(body) - bulk <= base.MAX_REQUEST:
        assert decode(memoryview(body)) == (1, full)
    else:
        with pytest.raises((MessageError, EncodingError)):
            decode(memoryview(body))


def _count(form: object) -> tuple[int, int]:
    """Return the elements and levels of a wire form."""
    if not isinstance(form, list | tuple):
        return 1, 0
    parts = [_count(part) for part in form]
    return 1 + sum(count for count, _ in parts), 1 + max((depth for _, depth in parts), default=0)


MALFORMED = b"\xc1"
"""A byte that msgpack reserves: whoever decodes it raises `EncodingError`."""


def test_nothing_behind_the_head_of_an_unknown_message_is_read() -> None:
    with pytest.raises(UnknownMessage) as caught:
        decode(memoryview(b"\x93\xcd\x0f\xa0\x4d" + MALFORMED * 1000))
    assert caught.value.request_id == 77


def test_a_request_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    for cls in REQUESTS:
        if cls.BULK is None:
            head = encoding.array_header(len(cls.__struct_fields__) + 2)
            body = head + encoding.pack(cls.TYPE) + b"\x01"
            with pytest.raises(MessageError):
                decode(memoryview(body + MALFORMED * base.MAX_REQUEST))


@pytest.mark.parametrize("cls", REQUESTS, ids=lambda cls: cls.__name__)
def test_nothing_behind_the_last_field_of_a_part_is_read(cls: type[Request]) -> None:
    for body in _with_malformed_element([cls.TYPE, 1, *plain(largest(cls, most_bytes=64))]):
        with pytest.raises(MessageError):
            decode(memoryview(bytearray(body)))


def _with_malformed_element(form: list[object] | tuple[object, ...]) -> Iterator[bytes]:
    """Yield a wire form with one more element, in itself or the first of its parts at each place,
    that cannot be decoded."""
    parts = [encoding.pack(part) for part in form]
    yield encoding.array_header(len(form) + 1) + b"".join(parts) + MALFORMED
    seen = list[object]()
    for at, part in enumerate(form):
        if isinstance(part, list) and part not in seen:
            seen.append(part)
            for wrong in _with_malformed_element(part):
                yield encoding.array_header(len(form)) + b"".join(
                    [*parts[:at], wrong, *parts[at + 1 :]]
                )


def test_a_request_is_short_beside_its_bulk() -> None:
    bulk = bytes(base.PIECE)
    assert decode(memoryview(body_of(1, Data(bytes(16), 0, bulk))))[0] == 1
    batch = WrapBatch(bytes(16), "alice", bytes(32), "xwing", bytes(1120))
    change = Change(bytes(MAX_RECORD), 0, bytes(4096), base.MAX_SMALL)
    small = Commit(
        (change,), (bytes(32),), bytes(64), (batch,) * 257, (), False, bytes(base.MAX_SMALL)
    )
    assert len(body_of(1, small)) > base.MAX_REQUEST
    assert decode(memoryview(body_of(1, small))) == (1, small)
    many = changed(small, changes=(change,) * 20, contents=b"")
    assert base.MAX_REQUEST < len(body_of(1, many)) < MAX_BODY
    with pytest.raises(MessageError):
        decode(memoryview(body_of(1, many)))


def test_a_reply_may_fill_a_frame() -> None:
    page = LeavesPage(bytes(LEAVES_PER_PAGE * 32))
    assert len(body_of(1, page)) > base.MAX_REQUEST
    assert decode(memoryview(body_of(1, page))) == (1, page)


def test_every_class_is_a_request_or_a_reply_and_frozen() -> None:
    for cls in CLASSES:
        assert issubclass(cls, Request) is not issubclass(cls, Reply)
        assert issubclass(cls, Struct)
    with pytest.raises(AttributeError):
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
