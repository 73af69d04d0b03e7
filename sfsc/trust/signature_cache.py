"""Cache of signatures found valid in this process, so that none is verified twice: a folder that is
fetched was usually listed just before, and records that were signed together share one signature.
Nothing stored on disk counts as verified here.

For a batch, `verify_in_background` verifies a part in a second thread (Ed25519 releases the
interpreter lock). That is only a speed-up: every caller finds a signature verified, or verifies it
itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from protocol.records.record_signatures import SignatureCache
from protocol.records.signatures import Label

MAX_CACHED: Final = 64 * 1024
"""Cached signatures, about 100 bytes each."""
_MIN_BATCH: Final = 8
"""Fewer signatures are verified faster than a thread starts."""
_verified = SignatureCache(MAX_CACHED)
SignatureCheck = tuple[Label, bytes, bytes, bytes]
"""A label, a body, a signature (64 bytes) and a public key (32 bytes)."""


def signature_is_valid(label: Label, body: bytes, signature: bytes, public: bytes | None) -> bool:
    """Return whether `public` (32 bytes) made `signature` (64 bytes) over `body`; False if it is
    None."""
    return public is not None and _verified.is_valid(label, body, signature, public)


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
            if done.is_set() or _verified.has(*one):
                return
            signature_is_valid(*one)

    worker = threading.Thread(target=backwards, name="sfsc-verify")
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
