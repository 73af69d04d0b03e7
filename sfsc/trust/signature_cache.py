"""Cache of signatures found valid in this process, so that none is verified twice: a folder that is
fetched was usually listed just before. Nothing stored on disk counts as verified here.

For a batch, `verify_in_background` verifies a part in a second thread (Ed25519 releases the
interpreter lock). That is only a speed-up: every caller finds a signature verified, or verifies it
itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from protocol.codec.errors import SignatureError
from protocol.records.signatures import Label, verify_signature

MAX_CACHED: Final = 64 * 1024
"""Cached signatures, about 100 bytes each; when the cache is full it is emptied."""
_MIN_BATCH: Final = 8
"""Fewer signatures are verified faster than a thread starts."""
_verified: set[bytes] = set()
SignatureCheck = tuple[Label, bytes, bytes, bytes]
"""A label, a body, a signature (64 bytes) and a public key (32 bytes)."""


def signature_is_valid(
    label: Label, body: bytes, signature: bytes | None, public: bytes | None
) -> bool:
    """Return whether `public` (32 bytes) made `signature` (64 bytes) over `body`; False if one is
    None."""
    if signature is None or public is None:
        return False
    whole = _cache_key(label, body, signature, public)
    if whole in _verified:
        return True
    try:
        verify_signature(label, body, signature, public)
    except SignatureError:
        return False
    if len(_verified) >= MAX_CACHED:
        _verified.clear()
    _verified.add(whole)
    return True


@contextlib.contextmanager
def verify_in_background(signed: Sequence[SignatureCheck]) -> Iterator[None]:
    """While the block verifies `signed` roughly in order, a second thread starts at the end. The
    two meet in the middle."""
    if len(signed) < _MIN_BATCH:
        yield
        return
    done = threading.Event()

    def backwards() -> None:
        for one in reversed(signed):
            # A cached signature was verified by the block, and so were all before it.
            if done.is_set() or _cache_key(*one) in _verified:
                return
            signature_is_valid(*one)

    worker = threading.Thread(target=backwards, name="sfsc-verify")
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


def _cache_key(label: Label, body: bytes, signature: bytes, public: bytes) -> bytes:
    """Return a hash of a signature and everything it covers."""
    # Unambiguous: all parts but the last have fixed sizes, and no label contains a zero byte.
    return hashlib.sha256(signature + public + label.value + b"\0" + body).digest()
