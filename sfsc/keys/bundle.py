"""The bundle: the keys that an account's other devices and its recovery code need.

Each statement commits to one bundle, which is sealed for the statement's devices, its recovery key
and its own wrap key.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Final

from protocol.codec import encoding
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import AtMost, Bytes32, Exactly, Signature, Struct, UserName
from protocol.codec.values import changed, field
from protocol.log.checkpoint import MAX_CHECKPOINT
from protocol.log.tags import check_tag_key
from protocol.records.records import MAX_ENCRYPTED_KEY, MAX_RECORD, Statement, key_id
from protocol.records.signatures import SigningKey
from protocol.wire.messages.base import MAX_BUNDLE
from sfsc.crypto.primitives import bundle_info, new_key, open_sealed, seal
from sfsc.crypto.wrap import XWING, PrivateKey, PublicKey
from sfsc.errors import BadRecord, KeyringError, LocalError, Tampered
from sfsc.keys.keyring import MAX_PINS, GenerationKeys, Labels

_MAX_GENERATIONS: Final = 64
_LONGER: Final = 4
"""Extra bytes of msgpack's header of a long array or bin, compared with a short one."""


class SeenCheckpoint(Struct):
    """A checkpoint that a device has proven: the `note` with the log's own signature alone, and the
    server's `statement`, with its `signature`, that names the log's key of that time."""

    AS_MAP: ClassVar[bool] = True

    note: Annotated[bytes, AtMost(MAX_CHECKPOINT)]
    statement: Annotated[bytes, AtMost(MAX_RECORD)]
    signature: Signature


class Bundle(Struct):
    """Plain contents of a bundle, without any private key of a device or of the recovery code.

    `generations` are ordered oldest first; `name_keys` holds the account's one name key, `tag_key`
    is the key of its tags in the log; `pins` are (user, hash of that user's first statement);
    `checkpoint` is the last one that the signing device has proven, None at enrolment. Nobody else
    has checked it: another device verifies it (`ServerTrust.verify_seen`) before it believes it.
    `labels` name the devices, for nobody but the account itself.
    """

    AS_MAP: ClassVar[bool] = True

    generations: Annotated[tuple[GenerationKeys, ...], AtMost(_MAX_GENERATIONS)]
    name_keys: Annotated[tuple[Bytes32, ...], Exactly(1)] = field(repr=False)
    tag_key: Bytes32 = field(repr=False)
    pins: Annotated[tuple[tuple[UserName, Bytes32], ...], AtMost(MAX_PINS)]
    checkpoint: SeenCheckpoint | None
    labels: Labels = ()


class _SealedBundle(Struct):
    """Wire form: the bundle under a key K, and K for each recipient (key_id, wrapped K)."""

    AS_MAP: ClassVar[bool] = True
    LIMIT: ClassVar[int] = MAX_BUNDLE

    keys: Annotated[
        tuple[tuple[Bytes32, Annotated[bytes, AtMost(MAX_ENCRYPTED_KEY)]], ...], AtMost(18)
    ]
    sealed: Annotated[bytes, AtMost(MAX_BUNDLE)]


def seal_bundle(
    bundle: Bundle, *, server: bytes, user: str, n: int, recipients: Iterable[PublicKey]
) -> bytes:
    """Seal the bundle of statement `n` of `user`. The statement holds the SHA-256 of the result.

    `recipients` are the statement's devices, its recovery key and its own wrap key. K's info
    without a recipient is the associated data of what K seals, so that a bundle cannot pass for
    that of another statement. If there are too many pins, only the first fit; other machines ask
    about the rest again. Raises `LocalError` if the remainder exceeds 64 KiB.
    """
    key = new_key()
    keys = tuple(
        (public.key_id, public.wrap(key, bundle_info(server, user, n, public.key_id)))
        for public in recipients
    )

    def sealed(pins: tuple[tuple[str, bytes], ...]) -> bytes:
        body = changed(bundle, pins=pins).encode()
        body = seal(key, body, bundle_info(server, user, n, b""))
        try:
            return _SealedBundle(keys, body).encode()
        except MessageError as exc:
            raise LocalError(f"the account's bundle has grown past its limits: {exc}") from exc

    # With pins, two msgpack headers become longer: the array's and the bin's.
    space = MAX_BUNDLE - len(sealed(())) - 2 * _LONGER
    sizes = itertools.accumulate(len(encoding.pack(pin)) for pin in bundle.pins)
    packed = sealed(bundle.pins[: sum(size <= space for size in sizes)])
    if len(packed) > MAX_BUNDLE:
        raise LocalError(f"the account's bundle has grown to {len(packed)} bytes")
    return packed


def open_bundle(sealed: bytes, statement: Statement, keys: Sequence[PrivateKey]) -> Bundle:
    """Open the bundle that `statement` (already verified) commits to, with one of `keys`. Raises
    `Tampered` if it is another bundle or does not open, `BadRecord` if its keys are not those that
    the statement makes current or if the key that opens it is not in the statement, and
    `KeyringError` if it is sealed for none of `keys`."""
    if not hmac.compare_digest(hashlib.sha256(sealed).digest(), statement.bundle_sha256):
        raise Tampered("the account's bundle is not the one its statement names")
    try:
        parts = _SealedBundle.parse(sealed)
        key = _bundle_key(parts, statement, keys)
        aad = bundle_info(statement.server, statement.user, statement.n, b"")
        body = open_sealed(key, parts.sealed, aad)
        bundle = Bundle.parse(body)
    except (EncodingError, MessageError) as exc:
        raise BadRecord(f"the account's bundle is malformed: {exc}") from exc
    _check_current(bundle, statement)
    return bundle


_DROPPED_HINT: Final = (
    "this device was dropped: join again by `sfsc init --recovery` in an empty --home; if an "
    "attacker dropped it, take the account back by `sfsc rotate --recovery`"
)


def _bundle_key(parts: _SealedBundle, statement: Statement, keys: Sequence[PrivateKey]) -> bytes:
    by_id = {key.public.key_id: key for key in keys}
    for recipient, wrapped in parts.keys:
        if recipient in by_id:
            # Any user's public key can be put into any bundle. It must stand in the chain as well.
            if recipient not in _named_keys(statement):
                raise BadRecord("the account's bundle is sealed to a key that its statement lacks")
            info = bundle_info(statement.server, statement.user, statement.n, recipient)
            return by_id[recipient].unwrap(wrapped, info)
    raise KeyringError("the account's keys are not sealed for this machine", _DROPPED_HINT)


def _named_keys(statement: Statement) -> set[bytes]:
    """Return the ids of the keys that the bundle of a statement is sealed to."""
    devices = [one.xwing_pub for one in statement.devices]
    recovery = [] if statement.recovery is None else [statement.recovery.xwing_pub]
    return {statement.key_id, *(key_id(XWING, public) for public in (*devices, *recovery))}


def _check_current(bundle: Bundle, statement: Statement) -> None:
    """Raise `BadRecord` unless the bundle's newest keys are the ones the statement publishes."""
    newest = bundle.generations[-1] if bundle.generations else None
    if (
        newest is None
        or newest.generation != statement.generation
        or SigningKey.from_seed(newest.sign_seed).public != statement.sign_pub
        or newest.wrap_alg != statement.wrap_alg
        or PrivateKey(newest.wrap_alg, newest.wrap_private).public.encoded != statement.wrap_pub
    ):
        raise BadRecord("the account's bundle does not hold the keys of its statement")
    if not check_tag_key(bundle.tag_key, statement.tag_commit):
        raise BadRecord("the account's bundle holds another tag key than its statement names")


def private_keys(generations: Iterable[GenerationKeys]) -> dict[bytes, PrivateKey]:
    """Return the wrap keys of these generations by key_id. Raises `UnsupportedKey`."""
    keys = [PrivateKey(entry.wrap_alg, entry.wrap_private) for entry in generations]
    return {key.public.key_id: key for key in keys}
