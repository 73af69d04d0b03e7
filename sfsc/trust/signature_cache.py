"""Signatures that were found good in this process, so that none is verified twice: a folder that is
fetched was listed just before. Nothing that lies on a disk is believed so.

Of many that came together, `verify_in_background` has some verified by another thread: Ed25519
leaves the interpreter to others. Nobody is believed by that: who asks finds the signature
verified, or verifies it.
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
"""Signatures that are remembered, about 100 bytes each; past it all are forgotten."""
_MIN_BATCH: Final = 8
"""Signatures that are verified sooner than a thread is there to help."""
_verified: set[bytes] = set()
SignatureCheck = tuple[Label, bytes, bytes, bytes]
"""A label, a body, a signature (64 bytes) and a public key (32 bytes)."""


def signature_is_valid(
    label: Label, body: bytes, signature: bytes | None, public: bytes | None
) -> bool:
    """Whether `signature` (64 bytes) is `public`'s (32 bytes) over `body`; None is nobody's."""
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
    """While the block asks whether these are verified, about in their order, another thread begins
    at their end: the two meet."""
    if len(signed) < _MIN_BATCH:
        yield
        return
    done = threading.Event()

    def backwards() -> None:
        for one in reversed(signed):
            # One that is known was come to by the block, and so were all before it.
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
    """The name of a signature and all that it is over."""
    # Of fixed lengths but the last, and no label holds a zero: so no two of these read alike.
    return hashlib.sha256(signature + public + label.value + b"\0" + body).digest()
