"""What entries of the log say in words, for every operation that is logged."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sfsd
import sfsd.operations
from protocol.log.auditlog import EntryDraft
from protocol.records.records import OWN_KEYS, PUT, FileRecord
from sfsd.log.descriptions import (
    KINDS,
    OPERATIONS,
    content_size,
    describe,
    shown_time,
    statement_of,
)
from sfsd.rules.context import OPERATIONS as REQUESTS
from tests.sfsd.log_entries import entry

ID = "0123456789abcdef" * 2
OTHER = "f" * 32
DAY = 1_700_000_000


def said(op: str, actor: str = "alice", **fields: object) -> str:
    return describe(entry(EntryDraft(op, actor, **fields)))  # type: ignore[arg-type]


def record(**fields: object) -> bytes:
    common = {
        "server": bytes(32),
        "owner": "alice",
        "actor": "alice",
        "generation": 1,
        "file_id": ID,
        "rev": 1,
        "prev": b"",
        "seen": (1, bytes(32)),
        "created": DAY,
        "readers": (),
        "current": 0,
        "content": b"",
    }
    return FileRecord(**(common | fields)).encode()  # type: ignore[arg-type]


CONTENT = record(
    op=PUT,
    current=1,
    content_id=bytes(16),
    version=1,
    ciphertext_size=1536,
    segments_root=bytes(32),
    dek_commit=bytes(32),
    metadata_sha256=bytes(32),
)

SAID = [
    (said("upload", owner="alice", file=ID, version=2), f"stored version 2 of file {ID}"),
    (
        said("upload", owner="alice", file=ID, version=2, rec=CONTENT),
        f"stored version 2 of file {ID}, 1.5 KiB",
    ),
    (
        said("upload", owner="alice", file=ID, version=1, in_set=(2, 12)),
        f"stored version 1 of file {ID} (change 3 of 12 made together)",
    ),
    (
        said("restore", owner="alice", file=ID, version=4, detail={"from": 2}),
        f"made version 2 the newest, as version 4 of file {ID}",
    ),
    (
        said("move", owner="alice", file=ID, version=1, detail={"from": [OTHER, 3]}),
        f"moved file {OTHER} to file {ID}",
    ),
    (
        said("reencrypt", owner="alice", file=ID, version=1),
        f"encrypted version 1 of file {ID} again",
    ),
    (
        said("download", "bob", owner="alice", detail={"items": [[ID, 2]]}),
        f"opened {ID} version 2 of alice",
    ),
    (
        said("download", owner="alice", detail={"items": [[ID, n] for n in range(1, 6)]}),
        f"opened 5 files: {ID} version 1, {ID} version 2, {ID} version 3 and 2 more",
    ),
    (said("delete", owner="alice", file=ID), f"deleted file {ID}"),
    (
        said("purge", owner="alice", file=ID, rec=record(op="purge", purged=(1, 2))),
        f"removed the content of versions 1, 2 of file {ID}",
    ),
    (
        said("retention", "server", owner="bob", file=ID, detail={"purged": [3], "why": "trash"}),
        f"removed the content of version 3 of file {ID} of bob: trash",
    ),
    (
        said(
            "retention", "server", owner="bob", file=ID, detail={"why": "expired", "reader": "eve"}
        ),
        f"ended the access of eve to file {ID} of bob: it expired",
    ),
    (
        said("retention", "server", owner="bob", detail={"bundles": [1, 2], "why": "bundles"}),
        "removed 2 old bundles of keys of bob",
    ),
    (
        said(
            "lost", "server", owner="bob", file=ID, version=1, detail={"why": "the newest sidecar"}
        ),
        f"marked version 1 of file {ID} of bob as lost: the newest sidecar",
    ),
    (
        said("lost", "server", detail={"why": "the end of the log was lost", "entries": [12]}),
        "marked what entries 12 wrote as lost: the end of the log was lost",
    ),
    (
        said(
            "access", owner="alice", file=ID, detail={"added": ["bob"], "dropped": ["eve", "joe"]}
        ),
        f"shared file {ID} with bob and took it back from eve, joe",
    ),
    (
        said("access", owner="alice", file=ID, detail={"added": [], "dropped": ["eve"]}),
        f"took file {ID} back from eve",
    ),
    (said("leave", "bob", owner="alice", file=ID), f"left file {ID} of alice"),
    (said("block", detail={"user": "eve", "blocked": True}), "blocked eve"),
    (said("block", detail={"user": "eve", "blocked": False}), "no longer blocks eve"),
    (
        said("enrol", detail={"generation": 1, "wrap_alg": "xwing"}),
        "enrolled with keys of type xwing",
    ),
    (
        said("statement", detail={"n": 3, "reason": "device"}),
        "changed the devices of the account, statement 3",
    ),
    (
        said("rotate-force", "operator", owner="bob", detail={"reason": "stolen"}),
        "requires bob to rotate: stolen",
    ),
    (
        said("rotate-begin", detail={"generation": 2, "reason": "compromised"}),
        "began a rotation to keys of generation 2 after a theft",
    ),
    (
        said("rewrap", owner="bob", detail={"generation": 2, "count": 32}),
        "encrypted the keys of 32 versions of bob for generation 2",
    ),
    (
        said("rotate-finish", detail={"generation": 2, "files": 1, "left_out": 3}),
        "finished the rotation to generation 2: 1 version, 3 left out because they are damaged",
    ),
    (
        said("rotation-due", "server", owner="bob", detail={"generation": 1, "expires": DAY}),
        "the keys of bob, generation 1, are due; valid until 2023-11-14 22:13:20Z",
    ),
    (
        said("login", detail={"address": "192.0.2.1", "device": "ab12cd34" * 4, "access": "full"}),
        "logged in from 192.0.2.1, device ab12cd34",
    ),
    (
        said("login", detail={"address": "192.0.2.1", "access": "recovering"}),
        "logged in from 192.0.2.1, access recovering",
    ),
    (
        said("user-add", "operator", owner="bob", detail={"quota": 50 << 30, "expires": DAY}),
        "invited bob until 2023-11-14 22:13:20Z, quota 50.0 GiB",
    ),
    (
        said("user-access", "operator", owner="bob", detail={"disabled": True, "reason": "left"}),
        "disabled bob: left",
    ),
    (
        said("user-access", "operator", owner="bob", detail={"disabled": False, "reason": ""}),
        "enabled bob",
    ),
    (
        said("user-quota", "operator", owner="bob", detail={"quota": 0, "before": 1 << 30}),
        "set the quota of bob to no limit, was 1.0 GiB",
    ),
    (said("server-statement", "server"), "stated the keys of the server"),
    (said("start", "server", detail={"address": "[::]:7"}), "the daemon started on [::]:7"),
    (said("stop", "server"), "the daemon stopped"),
    (
        said(
            "refused",
            "server",
            detail={
                "address": "192.0.2.9",
                "count": 12,
                "codes": {"token": 10, "denied": 2},
                "users": {"alice": 12},
            },
        ),
        "refused 12 requests from 192.0.2.9: token 10, denied 2; as alice 12",
    ),
    (
        said("later", owner="bob", detail={"x": [1], "paths": {}}),
        "later: bob, x=[1]",
    ),
]


@pytest.mark.parametrize(("text", "expected"), SAID, ids=[expected for _, expected in SAID])
def test_entry_in_words(text: str, expected: str) -> None:
    assert text == expected


def test_every_operation_that_is_logged_has_a_description() -> None:
    """The names are collected from where they are logged: the requests, the ops of file records,
    and every draft of an entry."""
    for module in pkgutil.iter_modules(sfsd.operations.__path__, "sfsd.operations."):
        importlib.import_module(module.name)
    logged = {op for one in REQUESTS.values() for op in re.findall("[a-z-]+", one.logged or "")}
    logged |= set(OWN_KEYS) - {PUT}
    for path in Path(sfsd.__path__[0]).rglob("*.py"):
        source = path.read_text("utf-8")
        logged |= set(
            re.findall(r'(?:EntryDraft\(\s*(?:op=)?|draft\(\s*who,\s*)"([a-z-]+)"', source)
        )
        logged |= set(re.findall(r'_log_event\("([a-z-]+)"', source))
    assert len(logged) > 20
    assert logged - {"or"} - set(OPERATIONS) == set()
    assert {one.kind for one in OPERATIONS.values()} < set(KINDS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = sorted(
    {"quota", "before", "expires", "disabled", "reason", "address", "count", "codes", "users"}
    | {"from", "added", "dropped", "purged", "why", "reader", "bundles", "entries", "user"}
    | {"generation", "n", "files", "left_out", "device", "access", "wrap_alg", "blocked"}
)


@given(
    st.sampled_from([one for one in [*OPERATIONS, "later"] if one != "download"]),
    st.dictionaries(st.sampled_from(MEMBERS), VALUES, max_size=4),
    st.binary(max_size=8),
    st.none() | st.text(max_size=40),
)
def test_an_entry_with_any_detail_is_described(
    op: str, detail: dict[str, object], rec: bytes, owner: str | None
) -> None:
    try:
        made = entry(EntryDraft(op, "alice", owner=owner, rec=rec, detail=detail))
    except UnicodeEncodeError:  # no line of a log can hold it
        return
    assert describe(made)
    assert content_size(made) is None
    assert statement_of(made) is None


def test_times_of_entries() -> None:
    assert shown_time(entry(EntryDraft("stop", "server"))) == "2026-11-24 09:30:00Z"
    impossible = entry(EntryDraft("stop", "server"), time="2026-99-24T09:30:00.123Z")
    assert shown_time(impossible, local=True) == "2026-99-24T09:30:00.123Z"
