"""Targets for what the daemon reads from its disk, which an attacker may have edited."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from sfsd.errors import ConfigError, DamagedError, PackError
from sfsd.fs.files import Files
from sfsd.log.tree import TreeMark, stored_mark
from sfsd.server_keys import read_server_statement
from sfsd.storage import packs
from sfsd.storage.json_files import (
    parse_account,
    parse_sidecar,
    parse_sidecar_lenient,
    parse_statements,
)
from sfsd.storage.packs import Member
from sfsd.storage.paths import parse_inbox_name, parse_version_name, parse_version_path
from tests.fuzz.target import Parser, Target
from tests.fuzz.wire_targets import samples_of
from tests.fuzz.world import World

_REFUSED = (DamagedError,)


def sidecar_targets(world: World) -> list[Target]:
    """Return targets for the JSON files, packs, and the other files of a root."""
    sidecars = world.stored("*/files/*/*.json")
    folder = world.server.root.with_name("changed files")
    folder.mkdir()
    marks = [_digest_first(bytes(32) + mark.encode()) for mark in samples_of(TreeMark)]
    statement = (world.server.root / "keys" / "server.statement").read_bytes()
    names = [b"alice/files/01/%b.1.json" % (b"01" * 16), b"%b.2.ct" % (b"ab" * 16)]
    return [
        Parser("sidecar", sidecars, _REFUSED, _parse_sidecar),
        Parser(
            "sidecar with a known hash",
            sidecars,
            _REFUSED,
            lambda raw: parse_sidecar_lenient("", raw),
        ),
        Parser("account", world.stored("*/account.json"), _REFUSED, _parse_account),
        Parser("statements", world.stored("*/statements.json"), _REFUSED, _parse_statements),
        Parser("pack", [_pack()], (PackError,), _reader_of(folder / "pack", _read_pack)),
        Parser(
            "pack with its hash",
            [_pack()],
            (PackError,),
            _reader_of(folder / "pack", _read_pack),
            _rehashed_pack,
        ),
        Parser(
            "mark of the tree", marks, (), _reader_of(folder / "mark", _read_mark), _digest_first
        ),
        Parser(
            "server's statement",
            [statement],
            (ConfigError,),
            _reader_of(
                folder / "server.statement", lambda path: read_server_statement(path.parent)
            ),
        ),
        Parser("names of stored files", names, (), _parse_names),
    ]


def _parse_sidecar(raw: bytes) -> None:
    """Parse a sidecar; what is accepted can be shown, and is the same if it is not checked."""
    found = parse_sidecar("", raw)
    found.view("ada", found.last, 1)
    if parse_sidecar_lenient("", raw) != found:
        raise AssertionError("a sidecar has two contents")


def _parse_account(raw: bytes) -> None:
    found = parse_account("", raw)
    if found.encode(found.seq) != raw:
        raise AssertionError("an account has two forms")


def _parse_statements(raw: bytes) -> None:
    parse_statements("", raw)


def _parse_names(raw: bytes) -> None:
    name = raw.decode(errors="replace")
    for parse in (parse_version_name, parse_version_path, parse_inbox_name):
        parse(name)


def _reader_of(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that stores its input at `path` and reads it."""

    def write_and_read(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return write_and_read


def _pack() -> bytes:
    data = b"content"
    inline = Member("alice/account.json", hashlib.sha256(data).digest(), len(data))
    blob = Member("alice/files/01/x", bytes(32), 10_000, blob="01" * 16)
    return packs.encode([(inline, data), (blob, b""), (inline, data)])


def _rehashed_pack(data: bytes) -> bytes:
    """Return a changed pack with the checksum that its index should have."""
    size = int.from_bytes(data[14:18])
    end = min(18 + size, len(data))
    return data[:end] + hashlib.sha256(data[:end]).digest() + data[end + 32 :]


def _read_pack(path: Path) -> None:
    files = Files()
    with files.closing(files.open_read(path)) as handle:
        packs.read_index(files, handle)


def _digest_first(data: bytes) -> bytes:
    return hashlib.sha256(data[32:]).digest() + data[32:]


def _read_mark(path: Path) -> None:
    """Read the mark of a tree: a damaged one counts as missing."""
    stored_mark(path.parent)
