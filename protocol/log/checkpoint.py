"""Checkpoints: the size and root of the log as a C2SP signed note.

Text form (c2sp.org/tlog-checkpoint): three lines, origin, size, base64 root, then a blank line and
the signatures (c2sp.org/signed-note), each ``— NAME BASE64(key id 4 ‖ signature)``. Origin and key
name are ``sfs/<server_id hex>``; the key id is the first 4 bytes of
SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key), type 0x01 being Ed25519.
"""

from __future__ import annotations

import hashlib

from protocol.codec.base64text import from_text, to_text
from protocol.codec.errors import CheckpointError, SignatureError
from protocol.codec.values import Value
from protocol.records.signatures import SigningKey, verify_note

MAX_CHECKPOINT = 4096
"""Bytes of the longest signed note."""
_ED25519 = b"\x01"
_MARK = "— "
_MAX_SIGNATURES = 16


def origin_of(server_id: bytes) -> str:
    """The origin and key name of the log of `server_id` (32 bytes)."""
    return f"sfs/{server_id.hex()}"


class Checkpoint(Value):
    """What a verified note says: this log had `size` entries under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes


class Verifier(Value):
    """A log's verification key: its name and 32-byte Ed25519 public key."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """4 bytes that find the signature in a note; a hint, never trusted for itself."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        """The C2SP text form: ``name+key id hex+base64(0x01 ‖ public key)``."""
        return f"{self.name}+{self.key_id.hex()}+{to_text(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """The inverse of `vkey`. Raises `CheckpointError`."""
        parts = vkey.split("+", 2)
        if len(parts) != 3 or not parts[0] or any(char.isspace() for char in parts[0]):
            raise CheckpointError("not a verification key")
        key = _decode(parts[2])
        verifier = cls(parts[0], key[1:])
        if key[:1] != _ED25519 or len(key) != 33 or parts[1] != verifier.key_id.hex():
            raise CheckpointError("not an Ed25519 verification key, or not of its key id")
        return verifier


def sign(key: SigningKey, origin: str, size: int, root: bytes) -> bytes:
    """The note that says the log `origin` has `size` entries under `root`. UTF-8."""
    text = f"{origin}\n{size}\n{to_text(root)}\n"
    verifier = Verifier(origin, key.public)
    blob = to_text(verifier.key_id + key.sign_note(text.encode()))
    return f"{text}\n{_MARK}{origin} {blob}\n".encode()


def verify(note: bytes, verifier: Verifier) -> Checkpoint:
    """What `note` says, once its signature by `verifier` holds. Others' signatures are ignored.

    Raises `CheckpointError` for any other bytes, another origin, or a missing or bad signature.
    """
    if len(note) > MAX_CHECKPOINT:
        raise CheckpointError("a checkpoint that is too long")
    try:
        decoded = note.decode()
    except UnicodeDecodeError as exc:
        raise CheckpointError("a checkpoint that is not UTF-8") from exc
    text, separator, signatures = decoded.rpartition("\n\n")
    text += "\n"
    if not separator:
        raise CheckpointError("a checkpoint without signatures")
    _check_signed(text, signatures, verifier)
    checkpoint = _parse(text)
    if checkpoint.origin != verifier.name:
        raise CheckpointError("a checkpoint of another log")
    return checkpoint


def read(note: bytes) -> Checkpoint:
    """What a note says whose bytes are trusted for another reason; its signature is not looked at.

    Raises `CheckpointError`.
    """
    try:
        text, separator, _ = note.decode().rpartition("\n\n")
    except UnicodeDecodeError as exc:
        raise CheckpointError("a checkpoint that is not UTF-8") from exc
    if len(note) > MAX_CHECKPOINT or not separator:
        raise CheckpointError("a checkpoint that is malformed")
    return _parse(text + "\n")


def _check_signed(text: str, signatures: str, verifier: Verifier) -> None:
    lines = signatures.split("\n")
    if lines.pop() != "" or not 0 < len(lines) <= _MAX_SIGNATURES:
        raise CheckpointError("a checkpoint whose signatures are malformed")
    signed = False
    for line in lines:
        name, _, blob = line.removeprefix(_MARK).partition(" ")
        if not line.startswith(_MARK) or not name:
            raise CheckpointError("a checkpoint whose signatures are malformed")
        key_and_signature = _decode(blob)
        if len(key_and_signature) <= 4:
            raise CheckpointError("a checkpoint with a signature of nothing")
        if name == verifier.name and key_and_signature[:4] == verifier.key_id:
            try:
                verify_note(text.encode(), key_and_signature[4:], verifier.public)
            except SignatureError as exc:
                raise CheckpointError("a checkpoint whose signature does not verify") from exc
            signed = True
    if not signed:
        raise CheckpointError("a checkpoint that this log's key did not sign")


def is_size(text: str) -> bool:
    """Whether `text` is a number of at most 16 digits, without a zero ahead of it."""
    digits = text.isascii() and text.isdigit() and len(text) <= 16
    return digits and (text[0] != "0" or text == "0")


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not is_size(lines[1]):
        raise CheckpointError("a checkpoint that is malformed")
    root = _decode(lines[2])
    if len(root) != 32:
        raise CheckpointError("a checkpoint whose root is not 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def _decode(text: str) -> bytes:
    try:
        return from_text(text)
    except ValueError as exc:
        raise CheckpointError("a checkpoint or key with bad base64") from exc
