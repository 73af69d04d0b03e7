"""The keyring: all secrets of one user on one machine, and its file.

The file is ``header[106] ‖ nonce[12] ‖ ciphertext ‖ tag[16]``, big-endian::

    0    12  "sfs-keyring\\0"
    12    1  version, 1
    13    1  kdf: 0 no passphrase, 1 Argon2id
    14   12  Argon2id passes, lanes, KiB of memory (u32 each; 0 without a passphrase)
    26   16  salt
    42   32  check: detects a wrong passphrase before anything is decrypted
    74   32  SHA-256 of the 74 bytes before: tells a damaged header from a wrong passphrase
    106      AES-256-GCM of the msgpack map of `Keyring`, the whole header as associated data

key and check are HKDF of Argon2id(passphrase, salt), or of the salt alone without a passphrase;
then everyone who can read the file has the keys, and the header says so.

A file is replaced atomically (`sfsc.atomicfile`), never changed in place, and read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final

from protocol.buffers.file_status import exists
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import (
    AtMost,
    Bytes16,
    Bytes32,
    Exactly,
    Possession,
    Signature,
    Struct,
    Text,
    UserName,
)
from protocol.codec.values import Value, field
from protocol.records.records import MAX_RECORD, Generation, WrapAlgorithm
from sfsc.atomicfile import make_folder, remove_temporary_files, replace_file
from sfsc.crypto.primitives import argon2id, keyring_keys, open_sealed, seal
from sfsc.errors import (
    ConflictError,
    KeyringDamaged,
    KeyringMissing,
    LocalError,
    Tampered,
    UsageError,
    WrongPassphrase,
)

MAX_KEYRING: Final = 64 * 1024 * 1024
"""Maximum file size in bytes. Large, so that an attacker who fills a chain cannot lock the owner
out."""
MAX_PINS: Final = 8192
"""Maximum number of other users that an account can know."""
_MAX_UPDATES: Final = 16

_Statement = Annotated[bytes, AtMost(MAX_RECORD)]


MAX_LABELS: Final = 16
"""Most devices of an account."""
Label = Annotated[str, AtMost(64)]
Labels = Annotated[tuple[tuple[Bytes16, Label], ...], AtMost(MAX_LABELS)]
"""Names of the account's devices for their user: (device_id, label), sorted by device_id."""


class GenerationKeys(Struct):
    """Private keys of one generation; `wrap_private` is encoded as in `sfsc.crypto.primitives`."""

    AS_MAP: ClassVar[bool] = True

    generation: Generation
    sign_seed: Bytes32 = field(repr=False)
    wrap_alg: WrapAlgorithm
    wrap_private: Annotated[bytes, AtMost(4096)] = field(repr=False)


class DeviceKey(Struct):
    """This machine's own keys, which never leave it: `sign_seed` (Ed25519) signs its logins, and
    `xwing_private` opens the account's bundles."""

    AS_MAP: ClassVar[bool] = True

    device_id: Bytes16
    sign_seed: Bytes32 = field(repr=False)
    xwing_private: Bytes32 = field(repr=False)


class PendingStatement(Struct):
    """A statement saved before it is sent, so that a retry sends the same bytes. `signatures` are
    in sending order (own key first), `bundle` is the sealed bundle it commits to, `keys` are those
    of the generation that it begins, if any. `possession` is the signature by the recovery key that
    it introduces, if any. `labels` are those in the bundle."""

    AS_MAP: ClassVar[bool] = True

    statement: _Statement
    signatures: Annotated[tuple[Signature, ...], AtMost(2)]
    bundle: Annotated[bytes, AtMost(64 * 1024)] = field(repr=False)
    keys: GenerationKeys | None
    possession: Possession = b""
    labels: Labels = ()


class Keyring(Struct):
    """The secrets of one user on this machine, and the pinned identities.

    `addresses` are HOST:PORT; `first` is the hash of the own first statement; `statements` are the
    exact bytes of the known own chain, empty until the server has accepted the first. `generations`
    are ordered oldest first; the last one is in use. `name_keys` holds the one name key, and
    `tag_key` the key of tags in the log; the account keeps both for life. `pins` are (user, hash of
    that user's first statement), sorted by user. `distrust` is "" or, once the server has shown two
    histories, the name of the file in HOME/evidence that proves it, until the user accepts it.
    `next_device` are new keys of this machine that the account may name already; they replace
    `device` once it does. `labels` are those of the last bundle that was made or opened here.
    """

    AS_MAP: ClassVar[bool] = True
    LIMIT: ClassVar[int] = MAX_KEYRING

    server_id: Bytes32
    addresses: Annotated[tuple[Text, ...], AtMost(16)]
    user: UserName
    first: Bytes32
    statements: Annotated[tuple[_Statement, ...], AtMost(8192)]
    generations: Annotated[tuple[GenerationKeys, ...], AtMost(1024)]
    name_keys: Annotated[tuple[Bytes32, ...], Exactly(1)] = field(repr=False)
    tag_key: Bytes32 = field(repr=False)
    device: DeviceKey
    pending: PendingStatement | None
    pins: Annotated[tuple[tuple[UserName, Bytes32], ...], AtMost(MAX_PINS)]
    distrust: Text = ""
    next_device: DeviceKey | None = None
    labels: Labels = ()

    @property
    def current(self) -> GenerationKeys | None:
        """Keys of the newest generation that the server accepted; None before the enrolment."""
        return self.generations[-1] if self.generations else None


# --- the file -------------------------------------------------------------------------------

_MAGIC: Final = b"sfs-keyring\0"
_HEADER: Final = struct.Struct(">12sBBIII16s32s")
_HEADER_SIZE: Final = _HEADER.size + 32
_NO_PASSPHRASE, _ARGON2ID = 0, 1
_PASSES, _LANES, _KIB = 3, 4, 64 * 1024
"""Argon2id cost of a passphrase guess: the second choice of RFC 9106 section 4. A file whose header
states less is refused."""
_MAX_PASSES, _MAX_LANES, _MAX_KIB = 16, 16, 1024 * 1024


class _KeyringHeader(Value):
    """A file header, the unlock key of 32 bytes that Argon2id makes of the passphrase (without one:
    the salt), and the key derived from that."""

    header: bytes
    unlock_key: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def generate(cls, passphrase: str | None) -> _KeyringHeader:
        salt = os.urandom(16)
        if passphrase is None:
            kdf, numbers, secret = _NO_PASSPHRASE, (0, 0, 0), salt
        else:
            kdf, numbers = _ARGON2ID, (_PASSES, _LANES, _KIB)
            secret = _derive(passphrase, salt, *numbers)
        key, check = keyring_keys(secret)
        header = _HEADER.pack(_MAGIC, 1, kdf, *numbers, salt, check)
        return cls(header + hashlib.sha256(header).digest(), secret, key)

    @classmethod
    def unlock(cls, header: bytes, passphrase: str | None) -> _KeyringHeader:
        _, _, kdf, passes, lanes, kib, salt, _ = _parse_header(header)
        if kdf == _NO_PASSPHRASE:
            if passphrase is not None:
                raise WrongPassphrase("the keyring has no passphrase, but one is given", REPLACED)
            secret = salt
        elif not passphrase:
            raise WrongPassphrase("the keyring is locked with a passphrase", _HINT)
        else:
            secret = _derive(passphrase, salt, passes, lanes, kib)
        return cls.unlock_by_key(header, secret)

    @classmethod
    def unlock_by_key(cls, header: bytes, unlock_key: bytes) -> _KeyringHeader:
        *_, check = _parse_header(header)
        key, expected = keyring_keys(unlock_key)
        if not hmac.compare_digest(check, expected):
            raise WrongPassphrase("the passphrase does not unlock the keyring", _HINT)
        return cls(header, unlock_key, key)


REPLACED: Final = (
    "if it had one, somebody has replaced the file: restore it from a backup; else give none"
)
_HINT: Final = "type it again, or set SFSC_PASSPHRASE or SFSC_PASSPHRASE_FILE"


class KeyringFile:
    """A keyring and the file it is stored in. `contents` is what the file holds."""

    def __init__(self, path: Path, contents: Keyring, lock: _KeyringHeader, stored: bytes) -> None:
        """Use `create` or `unlock` instead."""
        self.path = path
        self.contents: Keyring = contents
        self._lock = lock
        self._stored_sha256 = hashlib.sha256(stored).digest()

    @classmethod
    def create(cls, path: Path, contents: Keyring, passphrase: str | None) -> KeyringFile:
        """Write the first keyring at `path`, creating its folder (mode 0700) if needed. Raises
        `LocalError` if a keyring exists or cannot be written, and `UsageError` for an empty
        passphrase. None means no passphrase."""
        lock = _KeyringHeader.generate(passphrase)
        with _lock_file(path):
            if exists(path):
                raise LocalError(f"a keyring exists at {path}")
            return cls(path, contents, lock, _write(path, contents, lock))

    @classmethod
    def unlock(cls, path: Path, passphrase: str | None) -> KeyringFile:
        """Read the keyring at `path`. `passphrase` is None if the file has none: a passphrase for
        an unlocked file is refused, because somebody may have put it in the place of a locked one.
        Raises `KeyringMissing`, `WrongPassphrase`, `KeyringDamaged` or `LocalError`."""
        stored = _read(path)
        lock = _KeyringHeader.unlock(stored[:_HEADER_SIZE], passphrase)
        return cls(path, _unseal(stored, lock), lock, stored)

    @classmethod
    def unlock_by_key(cls, path: Path, unlock_key: bytes) -> KeyringFile:
        """Read the keyring at `path` with the `unlock_key` of a file that had the same header. This
        takes no Argon2id. Raises as `unlock`, `WrongPassphrase` if it is the key of another one."""
        stored = _read(path)
        lock = _KeyringHeader.unlock_by_key(stored[:_HEADER_SIZE], unlock_key)
        return cls(path, _unseal(stored, lock), lock, stored)

    @property
    def unlock_key(self) -> bytes:
        """The 32 bytes that Argon2id makes of the passphrase and the salt: they unlock this file,
        and no file whose passphrase was set at another time, even if it is the same."""
        return self._lock.unlock_key

    @property
    def lock_id(self) -> bytes:
        """The digest in the header, 32 bytes: another one after the passphrase was changed."""
        return self._lock.header[_HEADER.size :]

    def reopened(self) -> KeyringFile:
        """Return the same file, as it is now, for another thread. Raises as `reload`."""
        again = KeyringFile(self.path, self.contents, self._lock, b"")
        again.reload()
        return again

    def save(self, contents: Keyring) -> None:
        """Replace the file, durably. When this returns, the file holds `contents`. Raises
        `ConflictError`, and changes nothing, if another process has replaced the file since it was
        read here; `LocalError` if it cannot be written."""
        with _lock_file(self.path):
            self.check_unchanged()
            stored = _write(self.path, contents, self._lock)
        self.contents = contents
        self._stored_sha256 = hashlib.sha256(stored).digest()

    def change_passphrase(self, passphrase: str | None) -> None:
        """Replace the file by one that another passphrase locks, or none (None). Raises as `save`,
        and `UsageError` for an empty passphrase. Other processes that have the file open can
        neither save nor reload it any more."""
        lock = _KeyringHeader.generate(passphrase)
        with _lock_file(self.path):
            self.check_unchanged()
            stored = _write(self.path, self.contents, lock)
        self._lock = lock
        self._stored_sha256 = hashlib.sha256(stored).digest()

    def update(self, change: Callable[[Keyring], Keyring]) -> None:
        """Save what `change` makes of `contents`; if another process was first, reload and retry.
        Raises `ConflictError` if others keep writing, and as `save` and `reload` do."""
        for _ in range(_MAX_UPDATES):
            try:
                return self.save(change(self.contents))
            except ConflictError:
                self.reload()
        raise ConflictError("other processes keep changing the keyring", "run the command again")

    def check_unchanged(self) -> None:
        """Raise `ConflictError` if another process has replaced the file since it was read here.
        Raises `LocalError` if the file cannot be read."""
        if hashlib.sha256(_read(self.path)).digest() != self._stored_sha256:
            raise ConflictError("another process changed the keyring", "run the command again")

    def reload(self) -> None:
        """Read what another process of this machine has written since. Raises `KeyringDamaged`,
        also if the passphrase was changed, and `LocalError`."""
        stored = _read(self.path)
        if stored[:_HEADER_SIZE] != self._lock.header:
            raise KeyringDamaged(
                "another process replaced the keyring file", "run the command again"
            )
        self.contents = _unseal(stored, self._lock)
        self._stored_sha256 = hashlib.sha256(stored).digest()


def needs_passphrase(path: Path) -> bool:
    """Return whether the keyring at `path` is locked. Raises as `read_lock_id`."""
    return read_lock_id(path) is not None


def read_lock_id(path: Path) -> bytes | None:
    """Return `KeyringFile.lock_id` of the file at `path`; None if it has no passphrase. Raises
    `KeyringMissing`, `KeyringDamaged` or `LocalError`."""
    header = _read(path)[:_HEADER_SIZE]
    return header[_HEADER.size :] if _parse_header(header)[2] == _ARGON2ID else None


def passphrase_bytes(passphrase: str) -> bytes:
    """Encode a passphrase as UTF-8. Environment bytes that are not UTF-8 are kept as they are.
    Raises `UsageError` for an empty passphrase, and for surrogates that encode no byte."""
    if not passphrase:
        raise UsageError("the passphrase is empty", "use --no-passphrase instead")
    try:
        return passphrase.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise UsageError("the passphrase is not valid text", "type it again") from exc


def _derive(passphrase: str, salt: bytes, passes: int, lanes: int, kib: int) -> bytes:
    # NFC: different systems encode the same accented letter differently.
    text = passphrase_bytes(unicodedata.normalize("NFC", passphrase))
    return argon2id(text, salt, passes=passes, lanes=lanes, kib=kib)


def _parse_header(header: bytes) -> tuple[bytes, int, int, int, int, int, bytes, bytes]:
    """Return the fields of a header after checking its digest and that every number is in range."""
    fields, digest = header[: _HEADER.size], header[_HEADER.size :]
    if len(header) != _HEADER_SIZE or not fields.startswith(_MAGIC):
        raise KeyringDamaged("this is not a keyring file")
    if hashlib.sha256(fields).digest() != digest:
        raise KeyringDamaged("the keyring's header is damaged", "restore it from a backup")
    magic, version, kdf, passes, lanes, kib, salt, check = _HEADER.unpack(fields)
    if version != 1 or kdf not in (_NO_PASSPHRASE, _ARGON2ID):
        raise KeyringDamaged(f"unknown keyring version {version}.{kdf}", "use a newer sfsc")
    # Checked before Argon2id runs: a hostile file must not claim all memory or a year of time, and
    # must not make the passphrase cheap to guess for a reader of files that are saved later.
    if kdf == _ARGON2ID and not (
        _PASSES <= passes <= _MAX_PASSES
        and _LANES <= lanes <= _MAX_LANES
        and _KIB <= kib <= _MAX_KIB
    ):
        raise KeyringDamaged(
            f"the Argon2id cost in the keyring's header is out of range: {passes} passes, "
            f"{lanes} lanes, {kib} KiB",
            "somebody has replaced the file: restore it from a backup",
        )
    return magic, version, kdf, passes, lanes, kib, salt, check


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            stored = file.read(MAX_KEYRING + 1)
    except FileNotFoundError as exc:
        raise KeyringMissing(f"no keyring at {path}", "run `sfsc init`") from exc
    except OSError as exc:
        raise LocalError(f"cannot read the keyring at {path}: {exc.strerror}") from exc
    if len(stored) > MAX_KEYRING:
        raise KeyringDamaged("this is not a keyring file")
    return stored


def _unseal(stored: bytes, lock: _KeyringHeader) -> Keyring:
    try:
        body = open_sealed(lock.key, stored[_HEADER_SIZE:], lock.header)
        return Keyring.parse(body)
    except (Tampered, EncodingError, MessageError) as exc:
        raise KeyringDamaged("the keyring is damaged", "restore it from a backup") from exc


def _write(path: Path, contents: Keyring, lock: _KeyringHeader) -> bytes:
    """Replace `path` and read it back. Return the bytes it now holds."""
    stored = lock.header + seal(lock.key, contents.encode(), lock.header)
    if len(stored) > MAX_KEYRING:
        raise LocalError(f"the keyring is too large: {len(stored)} bytes")
    # They may hold keys that were dropped since. The lock makes this the only writer.
    remove_temporary_files(path)
    replace_file(path, stored)
    if _unseal(_read(path), lock) != contents:
        raise LocalError(f"the keyring at {path} differs from what was written")
    return stored


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """Hold the lock of the keyring at `path`: one process at a time writes it. Creates the folder
    if needed. Raises `LocalError` if the keyring is locked, or for an `OSError` of the block."""
    from filelock import FileLock, Timeout

    try:
        make_folder(path.parent)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=10, mode=0o600):
            yield
    except Timeout as exc:
        raise LocalError("another sfsc process holds the lock of the keyring") from exc
    except OSError as exc:
        raise LocalError(f"cannot write the keyring at {path}: {exc.strerror}") from exc
