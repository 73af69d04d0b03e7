"""Formats that both programs share: encoding, frames, messages, signed records, log proofs.

This package opens no file, socket, clock or thread, and imports neither `sfsd` nor `sfsc`. Input
from outside is checked before it is used; `protocol.codec.errors` lists the errors raised.
"""

VERSION = "0.1.0"
"""Version of `sfsd` and `sfsc`, which are released together. It stands here because asking the
installed package for it takes 0.1 s of every start."""
