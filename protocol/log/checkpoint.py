"""Checkpoints: the size and root of the log as a C2SP signed note.

The text form (c2sp.org/tlog-checkpoint) is three lines (origin, size, base64 root), a blank line,
and the signatures (c2sp.org/signed-note), each ``— NAME BASE64(key id 4 ‖ signature)``. Origin and
key name are ``sfs/<server_id hex>``. The key id is the first 4 bytes of
SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key), in which 0x01 means Ed25519.

Witnesses may have cosigned a note: their signatures are read past, and never stored
(`verify_own`). No control character is accepted, because people print notes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from protocol.codec.base64text import from_text, to_text
from protocol.codec.errors import CheckpointError, PublicKeyError, SignatureError
from protocol.codec.values import Value
from protocol.records.public_keys import check_signing_key
from protocol.records.signatures import SigningKey, verify_note

MAX_NOTE: Final = 128 * 1024
"""Longest note in bytes that is read; 50 cosignatures of 2,420 bytes (ML-DSA-44) fit in."""
MAX_CHECKPOINT: Final = 4096
"""Longest note in bytes with the log's own signature alone, as it is sent and stored; also the
longest text of any note."""
_ED25519: Final = b"\x01"
_MARK: Final = "— "
_MAX_SIGNATURES: Final = 64
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Every control character except the newline."""


def origin_of(server_id: bytes) -> str:
    """Return the origin, which is also the key name, of the log of a 32-byte server id."""
    return f"sfs/{server_id.hex()}"


def server_of(origin: str) -> bytes:
    """Return the 32-byte server id in the origin of a log. Raises ValueError for another origin."""
    server = bytes.fromhex(origin.removeprefix("sfs/"))
    if origin_of(server) != origin or len(server) != 32:
        raise ValueError("not the origin of a log of this system")
    return server


class Checkpoint(Value):
    """Statement of a signed note: log `origin` had `size` entries under `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes


class Verifier(Value):
    """A log's verification key: its name and 32-byte Ed25519 public key."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that select a signature in a note; a hint, never proof of anything."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        """The C2SP text form: ``name+key id hex+base64(0x01 ‖ public key)``."""
        return f"{self.name}+{self.key_id.hex()}+{to_text(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Parse the text form made by `vkey`. Raises `CheckpointError`."""
        parts = vkey.split("+", 2)
        if len(parts) != 3 or not _is_name(parts[0]):
            raise CheckpointError("not a verification key")
        key = _decode(parts[2])
        verifier = cls(parts[0], key[1:])
        if key[:1] != _ED25519 or len(key) != 33 or parts[1] != verifier.key_id.hex():
            raise CheckpointError("not an Ed25519 verification key, or its key id is wrong")
        try:
            check_signing_key(verifier.public)
        except PublicKeyError as exc:
            raise CheckpointError(f"not a verification key: {exc}") from exc
        return verifier


def sign(key: SigningKey, origin: str, size: int, root: bytes) -> bytes:
    """Return a signed note (UTF-8) that log `origin` has `size` entries under `root`."""
    text = f"{origin}\n{size}\n{to_text(root)}\n"
    verifier = Verifier(origin, key.public)
    blob = to_text(verifier.key_id + key.sign_note(text.encode()))
    return f"{text}\n{_MARK}{origin} {blob}\n".encode()


def verify(note: bytes, verifier: Verifier) -> Checkpoint:
    """Verify the signature of `verifier` on `note` and return its content.

    Signatures of other keys are ignored. Raises `CheckpointError` for malformed bytes, another
    origin, or a missing or bad signature.
    """
    return verify_own(note, verifier)[0]


def verify_own(note: bytes, verifier: Verifier) -> tuple[Checkpoint, bytes]:
    """Like `verify`; return also the note with the signature of `verifier` alone, which has at most
    `MAX_CHECKPOINT` bytes."""
    text, signatures = _split_note(note)
    own = f"{text}\n{_own_line(text, signatures, verifier)}\n".encode()
    if len(own) > MAX_CHECKPOINT:
        raise CheckpointError("the checkpoint is too long")
    checkpoint = _parse(text)
    if checkpoint.origin != verifier.name:
        raise CheckpointError("the checkpoint is of another log")
    return checkpoint, own


def read(note: bytes) -> Checkpoint:
    """Parse a note without checking its signature: only for bytes trusted for another reason.

    Raises `CheckpointError`.
    """
    return _parse(_split_note(note)[0])


def _split_note(note: bytes) -> tuple[str, str]:
    """Return (text with its last newline, signature lines) of a note."""
    if len(note) > MAX_NOTE:
        raise CheckpointError("the checkpoint is too long")
    try:
        decoded = note.decode()
    except UnicodeDecodeError as exc:
        raise CheckpointError("the checkpoint is not UTF-8") from exc
    if _CONTROL.search(decoded):
        raise CheckpointError("the checkpoint has control characters")
    text, separator, signatures = decoded.rpartition("\n\n")
    if not separator:
        raise CheckpointError("the checkpoint has no signatures")
    return text + "\n", signatures


def _own_line(text: str, signatures: str, verifier: Verifier) -> str:
    """Return the line with the signature of `verifier`; every signature by it must be valid."""
    lines = signatures.split("\n")
    if lines.pop() != "" or not 0 < len(lines) <= _MAX_SIGNATURES:
        raise CheckpointError("the signatures of the checkpoint are malformed")
    own = None
    for line in lines:
        name, _, blob = line.removeprefix(_MARK).partition(" ")
        if not line.startswith(_MARK) or not _is_name(name):
            raise CheckpointError("the signatures of the checkpoint are malformed")
        key_and_signature = _decode(blob)
        if len(key_and_signature) <= 4:
            raise CheckpointError("the checkpoint has an empty signature")
        if name == verifier.name and key_and_signature[:4] == verifier.key_id:
            try:
                verify_note(text.encode(), key_and_signature[4:], verifier.public)
            except SignatureError as exc:
                raise CheckpointError("the signature of the checkpoint does not verify") from exc
            own = own or line
    if own is None:
        raise CheckpointError("the checkpoint is not signed by this log's key")
    return own


def _is_name(text: str) -> bool:
    """Tell whether `text` may name a key: no white space, no plus, no control character."""
    return bool(text) and not re.search(r"[\s+]", text) and not _CONTROL.search(text)


def is_size(text: str) -> bool:
    """Return whether `text` is a number of at most 16 digits without a leading zero."""
    digits = text.isascii() and text.isdigit() and len(text) <= 16
    return digits and (text[0] != "0" or text == "0")


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not is_size(lines[1]):
        raise CheckpointError("malformed checkpoint")
    root = _decode(lines[2])
    if len(root) != 32:
        raise CheckpointError("the root of the checkpoint is not 32 bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def _decode(text: str) -> bytes:
    try:
        return from_text(text)
    except ValueError as exc:
        raise CheckpointError("bad base64 in a checkpoint or verification key") from exc
