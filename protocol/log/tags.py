"""Tags: values in the leaves of the log by which an account's entries are found and counted.

Every entry of an account bears the account's tag for the number of its earlier entries. Only the
account and the server know the secret `tag_key`, so a leaf tells others nothing. A client that
reads all leaves and finds each of its tags 0 … N-1 exactly once, in order, and tag N nowhere, has
all entries of its account, and so do all its devices.

Every entry that holds an identity statement also bears a tag that everyone can compute who knows
the account's first statement. So all who encrypt for a user can search for their newest statement.
"""

from __future__ import annotations

import hashlib
import hmac

from protocol.log.auditlog import TAG_SIZE

TAG_KEY_SIZE = 32
_COMMIT = b"sfs/v2/tag-commit\0"
_ACCOUNT = b"sfs/v2/tag\0"
_IDENTITY = b"sfs/v2/identity-tag\0"


def tag_commit(tag_key: bytes) -> bytes:
    """Return the 32-byte `Statement.tag_commit` of an account's 32-byte `tag_key`."""
    return hashlib.sha256(_COMMIT + tag_key).digest()


def check_tag_key(tag_key: bytes, commit: bytes) -> bool:
    """Return whether `tag_key` is the one that `commit` was made of; in constant time."""
    return len(tag_key) == TAG_KEY_SIZE and hmac.compare_digest(tag_commit(tag_key), commit)


def account_tag(tag_key: bytes, server: bytes, user: str, count: int) -> bytes:
    """Return the 16-byte tag of the entry of `user` that `count` earlier ones precede.

    `tag_key` and `server` (the server_id) are 32 bytes each. `user` has at most 255 bytes, `count`
    is below 2**64.
    """
    name = user.encode()
    body = _ACCOUNT + server + bytes([len(name)]) + name + count.to_bytes(8)
    return hmac.digest(tag_key, body, "sha256")[:TAG_SIZE]


def identity_tag(server: bytes, first_statement: bytes, n: int) -> bytes:
    """Return the 16-byte tag of the entry that holds statement `n` of a user.

    `first_statement` is the hash of the user's first statement, 32 bytes. `n` is below 2**32.
    """
    return hashlib.sha256(_IDENTITY + server + first_statement + n.to_bytes(4)).digest()[:TAG_SIZE]
