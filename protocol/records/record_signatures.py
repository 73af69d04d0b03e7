"""Signatures of file records: one Ed25519 signature for up to 256 records.

The hashes of the records are the data of the leaves of an RFC 6962 tree, whose root is signed::

    leaf       SHA-256(0x00 ‖ record_hash)
    body       server_id[32] ‖ owner_first[32] ‖ u32be(generation) ‖ u16be(n) ‖ root[32]
    signature  Ed25519(label ‖ 0 ‖ body)
    packed     signature[64] ‖ u16be(n) ‖ u16be(index) ‖ path[32 each]

Each record keeps its own packed form, which is verified without the other records. `owner_first` is
the hash of the first statement of the files' owner. The path has exactly as many hashes as n and
index require. No hash is in a tree twice.

The two labels keep two meanings apart: `RECORDS` says that a record is made, by the generation that
it states, and `ENDORSEMENTS` that a record of an older generation counts. With one label, signing
new records would also endorse what a thief had signed. A leaf of a tree that is no record is
never valid as one, because a leaf is the hash of a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, Self

from protocol.codec import merkle
from protocol.codec.errors import LocalProtocolError, ProofError, SignatureError
from protocol.codec.values import Value
from protocol.records.records import record_hash
from protocol.records.signatures import Label, SigningKey, verify_signature

MAX_SIGNED: Final = 256
"""Most records under one signature."""
SIGNATURE_SIZE: Final = 64
_PATH: Final = SIGNATURE_SIZE + 4
_LONGEST_PATH: Final = (MAX_SIGNED - 1).bit_length()
MAX_PACKED: Final = _PATH + _LONGEST_PATH * merkle.HASH_SIZE
"""Longest packed signature in bytes."""
_ALONE: Final = (1).to_bytes(2) + (0).to_bytes(2)
"""n and index of a record that is signed alone."""


class RecordTree:
    """The tree over the hashes of records that are signed together; `leaves` are its leaf hashes,
    32 bytes each, some of which may be padding."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """`leaves` are 1 to 256 different leaf hashes. Raises `LocalProtocolError`."""
        if not 1 <= len(leaves) <= MAX_SIGNED:
            raise LocalProtocolError(f"{len(leaves)} records cannot be signed together")
        if len(set(leaves)) != len(leaves):
            raise LocalProtocolError("a record is signed twice in one tree")
        self.leaves = tuple(leaves)
        self._root, self._paths = merkle.inclusion_paths(leaves)

    @classmethod
    def of_records(cls, hashes: Iterable[bytes]) -> Self:
        """Return the tree of 1 to 256 different record hashes. Raises `LocalProtocolError`."""
        return cls([*map(merkle.leaf_hash, hashes)])

    def signed_body(self, server: bytes, owner_first: bytes, generation: int) -> bytes:
        """Return the body that a signature of this tree covers."""
        return signed_body(server, owner_first, generation, len(self.leaves), self._root)

    def pack(self, signature: bytes) -> list[bytes]:
        """Return the packed form for each leaf, in order."""
        head = signature + len(self.leaves).to_bytes(2)
        return [head + index.to_bytes(2) + path for index, path in enumerate(self._paths)]


class RecordSigner(Value):
    """Signs file records as one generation of their owner's keys."""

    key: SigningKey
    server: bytes
    owner_first: bytes
    generation: int

    def sign(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Sign 1 to 256 different records (exact bytes) together; return the packed signatures."""
        tree = RecordTree.of_records(map(record_hash, bodies))
        return tree.pack(self.sign_tree(tree))

    def sign_tree(self, tree: RecordTree) -> bytes:
        """Sign the records whose tree is given; return the 64-byte signature."""
        return self._sign(Label.RECORDS, tree)

    def endorse(self, hashes: Sequence[bytes]) -> bytes:
        """Endorse 1 to 256 different records by their hashes; return the 64-byte signature."""
        return self._sign(Label.ENDORSEMENTS, RecordTree.of_records(hashes))

    def _sign(self, label: Label, tree: RecordTree) -> bytes:
        body = tree.signed_body(self.server, self.owner_first, self.generation)
        return self.key.sign(label, body)


class SignatureCache:
    """Signatures found valid in this process. Records that were signed together cost one Ed25519
    verification. Thread-safe; the cache is emptied when it is full."""

    def __init__(self, most: int) -> None:
        """`most` is the number of signatures, about 100 bytes each."""
        self._most = most
        self._valid: set[bytes] = set()

    def is_valid(self, label: Label, body: bytes, signature: bytes, public: bytes) -> bool:
        """Return whether `public` (32 bytes) made `signature` (64 bytes) over `body`."""
        whole = _cache_key(label, body, signature, public)
        if whole in self._valid:
            return True
        try:
            verify_signature(label, body, signature, public)
        except SignatureError:
            return False
        if len(self._valid) >= self._most:
            self._valid.clear()
        self._valid.add(whole)
        return True


def signed_body(
    server: bytes, owner_first: bytes, generation: int, count: int, root: bytes
) -> bytes:
    """Return the body of a signature over `count` records whose tree has this `root`."""
    return server + owner_first + generation.to_bytes(4) + count.to_bytes(2) + root


def unpack_signature(
    packed: bytes, digest: bytes, *, server: bytes, owner_first: bytes, generation: int
) -> tuple[bytes, bytes]:
    """Return (body, signature) that `packed` states for the record with the hash `digest`.

    The record is signed if that signature over that body is valid. Raises `SignatureError` for a
    malformed packed signature.
    """
    count, root = 1, merkle.leaf_hash(digest)
    if packed[SIGNATURE_SIZE:] != _ALONE:
        count, root = _root_of(packed, root)
    body = signed_body(server, owner_first, generation, count, root)
    return body, packed[:SIGNATURE_SIZE]


def signed_count(packed: bytes) -> int:
    """Return how many records a packed signature says were signed together."""
    return int.from_bytes(packed[SIGNATURE_SIZE : SIGNATURE_SIZE + 2])


def verify_record_signature(
    label: Label,
    packed: bytes,
    digest: bytes,
    public: bytes,
    *,
    server: bytes,
    owner_first: bytes,
    generation: int,
    cache: SignatureCache | None = None,
) -> None:
    """Raise `SignatureError` unless `public` signed, or endorsed, the record with the hash
    `digest`."""
    body, signature = unpack_signature(
        packed, digest, server=server, owner_first=owner_first, generation=generation
    )
    if cache is None:
        verify_signature(label, body, signature, public)
    elif not cache.is_valid(label, body, signature, public):
        raise SignatureError("the signature does not verify")


def verify_leaf(
    label: Label,
    tree: RecordTree,
    index: int,
    signature: bytes,
    digest: bytes,
    public: bytes,
    *,
    server: bytes,
    owner_first: bytes,
    generation: int,
    cache: SignatureCache,
) -> None:
    """Check as `verify_record_signature` does that `public` signed the record with the hash
    `digest`, leaf `index` of a tree whose leaves are all known: without its path. Raises
    `SignatureError`."""
    body = tree.signed_body(server, owner_first, generation)
    if tree.leaves[index] != merkle.leaf_hash(digest):
        raise SignatureError("the record is another than the signed one")
    if not cache.is_valid(label, body, signature, public):
        raise SignatureError("the signature does not verify")


def _root_of(packed: bytes, leaf: bytes) -> tuple[int, bytes]:
    """Return (n, root) of a packed signature; `leaf` is the record's leaf hash."""
    if not _PATH <= len(packed) <= MAX_PACKED or (len(packed) - _PATH) % merkle.HASH_SIZE:
        raise SignatureError("the signature of a record has a wrong length")
    count = signed_count(packed)
    index = int.from_bytes(packed[SIGNATURE_SIZE + 2 : _PATH])
    if count > MAX_SIGNED:
        raise SignatureError(f"{count} records cannot be signed together")
    ends = range(_PATH, len(packed), merkle.HASH_SIZE)
    path = [packed[at : at + merkle.HASH_SIZE] for at in ends]
    try:
        return count, merkle.root_of_path(leaf, index, count, path)
    except ProofError as exc:
        raise SignatureError(f"the signature of a record is malformed: {exc}") from exc


def _cache_key(label: Label, body: bytes, signature: bytes, public: bytes) -> bytes:
    """Return a hash of a signature and everything it covers."""
    # Unambiguous: all parts but the last have fixed sizes, and no label contains a zero byte.
    return hashlib.sha256(signature + public + label.value + b"\0" + body).digest()
