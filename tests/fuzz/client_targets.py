"""Targets for what a client reads: its keyring, bundles, key files, and encrypted contents."""

from __future__ import annotations

import hashlib
import io
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec

from protocol.codec.encoding import pack
from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.invitation import parse_account_link
from protocol.records.records import FileRecord, Statement, record_hash
from protocol.wire.messages.base import Wrap
from sfsc.crypto.envelope import ContentKey, Metadata, open_wraps
from sfsc.crypto.primitives import bundle_info, keyring_keys, metadata_key, open_sealed, seal
from sfsc.crypto.segments import HEADER_SIZE, Decryptor, Encryptor, Geometry, plaintext_size
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import SfscError
from sfsc.keys.bundle import open_bundle, private_keys
from sfsc.keys.keyring import KeyringFile, needs_passphrase
from sfsc.keys.pem import export_pem, load_pem
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.session.transport import spki_sha256
from sfsd.storage.json_files import parse_sidecar
from tests.fuzz.mutations import Mutator
from tests.fuzz.target import Parser, Target
from tests.fuzz.world import World

_REFUSED = (SfscError,)
_KEYRING_HEADER = 106
_SEGMENT = 512
"""Segment size of the blobs here, in bytes; the code is the same for 1 MiB."""


def keyring_targets(world: World) -> list[Target]:
    """Return targets for keyrings, bundles, PEM files, recovery codes and certificates."""
    folder = world.home.with_name("changed keyring")
    folder.mkdir()
    keyring = (world.home / "keyring").read_bytes()
    unlock = _unlocker(folder / "keyring")
    secret = keyring_keys(keyring[26:42])[0]
    header = keyring[:_KEYRING_HEADER]
    plain = open_sealed(secret, keyring[_KEYRING_HEADER:], header)
    generation = world.keyring.generations[-1]
    x25519 = PrivateKey.generate("x25519")
    link = parse_account_link(world.link)
    pem = export_pem(link, generation.generation, generation.sign_seed, x25519, None)
    certificate = world.server.keys.folder.joinpath("tls.crt").read_text("ascii")
    return [
        Parser("keyring", [keyring], _REFUSED, unlock),
        Parser("keyring with its hash", [keyring], _REFUSED, unlock, _rehashed),
        Parser(
            "contents of a keyring",
            [plain],
            _REFUSED,
            unlock,
            lambda body: header + seal(secret, body, header),
        ),
        *_bundle_targets(world),
        Parser("PEM file", [pem], _REFUSED, lambda data: load_pem(data, None)),
        Parser(
            "recovery code",
            [world.code.encode(), world.code.lower().encode()],
            _REFUSED,
            lambda data: RecoveryCode.parse(data.decode(errors="replace")),
        ),
        Parser("certificate", [ssl.PEM_cert_to_DER_cert(certificate)], _REFUSED, spki_sha256),
    ]


def _rehashed(data: bytes) -> bytes:
    """Return a keyring whose header has its digest. Expensive Argon2id costs become cheap ones,
    which are refused: deriving a key takes 100,000 times as long as all other checks."""
    fields = data[:74]
    if fields[13:14] == b"\x01":
        fields = fields[:14] + bytes(4) + fields[18:]
    return fields + hashlib.sha256(fields).digest() + data[_KEYRING_HEADER:]


def _unlocker(path: Path) -> Callable[[bytes], object]:
    def unlock(data: bytes) -> None:
        path.write_bytes(data)
        needs_passphrase(path)
        KeyringFile.unlock(path, None)

    return unlock


def _bundle_targets(world: World) -> list[Target]:
    keyring = world.keyring
    statement = Statement.parse(keyring.statements[-1])
    sealed = world.stored("ada/bundle")[0]
    device = PrivateKey(XWING, keyring.device.xwing_private)
    plain = open_bundle(sealed, statement, [device])
    contents = plain.encode()
    parts = msgspec.msgpack.decode(sealed)
    about = statement.server, statement.user, statement.n
    aad, info = bundle_info(*about, b""), bundle_info(*about, device.public.key_id)
    (wrapped,) = (key for key_id, key in parts["keys"] if key_id == device.public.key_id)
    secret = device.unwrap(wrapped, info)

    def open_changed(data: bytes) -> None:
        """Open a bundle that the statement names: its author may be an attacker."""
        named = changed(statement, bundle_sha256=hashlib.sha256(data).digest())
        open_bundle(data, named, [device])

    def seal_again(body: bytes) -> bytes:
        """Return the bundle with other contents under the same key."""
        return pack(parts | {"sealed": seal(secret, body, aad)})

    return [
        Parser("bundle", [sealed], _REFUSED, open_changed),
        Parser("contents of a bundle", [contents], _REFUSED, open_changed, seal_again),
    ]


def segment_targets(world: World) -> list[Target]:
    """Return targets for segments, wraps and metadata."""
    record, wraps, keys = _version(world)
    first = record_hash(world.keyring.statements[0])
    key = open_wraps(record, first, wraps, keys)
    names = ("a", "folder/é", "b" * 200)
    size = plaintext_size(record.ciphertext_size or 0)
    metadata = [Metadata(name, size, 1, 0o644).encode() for name in names]
    sealed = [key.seal_metadata(Metadata.parse(one)) for one in metadata]
    wrapped = [wrap.wrapped for wrap in wraps if wrap.key_id in keys]
    key_ids = [wrap.key_id for wrap in wraps if wrap.key_id in keys]

    def open_wrap(data: bytes) -> None:
        (private,) = (keys[one] for one in key_ids)
        wrap = Wrap(world.keyring.user, key_ids[0], private.alg, data)
        open_wraps(record, first, [wrap], keys)

    def open_metadata(data: bytes) -> None:
        named = changed(record, metadata_sha256=hashlib.sha256(data).digest())
        key.open_metadata(named, data)

    return [
        Segments("segments"),
        Parser("wrap", wrapped, (*_REFUSED, MessageError), open_wrap),
        Parser(
            "metadata",
            sealed,
            _REFUSED,
            open_metadata,
        ),
        Parser(
            "contents of metadata",
            metadata,
            _REFUSED,
            open_metadata,
            lambda body: seal(metadata_key(key.dek), body, key.content_id),
        ),
    ]


def _version(world: World) -> tuple[FileRecord, tuple[Wrap, ...], dict[bytes, PrivateKey]]:
    """Return a record of a version, its wraps, and ada's keys by id."""
    keys = private_keys(world.keyring.generations)
    for raw in world.stored("ada/files/*/*.json"):
        sidecar = parse_sidecar("", raw)
        if any(wrap.key_id in keys for wrap in sidecar.wraps):
            return sidecar.content_record, sidecar.wraps, keys
    raise AssertionError("no version of ada's is in the store")


class Segments:
    """Target that decrypts a blob of which pieces were changed, moved, dropped or taken from
    another blob under the same key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = b""
        self._key = ContentKey(bytes(16), bytes(32))
        self._geometry = Geometry(_SEGMENT)
        self._texts = [bytes([at]) * size for at, size in enumerate((0, 1, 456, 457, 1800, 4000))]
        self._blobs = [self._encrypted(text) for text in self._texts]

    def _encrypted(self, text: bytes) -> bytes:
        encryptor = Encryptor(self._key.dek, self._key.content_id, self._geometry)
        pieces = encryptor.plaintext_segments(io.BytesIO(text))
        return b"".join(encryptor.seal_segment(view, last=last) for view, last in pieces)

    def run(self, mutator: Mutator) -> bool:
        at = mutator.random.randrange(len(self._blobs))
        blob = self.last = mutator.change(self._blobs[at], self._blobs)
        size = mutator.random.choice(
            (len(blob), len(self._blobs[at]), mutator.random.randrange(9000))
        )
        try:
            opened = self._opened(blob, size)
        except SfscError:
            return False
        if opened not in self._texts or blob[:size] not in self._blobs:
            raise AssertionError("a changed blob decrypts")
        return True

    def _opened(self, blob: bytes, size: int) -> bytes:
        decryptor = Decryptor(
            self._key.dek, self._key.content_id, blob[:HEADER_SIZE], size, self._geometry
        )
        starts = range(0, decryptor.segment_count * _SEGMENT, _SEGMENT)
        return b"".join(
            decryptor.open_segment(index, blob[at : at + _SEGMENT])
            for index, at in enumerate(starts)
        )
