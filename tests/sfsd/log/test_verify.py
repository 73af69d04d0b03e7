"""A log verified in parts, in one process or several, gets the same verdict as line by line."""

from __future__ import annotations

import hashlib
import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft
from protocol.wire.messages.accounts import UserAdd
from sfsd.cli import main
from sfsd.commands.operator_client import send_requests
from sfsd.errors import ConfigError, JournalDamagedError
from sfsd.log import verify
from sfsd.log.verify import complete_lines, verify_links, verify_log
from tests.sfsd.journals import set_after
from tests.sfsd.rewritten_log import rewritten

ENTRIES = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verified") / "root"
    assert main(["init", "--root", str(path), "--public", "files.example:7373"]) == 0
    names = [f"user{number:02}" for number in range(ENTRIES - 1)]
    send_requests(path, [UserAdd(name, bytes(32), 4_000_000_000, 0) for name in names])
    return path


@pytest.fixture(scope="module")
def written(root: Path) -> bytes:
    return (root / "logs" / "audit.jsonl").read_bytes()


@pytest.fixture
def log(root: Path, written: bytes) -> bytes:
    """Yield the log's bytes and restore them afterwards."""
    (root / "logs" / "audit.jsonl").write_bytes(written)
    return written


def verdict(root: Path, *, strict: bool) -> tuple[object, ...]:
    try:
        found = verify_log(root) if strict else verify_links(root)
    except JournalDamagedError as exc:
        return "damaged", exc.seq
    return found.entries, found.signed, found.root


@pytest.mark.parametrize("part", [1, 700, 5_000, 1 << 24])
def test_an_intact_log_verifies(
    root: Path, log: bytes, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_PART_SIZE", part)
    monkeypatch.setattr(verify, "_MAX_SEQUENTIAL", 10**6)
    assert verdict(root, strict=False) == verdict(root, strict=True)
    # The parts are enough: an intact log is not read again line by line.
    monkeypatch.setattr(verify, "verify_log", None)
    assert verify_links(root).entries == ENTRIES
    # Data past the last newline is being written, and is ignored.
    (root / "logs" / "audit.jsonl").write_bytes(log + b'{"seq":')
    assert verify_links(root).entries == ENTRIES


def set_of_three(log: bytes) -> list[bytes]:
    """Return lines of an atomic set that continue the log, which no checkpoint covers yet."""
    return set_after(log.splitlines()[-1], ENTRIES, "upload", "alice")


@pytest.mark.parametrize("part", [1, 1 << 24])
def test_the_beginning_of_a_set_is_left_out(
    root: Path, log: bytes, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is being written, or a crash has left it, and the next start removes it."""
    monkeypatch.setattr(verify, "_PART_SIZE", part)
    monkeypatch.setattr(verify, "_MAX_SEQUENTIAL", 10**6)
    added = set_of_three(log)
    for count in range(4):
        (root / "logs" / "audit.jsonl").write_bytes(
            log + b"".join(b"%b\n" % one for one in added[:count])
        )
        shown = ENTRIES + (3 if count == 3 else 0)
        assert len(list(complete_lines(root))) == shown
        assert verdict(root, strict=True) == verdict(root, strict=False)
        assert verdict(root, strict=True)[0] == shown


def test_a_follower_reads_what_a_start_wrote_in_place_of_a_torn_end(
    root: Path, log: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, added = root / "logs" / "audit.jsonl", set_of_three(log)
    path.write_bytes(log + added[0] + b"\n" + added[1][:100])
    other, _ = auditlog.encode(
        EntryDraft("start", "operator"),
        seq=ENTRIES,
        time="2026-02-03T04:05:07.000Z",
        salt=bytes(16),
        detail={},
        accounts={},
        tags=(),
        prev=auditlog.line_hash(log.splitlines()[-1]),
    )

    def wait() -> None:
        path.write_bytes(log + other + b"\n")

    shown = list(islice(complete_lines(root, wait=wait), ENTRIES + 1))
    assert shown == [*log.splitlines(), other]


def test_an_interrupted_set_is_damage(root: Path, log: bytes) -> None:
    first, _, last = set_of_three(log)
    for lines in ([first, last], [last]):
        (root / "logs" / "audit.jsonl").write_bytes(log + b"".join(b"%b\n" % one for one in lines))
        assert verdict(root, strict=False) == verdict(root, strict=True)
    entry = auditlog.parse(first)
    alone, _ = auditlog.encode(
        EntryDraft("upload", "alice"),
        seq=ENTRIES + 1,
        time=entry.time,
        salt=bytes(16),
        detail={},
        accounts={},
        tags=(),
        prev=entry.hash,
    )
    (root / "logs" / "audit.jsonl").write_bytes(log + first + b"\n" + alone + b"\n")
    assert verdict(root, strict=True) == ("damaged", ENTRIES + 1)


def test_verification_with_several_processes(
    root: Path, log: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_PART_SIZE", 4_000)
    monkeypatch.setattr(verify, "_MAX_SEQUENTIAL", 0)
    assert verdict(root, strict=False) == verdict(root, strict=True)
    changed = bytearray(log)
    changed[len(log) // 2] ^= 1
    (root / "logs" / "audit.jsonl").write_bytes(bytes(changed))
    assert verdict(root, strict=False) == verdict(root, strict=True)
    assert verdict(root, strict=False)[0] == "damaged"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(part=st.integers(1, 9_000), seed=st.integers(0, 10**6))
def test_damage_gets_the_same_verdict_as_line_by_line(
    root: Path, log: bytes, part: int, seed: int
) -> None:
    chance = random.Random(seed)
    lines = log.splitlines(keepends=True)
    at = chance.randrange(ENTRIES)
    match chance.randrange(6):
        case 0:
            data = bytearray(log)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            changed = bytes(data)
        case 1:
            changed = b"".join([*lines[:at], *lines[at + 1 :]])
        case 2:
            changed = b"".join([*lines[:at], lines[at], *lines[at:]])
        case 3:
            changed = log[: chance.randrange(len(log))]
        case 4:
            bare = [line.rstrip(b"\n") for line in lines]
            again = rewritten(bare, at, chain=chance.random() < 0.5)
            changed = b"".join(line + b"\n" for line in again)
        case _:
            lines[at], lines[-at] = lines[-at], lines[at]
            changed = b"".join(lines)
    (root / "logs" / "audit.jsonl").write_bytes(changed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "_PART_SIZE", part)
        patched.setattr(verify, "_MAX_SEQUENTIAL", 10**6)
        found = verdict(root, strict=False)
    assert found == verdict(root, strict=True)
    assert found[0] == "damaged" or changed == log


def test_a_signed_line_in_another_spelling_is_found_by_the_strict_check(
    root: Path, log: bytes
) -> None:
    """The hash is recomputed over white space: only the holder of the log's key could sign it."""
    bare = log.splitlines()
    spaced = bare[-1].replace(b'"op":', b'"op": ', 1)
    body = spaced[: spaced.rindex(b',"hash"')]
    spaced = body + b',"hash":"%b"}' % hashlib.sha256(body).hexdigest().encode()
    (root / "logs" / "audit.jsonl").write_bytes(b"\n".join([*bare[:-1], spaced]) + b"\n")
    assert verdict(root, strict=True) == ("damaged", ENTRIES - 1)
    assert verdict(root, strict=False) == ("damaged", ENTRIES - 1)


def test_a_missing_log_is_a_config_error(tmp_path: Path) -> None:
    assert main(["init", "--root", str(tmp_path), "--public", "files.example:7373"]) == 0
    (tmp_path / "logs" / "audit.jsonl").unlink(missing_ok=True)
    for verification in (verify_links, verify_log):
        with pytest.raises(ConfigError):
            verification(tmp_path)
    with pytest.raises(ConfigError):
        list(complete_lines(tmp_path))
