"""The keyring file: what opens, what does not and why, and that it is replaced atomically."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from sfsc.crypto.primitives import SEAL_OVERHEAD, argon2id, seal
from sfsc.errors import (
    ConflictError,
    KeyringDamaged,
    KeyringMissing,
    LocalError,
    SfscError,
    UsageError,
    WrongPassphrase,
)
from sfsc.keys import keyring
from sfsc.keys.keyring import (
    MAX_PINS,
    DeviceKey,
    GenerationKeys,
    Keyring,
    KeyringFile,
    PendingStatement,
)
from tests.protocol.wire_form import plain

KEYS = GenerationKeys(1, b"s" * 32, "xwing", b"w" * 32)
CONTENTS = Keyring(
    server_id=b"S" * 32,
    addresses=("nas.example:7373", "[::1]:7373"),
    user="ann",
    first=b"F" * 32,
    statements=(b"statement one",),
    generations=(KEYS,),
    name_keys=(b"n" * 32,),
    tag_key=b"t" * 32,
    device=DeviceKey(b"d" * 16, b"D" * 32, b"x" * 32),
    pending=None,
    pins=(("bob", b"B" * 32),),
)
LATER = changed(
    CONTENTS,
    pending=PendingStatement(
        b"statement two", (b"1" * 64, b"2" * 64), b"bundle", changed(KEYS, generation=2)
    ),
)
MANY_FRIENDS = changed(CONTENTS, pins=tuple((f"user{n:05}", bytes(32)) for n in range(MAX_PINS)))
HEADER = 106


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keyring"


def _rehash(header: bytes) -> bytes:
    """Return a header with a recomputed digest, as an attacker would."""
    return header[:74] + hashlib.sha256(header[:74]).digest()


@pytest.mark.parametrize("passphrase", [None, "correct horse", "pässword ☃"])
@pytest.mark.parametrize("contents", [CONTENTS, LATER, MANY_FRIENDS])
def test_round_trip(path: Path, passphrase: str | None, contents: Keyring) -> None:
    KeyringFile.create(path, contents, passphrase)
    assert KeyringFile.unlock(path, passphrase).contents == contents
    assert keyring.needs_passphrase(path) is (passphrase is not None)


def test_default_argon2_cost(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, "horse")
    header = path.read_bytes()[:HEADER]
    assert [int.from_bytes(header[i : i + 4]) for i in (14, 18, 22)] == [3, 4, 65536]
    assert KeyringFile.unlock(path, "horse").contents == CONTENTS


def test_file_contains_no_plaintext(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, "horse")
    stored = path.read_bytes()
    body = CONTENTS.encode()
    assert len(stored) == HEADER + SEAL_OVERHEAD + len(body)
    for secret in (
        KEYS.sign_seed,
        KEYS.wrap_private,
        *CONTENTS.name_keys,
        CONTENTS.tag_key,
        b"ann",
        b"example",
    ):
        assert secret in body
        assert secret not in stored


@pytest.mark.parametrize("count", [0, 2])
def test_a_keyring_has_one_name_key(path: Path, count: int) -> None:
    lock = KeyringFile.create(path, CONTENTS, None)._lock
    keys = [bytes([number]) * 32 for number in range(count)]
    body = encoding.pack({**plain(CONTENTS), "name_keys": keys})
    path.write_bytes(lock.header + seal(lock.key, body, lock.header))
    with pytest.raises(KeyringDamaged):
        KeyringFile.unlock(path, None)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_modes(path: Path) -> None:
    before = os.umask(0)
    try:
        file = KeyringFile.create(path, CONTENTS, None)
        file.save(LATER)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("given", [None, "", "wrong", "correct horse ", "Correct horse"])
def test_wrong_passphrase(path: Path, given: str | None) -> None:
    KeyringFile.create(path, CONTENTS, "correct horse")
    with pytest.raises(WrongPassphrase) as caught:
        KeyringFile.unlock(path, given)
    assert caught.value.exit_code == 8


def test_an_unlock_key_opens_the_file_until_its_passphrase_is_set_again(path: Path) -> None:
    file = KeyringFile.create(path, CONTENTS, "horse")
    assert keyring.read_lock_id(path) == file.lock_id
    key = file.unlock_key
    file.save(LATER)
    assert KeyringFile.unlock_by_key(path, key).contents == LATER
    with pytest.raises(WrongPassphrase):
        KeyringFile.unlock_by_key(path, key[:-1] + bytes([key[-1] ^ 1]))
    file.change_passphrase("horse")
    assert keyring.read_lock_id(path) == file.lock_id
    with pytest.raises(WrongPassphrase):
        KeyringFile.unlock_by_key(path, key)
    assert KeyringFile.unlock_by_key(path, file.unlock_key).contents == LATER
    assert file.unlock_key not in path.read_bytes()
    assert repr(file.unlock_key) not in repr(file._lock)


def test_passphrase_is_normalized_to_nfc(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, "p\u00e4ss")
    assert KeyringFile.unlock(path, "pa\u0308ss").contents == CONTENTS


@pytest.mark.parametrize("passphrase", ["", "\ud800"])
def test_invalid_passphrases_are_refused(path: Path, passphrase: str) -> None:
    with pytest.raises(UsageError):
        KeyringFile.create(path, CONTENTS, passphrase)
    assert not path.exists()


def test_non_utf8_environment_passphrase(path: Path) -> None:
    """Bytes that are not UTF-8 arrive as surrogates."""
    KeyringFile.create(path, CONTENTS, "p\udcff")
    assert KeyringFile.unlock(path, "p\udcff").contents == CONTENTS


def test_missing_keyring(path: Path) -> None:
    with pytest.raises(KeyringMissing):
        KeyringFile.unlock(path, None)
    with pytest.raises(KeyringMissing):
        keyring.needs_passphrase(path)


# Deriving a key takes longer than everything else in a test.
memoized_argon2id = lru_cache(argon2id)


@lru_cache
def stored_keyring(passphrase: str | None) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "keyring"
        KeyringFile.create(path, CONTENTS, passphrase)
        return path.read_bytes()


@given(bit=st.integers(0), passphrase=st.sampled_from([None, "horse"]))
def test_every_flipped_bit_is_detected(
    tmp_path_factory: pytest.TempPathFactory, bit: int, passphrase: str | None
) -> None:
    path = tmp_path_factory.mktemp("k") / "keyring"
    stored = bytearray(stored_keyring(passphrase))
    bit %= len(stored) * 8
    stored[bit // 8] ^= 1 << bit % 8
    path.write_bytes(stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyring, "argon2id", memoized_argon2id)
        with pytest.raises(KeyringDamaged):
            KeyringFile.unlock(path, passphrase)


@pytest.mark.parametrize("size", [0, 1, 12, 74, 105, 106, 117, 118, 133, -1])
def test_every_truncation_is_detected(path: Path, size: int) -> None:
    KeyringFile.create(path, CONTENTS, None)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(KeyringDamaged):
        KeyringFile.unlock(path, None)


@pytest.mark.parametrize(
    ("passes", "lanes", "kib"),
    [
        (0, 0, 0),
        (1, 1, 8),
        (2, 4, 2**16),
        (17, 4, 2**16),
        (3, 3, 2**16),
        (3, 17, 2**16),
        (3, 4, 2**16 - 1),
        (3, 4, 2**20 + 1),
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
def test_a_cost_too_low_or_too_high_is_refused_before_it_is_spent(
    path: Path, passes: int, lanes: int, kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    KeyringFile.create(path, CONTENTS, "horse")
    monkeypatch.delattr(keyring, "argon2id")
    stored = path.read_bytes()
    numbers = b"".join(n.to_bytes(4) for n in (passes, lanes, kib))
    header = _rehash(stored[:14] + numbers + stored[26:HEADER])
    path.write_bytes(header + stored[HEADER:])
    with pytest.raises(KeyringDamaged, match="out of range"):
        KeyringFile.unlock(path, "horse")


def test_a_passphrase_for_a_file_without_one_is_refused(path: Path) -> None:
    """Otherwise a file of somebody else's account could take the place of a locked one."""
    KeyringFile.create(path, CONTENTS, None)
    for passphrase in ("horse", ""):
        with pytest.raises(WrongPassphrase, match="has no passphrase"):
            KeyringFile.unlock(path, passphrase)
    assert KeyringFile.unlock(path, None).contents == CONTENTS


@pytest.mark.parametrize(("offset", "value"), [(12, 0), (12, 2), (13, 2)])
def test_unknown_versions_are_refused(path: Path, offset: int, value: int) -> None:
    KeyringFile.create(path, CONTENTS, "horse")
    stored = bytearray(path.read_bytes())
    stored[offset] = value
    path.write_bytes(_rehash(bytes(stored[:HEADER])) + stored[HEADER:])
    with pytest.raises(KeyringDamaged):
        KeyringFile.unlock(path, "horse")


def test_header_cannot_be_downgraded_to_no_passphrase(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, "horse")
    stored = bytearray(path.read_bytes())
    stored[13] = 0
    path.write_bytes(_rehash(bytes(stored[:HEADER])) + stored[HEADER:])
    with pytest.raises(WrongPassphrase):
        KeyringFile.unlock(path, "horse")


def test_oversized_file_is_refused(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, None)
    with path.open("r+b") as file:
        file.truncate(keyring.MAX_KEYRING + 1)
    with pytest.raises(KeyringDamaged):
        KeyringFile.unlock(path, None)


def test_save_replaces_the_file(path: Path) -> None:
    file = KeyringFile.create(path, CONTENTS, "horse")
    before = path.read_bytes()
    file.save(LATER)
    assert file.contents == LATER
    assert KeyringFile.unlock(path, "horse").contents == LATER
    after = path.read_bytes()
    assert after[:HEADER] == before[:HEADER]
    assert after[HEADER : HEADER + 12] != before[HEADER : HEADER + 12]
    file.save(CONTENTS)
    assert KeyringFile.unlock(path, "horse").contents == CONTENTS
    assert {p.name for p in path.parent.iterdir()} <= {"keyring", ".keyring.lock"}


@pytest.mark.parametrize("written", [b"", b"nothing like it", "of before"])
def test_a_write_that_stores_something_else_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes | str
) -> None:
    """A disk, or a file system on a network, that says that it has written."""
    file = KeyringFile.create(path, CONTENTS, None)
    stored = path.read_bytes() if isinstance(written, str) else written
    monkeypatch.setattr(keyring, "replace_file", lambda path, _data: path.write_bytes(stored))
    with pytest.raises(LocalError if isinstance(written, str) else KeyringDamaged):
        file.save(LATER)
    assert file.contents == CONTENTS


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_next_write_removes_files_of_a_killed_writer(path: Path) -> None:
    """They may hold keys that are dropped by then."""
    file = KeyringFile.create(path, CONTENTS, None)
    program = """
import os, signal, sys
from pathlib import Path
from sfsc.keys.keyring import KeyringFile
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
file = KeyringFile.unlock(Path(sys.argv[1]), None)
file.save(file.contents)
"""
    killed = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = {path.name, f".{path.name}.lock"}
    assert len({one.name for one in path.parent.iterdir()} - kept) == 1
    file.save(LATER)
    assert {one.name for one in path.parent.iterdir()} <= kept
    assert KeyringFile.unlock(path, None).contents == LATER


def test_save_detects_another_process(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, None)
    ours, theirs = KeyringFile.unlock(path, None), KeyringFile.unlock(path, None)
    theirs.save(LATER)
    with pytest.raises(ConflictError):
        ours.save(changed(CONTENTS, pins=()))
    assert ours.contents == CONTENTS
    assert KeyringFile.unlock(path, None).contents == LATER


def test_create_does_not_overwrite(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, None)
    with pytest.raises(LocalError):
        KeyringFile.create(path, LATER, None)
    assert KeyringFile.unlock(path, None).contents == CONTENTS


def test_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SfscError) as caught:
        KeyringFile.create(tmp_path / "file" / "keyring", CONTENTS, None)
    assert caught.value.exit_code == 1


def test_folder_at_the_keyrings_path(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LocalError):
        KeyringFile.unlock(path, None)


def test_the_last_generation_is_current() -> None:
    second = changed(KEYS, generation=2)
    assert changed(CONTENTS, generations=(KEYS, second)).current == second
    assert changed(CONTENTS, generations=()).current is None


def test_wrong_shapes_cannot_be_built() -> None:
    with pytest.raises(MessageError):
        changed(CONTENTS, server_id=b"short")
    with pytest.raises(MessageError):
        DeviceKey(b"d" * 16, b"D" * 32, b"x" * 95)


def test_repr_hides_secrets() -> None:
    shown = repr(LATER)
    for secret in (b"s" * 32, b"D" * 32, b"w" * 32, b"n" * 32, b"x" * 32, b"bundle"):
        assert repr(secret) not in shown
    assert "ann" in shown


def test_update_retries_on_the_contents_of_another_process(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, None)
    ours, theirs = KeyringFile.unlock(path, None), KeyringFile.unlock(path, None)
    theirs.save(LATER)
    ours.update(lambda contents: changed(contents, pins=()))
    assert ours.contents == changed(LATER, pins=())
    assert KeyringFile.unlock(path, None).contents == ours.contents


def test_update_gives_up_if_others_keep_writing(path: Path) -> None:
    KeyringFile.create(path, CONTENTS, None)
    ours, theirs = KeyringFile.unlock(path, None), KeyringFile.unlock(path, None)
    versions = (CONTENTS, LATER)

    def change(contents: Keyring) -> Keyring:
        theirs.save(versions[contents == CONTENTS])
        return contents

    with pytest.raises(ConflictError):
        ours.update(change)


def test_writers_in_two_processes_lose_nothing(path: Path) -> None:
    """Each adds ten pins and retries on a conflict; all twenty must be there."""
    KeyringFile.create(path, changed(CONTENTS, pins=()), None)
    program = """
import sys
from protocol.codec.values import changed
from pathlib import Path
from sfsc.errors import ConflictError
from sfsc.keys.keyring import KeyringFile
path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(10):
    while True:
        file = KeyringFile.unlock(path, None)
        pins = (*file.contents.pins, (f"{name}{number}", bytes(32)))
        try:
            file.save(changed(file.contents, pins=tuple(sorted(pins))))
        except ConflictError:
            continue
        break
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, path, name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(KeyringFile.unlock(path, None).contents.pins) == 20
