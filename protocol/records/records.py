"""Signed records of servers, users and files; docs/protocol.md lists their fields.

A record is a msgpack map with exactly its keys. **Hashes and signatures cover the exact bytes
received, never a re-encoding**: callers of `parse` keep the bytes and pass them on unchanged.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated, ClassVar, NamedTuple

from protocol.codec import encoding
from protocol.codec.errors import MessageError
from protocol.codec.fields import (
    AtMost,
    Between,
    Bytes16,
    Bytes32,
    Count,
    Exactly,
    FileId,
    OneOf,
    Positive,
    Previous,
    Principal,
    Struct,
    Text,
    UserName,
    empty_or_signature,
)

MAX_RECORD = 32 * 1024
"""Longest signed record in bytes; its base64 and the rest of the entry fit in a 64 KiB log line."""
MAX_READERS = 256
MAX_DEVICES = 16
MAX_WRITERS = 16
MAX_CUSTODIANS = 16
MAX_TLS_KEYS = 64
MAX_VOIDS = 64
MAX_PURGED = 512
PURGED_AT_ONCE = 96
"""Most versions that one change, such as a purge, removes: its log line must hold three paths for
each, with the longest owner name, and a record with `MAX_READERS` readers."""
BATCH_ID_SIZE = 16
WRAP_ITEM_SIZE = 60
"""A DEK under a key of its batch: nonce[12] ‖ DEK[32] ‖ tag[16]."""


class WrapSizes(NamedTuple):
    """Bytes of a public key and of a 32-byte key encrypted to it; bits of an RSA modulus, or 0."""

    public: int
    encrypted: int
    rsa_bits: int = 0

    @property
    def wrapped(self) -> int:
        """Bytes of a wrapped DEK: batch_id ‖ encrypted key of the batch ‖ item."""
        return BATCH_ID_SIZE + self.encrypted + WRAP_ITEM_SIZE


WRAP_SIZES = {
    "rsa2048": WrapSizes(294, 256, 2048),
    "rsa3072": WrapSizes(422, 384, 3072),
    "rsa4096": WrapSizes(550, 512, 4096),
    "x25519": WrapSizes(32, 80),
    "xwing": WrapSizes(1216, 1168),
}
"""Wrap algorithms, weakest first. RSA public keys are SubjectPublicKeyInfo DER with e = 65537."""
MAX_ENCRYPTED_KEY = max(sizes.encrypted for sizes in WRAP_SIZES.values())
MAX_WRAPPED_KEY = max(sizes.wrapped for sizes in WRAP_SIZES.values())
WRAP_ALGORITHMS = tuple(WRAP_SIZES)
RSA_BITS = {alg: sizes.rsa_bits for alg, sizes in WRAP_SIZES.items() if sizes.rsa_bits}
XWING_PUBLIC_SIZE = WRAP_SIZES["xwing"].public
ENROL, DEVICE, RECOVERY_KEY, FINISH = "enrol", "device", "recovery-key", "finish"
ROTATE, COMPROMISED, RECOVERY = "rotate", "compromised", "recovery"
STATEMENT_REASONS = (ENROL, DEVICE, RECOVERY_KEY, ROTATE, COMPROMISED, RECOVERY, FINISH)
USER_ACCOUNT, SPACE = "user", "space"
ACCOUNT_KINDS = (USER_ACCOUNT, SPACE)
MACHINE, BACKUP, INVITE = "device", "backup", "invite"
DEVICE_KINDS = (MACHINE, BACKUP, INVITE)

Generation = Annotated[int, Between(1, 2**31)]
WrapAlgorithm = Annotated[str, OneOf(WRAP_ALGORITHMS)]
WrapPublic = Annotated[bytes, AtMost(XWING_PUBLIC_SIZE)]


def record_hash(body: bytes) -> bytes:
    """Return the 32-byte SHA-256 of a record's exact bytes, by which others refer to it."""
    return hashlib.sha256(body).digest()


def server_id(public_key: bytes) -> bytes:
    """Return the 32-byte id that invitations pin: SHA-256("sfs/v2/server\\0" ‖ Ed25519 key)."""
    return hashlib.sha256(b"sfs/v2/server\0" + public_key).digest()


@lru_cache(256)
def key_id(algorithm: str, public_key: bytes) -> bytes:
    """Return the 32-byte id of a key: SHA-256(algorithm ‖ 0 ‖ public key bytes)."""
    return hashlib.sha256(algorithm.encode() + b"\0" + public_key).digest()


def login_body(
    *,
    server: bytes,
    spki: bytes,
    welcome: bytes,
    version: int,
    user: str,
    device_id: bytes | None,
    generation: int,
) -> bytes:
    """Return the bytes that a Login signature covers: server, TLS key and this one Welcome.

    `server`, `spki` and `welcome` (SHA-256 of the Welcome body with its challenge) are 32 bytes.
    `device_id` has 16 bytes; it is None if not a device logs in.
    """
    return encoding.pack([server, spki, welcome, version, user, device_id, generation])


def enrol_proof_body(*, welcome: bytes, statement: bytes) -> bytes:
    """Return the message that proves a token without sending it: HMAC-SHA256(SHA-256(token), …)."""
    return b"sfs/v2/enroll\0" + welcome + statement


class SignedStruct(Struct):
    """Base of signed records: `encode` one once, then keep its bytes."""

    AS_MAP: ClassVar[bool] = True
    LIMIT: ClassVar[int] = MAX_RECORD


class ServerStatement(SignedStruct):
    """Statement `n` of a server, signed by its long-lived key `server_pub`.

    `tls_spki_sha256` names the TLS keys, sorted, and `log_vkey` (C2SP vkey text) the log key that
    are valid from `created` (unix seconds) on. Clients refuse an `n` lower than one they have seen.
    """

    server_pub: Bytes32
    n: Positive
    tls_spki_sha256: Annotated[tuple[Bytes32, ...], AtMost(MAX_TLS_KEYS)]
    log_vkey: Text
    created: Count

    def __post_init__(self) -> None:
        keys = self.tls_spki_sha256
        if not keys or keys != tuple(sorted(set(keys))):
            raise MessageError(
                "ServerStatement.tls_spki_sha256 must be sorted and unique, not empty"
            )


class RecoveryKey(Struct):
    """The public keys of a recovery code."""

    AS_MAP: ClassVar[bool] = True

    sign_pub: Bytes32
    xwing_pub: Annotated[bytes, AtMost(XWING_PUBLIC_SIZE)]


class Device(Struct):
    """A device of an account: `sign_pub` (Ed25519) signs its logins, `xwing_pub` opens bundles.

    A backup is a device whose keys are in a file. `member` (hash of a first statement) and
    `member_signature` (64 bytes) are for devices of a space, and empty for those of a user.
    """

    device_id: Bytes16
    sign_pub: Bytes32
    xwing_pub: Annotated[bytes, Exactly(XWING_PUBLIC_SIZE)]
    kind: Annotated[str, OneOf(DEVICE_KINDS)]
    member: Previous = b""
    member_signature: Annotated[bytes, AtMost(64), empty_or_signature] = b""

    @property
    def keys(self) -> tuple[bytes, bytes, bytes]:
        """The id of the device with both of its public keys."""
        return self.device_id, self.sign_pub, self.xwing_pub


class Writer(Struct):
    """A device that may only add files, until `expires` (unix seconds)."""

    name: UserName
    sign_pub: Bytes32
    expires: Count


class Statement(SignedStruct):
    """Statement `n` of a user's identity chain; `protocol.records.chain` checks its validity.

    `tag_commit` commits to the account's tag key (`protocol.log.tags`), which it keeps for life.

    `generation` counts key generations; `oldest` is the lowest whose signatures count. `custodians`
    are hashes of first statements, empty for the `kind` user. `voids` is empty, or the hash of the
    first statement that this one undoes together with all after it. `prev` is the hash of statement
    n-1, empty for the first. Times are unix seconds.
    """

    server: Bytes32
    user: UserName
    kind: Annotated[str, OneOf(ACCOUNT_KINDS)]
    n: Positive
    generation: Generation
    oldest: Generation
    sign_pub: Bytes32
    wrap_alg: WrapAlgorithm
    wrap_pub: WrapPublic
    devices: Annotated[tuple[Device, ...], AtMost(MAX_DEVICES)]
    recovery: RecoveryKey | None
    custodians: Annotated[tuple[Bytes32, ...], AtMost(MAX_CUSTODIANS)]
    writers: Annotated[tuple[Writer, ...], AtMost(MAX_WRITERS)]
    voids: Annotated[tuple[Bytes32, ...], AtMost(MAX_VOIDS)]
    bundle_sha256: Bytes32
    created: Count
    due: Count
    expires: Count
    prev: Previous
    reason: Annotated[str, OneOf(STATEMENT_REASONS)]
    tag_commit: Bytes32

    def __post_init__(self) -> None:
        if self.oldest > self.generation:
            raise MessageError("Statement.oldest is above its generation")
        if (self.n == 1) != (self.prev == b""):
            raise MessageError("Statement.prev: only the first statement has none")

    @property
    def key_id(self) -> bytes:
        """The id of the wrapping key that this statement makes current."""
        return key_id(self.wrap_alg, self.wrap_pub)

    def find_device(self, device_id: bytes) -> Device | None:
        """Return the device with this id, None if the statement does not name it."""
        return next((one for one in self.devices if one.device_id == device_id), None)

    @property
    def signing_keys(self) -> list[bytes]:
        """All Ed25519 public keys that the statement names, its own first."""
        recovery = [] if self.recovery is None else [self.recovery.sign_pub]
        devices = [one.sign_pub for one in self.devices]
        return [self.sign_pub, *recovery, *devices, *(one.sign_pub for one in self.writers)]


PUT, DELETE, RESTORE, MOVE = "put", "delete", "restore", "move"
ACCESS, REENCRYPT, PURGE = "access", "reencrypt", "purge"
_CONTENT = (
    "content_id",
    "version",
    "ciphertext_size",
    "segments_root",
    "dek_commit",
    "metadata_sha256",
    "writer",
)
OWN_KEYS: dict[str, tuple[str, ...]] = {
    PUT: _CONTENT,
    RESTORE: (*_CONTENT, "from"),
    MOVE: (*_CONTENT, "from"),
    REENCRYPT: _CONTENT,
    DELETE: ("to",),
    ACCESS: (),
    PURGE: ("purged",),
}
"""Keys of a file record by op, besides the common ones."""
CONTENT_OPS = frozenset(op for op, keys in OWN_KEYS.items() if "content_id" in keys)
_OPTIONAL = frozenset(key for keys in OWN_KEYS.values() for key in keys)
_BELONGS = {
    op: [
        ("from_" if key == "from" else key, key in own)
        for key in sorted(_OPTIONAL - {"to", "writer"})
    ]
    for op, own in OWN_KEYS.items()
}
"""By op: (field, whether it must be set, else None). `to` of a delete may be either, and so may
`writer` of a record that describes a content."""

MAX_VERSION = 2**31
Version = Annotated[int, Between(1, MAX_VERSION)]
ReaderEntry = tuple[UserName, Bytes32, Count]
"""(user, hash of that user's first statement, expiry in unix seconds or 0 for never)."""


class FileRecord(SignedStruct):
    """Record `rev` of a file. All signed facts about a file are in its records.

    `prev` is the hash of record rev-1 (empty for the first), `seen` the size and root of the newest
    checkpoint that the signer had verified, `readers` all users who may read besides the owner,
    `current` the current version after this record (0: none). `content` is the hash of the record
    that made the current version, empty if there is none or if this record makes it.

    Later fields belong to some ops only (see `OWN_KEYS`), and are None for others. put, restore,
    move and reencrypt describe the content of `version`; `writer` names the device that may only
    add files and that made it, None for the owner; `from_` is (file_id, version) of the reused
    content; `to` of a delete is the file_id that the file moved to, or None; `purged` lists
    versions.
    """

    server: Bytes32
    owner: UserName
    actor: Principal
    generation: Generation
    file_id: FileId
    rev: Positive
    op: Annotated[str, OneOf(tuple(OWN_KEYS))]
    prev: Previous
    seen: tuple[Count, Bytes32]
    created: Count
    readers: Annotated[tuple[ReaderEntry, ...], AtMost(MAX_READERS)]
    current: Annotated[int, Between(0, 2**31)]
    content: Previous
    content_id: Bytes16 | None = None
    version: Version | None = None
    ciphertext_size: Count | None = None
    segments_root: Bytes32 | None = None
    dek_commit: Bytes32 | None = None
    metadata_sha256: Bytes32 | None = None
    writer: UserName | None = None
    from_: tuple[FileId, Version] | None = None
    to: FileId | None = None
    purged: Annotated[tuple[Version, ...], AtMost(MAX_PURGED)] | None = None

    def __post_init__(self) -> None:
        for name, belongs in _BELONGS[self.op]:
            if (getattr(self, name) is not None) is not belongs:
                raise MessageError(f"FileRecord.{name} does not fit the op {self.op}")
        if self.to is not None and self.op != DELETE:
            raise MessageError("FileRecord.to belongs to a delete only")
        if self.writer is not None and self.op not in CONTENT_OPS:
            raise MessageError("FileRecord.writer belongs to a content only")
        if (self.rev == 1) != (self.prev == b""):
            raise MessageError("FileRecord.prev: only the first record has none")
        # `version` is None for an op without content, and `current` is not.
        if (self.content == b"") != (self.current in (0, self.version)):
            raise MessageError("FileRecord.content names the record of a current version")
        names = [reader[0] for reader in self.readers]
        if names != sorted(set(names)) or self.owner in names:
            raise MessageError("FileRecord.readers must be sorted, unique and without the owner")


def carried_content(head: FileRecord, body: bytes) -> bytes:
    """Return `content` of a record that keeps the current version of `head`, whose exact bytes are
    `body`."""
    return (head.content or record_hash(body)) if head.current else b""


class LeaveRecord(SignedStruct):
    """Signed statement of the reader `user` that they leave a file that `owner` shares.

    `first` is the hash of the reader's first statement, and `generation` that of the key that
    signs. `record` is the hash of the file's last record at that time: to make the user a reader
    again, the owner signs a later one. `created` is in unix seconds.
    """

    server: Bytes32
    user: UserName
    first: Bytes32
    generation: Generation
    owner: UserName
    file_id: FileId
    record: Bytes32
    created: Count

    def __post_init__(self) -> None:
        if self.user == self.owner:
            raise MessageError("LeaveRecord.user: nobody leaves a file of their own")


class RotationFinish(SignedStruct):
    """Signed statement of a user that no wrap of an older generation is left, except in versions
    that could not be renewed because they are damaged.

    `statement` is the hash of the statement of reason `finish` that is sent with it. `root` is the
    RFC 6962 root over this user's wraps as of log entry `as_of_seq`, sorted by owner, file_id and
    version (leaves: `wrap_leaf`). `files` counts them. `left_out` counts the versions that were
    left out, and `left_out_root` is the root over them in the same order (leaves: `version_leaf`).
    """

    server: Bytes32
    user: UserName
    statement: Bytes32
    generation: Generation
    as_of_seq: Count
    files: Count
    root: Bytes32
    left_out: Count
    left_out_root: Bytes32


def wrap_leaf(owner: str, file_id: str, version: int, wrapped: bytes) -> bytes:
    """Return leaf data of `RotationFinish.root`:
    owner ‖ 0 ‖ file_id ‖ u64be(version) ‖ SHA-256(wrap)."""
    return version_leaf(owner, file_id, version) + hashlib.sha256(wrapped).digest()


def version_leaf(owner: str, file_id: str, version: int) -> bytes:
    """Return leaf data of `RotationFinish.left_out_root`: owner ‖ 0 ‖ file_id ‖ u64be(version)."""
    return owner.encode() + b"\0" + file_id.encode() + version.to_bytes(8)
