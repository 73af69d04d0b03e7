"""Users: their identity chains, what the operator says about them, what they use.

Statements are judged here by every rule of DESIGN section 4 before they are stored, so whoever
reads a chain from the store may rely on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import Value
from protocol.records.chain import KEEPING, RECOVERY, check_first, check_next, standing, voided
from protocol.records.records import (
    WRAP_ALGORITHMS,
    XWING_PUBLIC_SIZE,
    Statement,
    key_id,
    record_hash,
)
from protocol.wire.messages.session import Notice
from sfsd.config import DAY, Rotation
from sfsd.errors import Refused, require
from sfsd.state.documents import Document, Documents
from sfsd.state.file_index import Index
from sfsd.state.quota import Ledger
from sfsd.storage.json_files import Account, StoredStatement
from sfsd.storage.paths import account_path, statements_path

MAX_LIFE: Final = 730 * DAY
"""Seconds; with one day the clamp of `due` and `expires` (DESIGN section 3)."""
CLOCK_SKEW: Final = DAY
MAX_RUN: Final = 2048
"""Statements of a chain, counted anew from each recovery. Clients follow 8,192."""
_USERS: Final = 1024
"""Users who are kept in memory, with what was worked out of their chains."""
_RAW_SIZES: Final = {"x25519": 32, "xwing": XWING_PUBLIC_SIZE}
_RSA_BITS: Final = {"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096}
_MAX_RSA_SPKI: Final = 600
_Judged = TypeVar("_Judged")


def signing_key_id(public: bytes) -> str:
    """The name, in hex, under which the log has a signature by this Ed25519 key."""
    return key_id("ed25519", public).hex()


@dataclass(frozen=True)
class Chain:
    """A user's statements, in order; never empty."""

    user: str
    links: tuple[StoredStatement, ...]

    @property
    def head(self) -> Statement:
        return self.links[-1].statement

    @property
    def first_hash(self) -> bytes:
        """What others pin: the hash of the first statement, 32 bytes."""
        return record_hash(self.links[0].body)

    @property
    def statements(self) -> list[Statement]:
        return [link.statement for link in self.links]

    @cached_property
    def signing_keys(self) -> dict[int, bytes]:
        """The Ed25519 public key of each generation, but those that were voided."""
        undone = voided(self.statements)
        stand = (one for one in self.statements if one.n not in undone)
        return {statement.generation: statement.sign_pub for statement in stand}

    def voided_keys(self) -> tuple[frozenset[int], frozenset[bytes]]:
        """(generations, ids of their wrap keys) that a recovery has undone."""
        stand, undone = standing(self.statements)
        gone = {one.generation for one in undone} - {one.generation for one in stand}
        # A thief may name a key of the owner's as his: what is wrapped for that stays the owner's.
        keys = {one.key_id for one in undone if one.generation in gone}
        keys -= {one.key_id for one in stand}
        return frozenset(gone), frozenset(keys)


class User(Value):
    """One user as the store has him, and what a change that relies on it expects: his two files."""

    name: str
    account: Document[Account]
    chain: Chain
    expect: Mapping[str, bytes | None]


class Accounts:
    """Finds users. Safe on several threads; every answer is what the store has now."""

    def __init__(self, documents: Documents, index: Index) -> None:
        self._documents = documents
        self._index = index
        self._users: dict[str, User] = {}

    def account(self, name: str) -> Document[Account] | None:
        return self._documents.account(name)

    def chain(self, name: str) -> tuple[Chain, bytes] | None:
        """(chain, digest of its file) of an enrolled user. Raises `DamagedError`."""
        path, known = statements_path(name), self._users.get(name)
        if known is not None:
            digest = known.expect[path]
            # Whoever has this very file has this chain.
            if digest is not None and self._documents.has(path, digest):
                return known.chain, digest
        found = self._documents.statements(name)
        return None if found is None else (Chain(name, found.value), found.digest)

    def find(self, name: str) -> User | None:
        """An enrolled user, disabled or not. Raises `DamagedError`."""
        known = self._users.get(name)
        if known is not None and all(self._documents.has(*one) for one in known.expect.items()):
            return known
        account, chain = self.account(name), self.chain(name)
        if account is None or chain is None:
            return None
        expect: dict[str, bytes | None] = {
            account_path(name): account.digest,
            statements_path(name): chain[1],
        }
        user = User(name, account, chain[0], expect)
        if name not in self._users and len(self._users) >= _USERS:
            self._users.clear()
        self._users[name] = user
        return user

    def acting(self, name: str) -> User:
        """The user who asks. Raises `Refused` where he was disabled meanwhile."""
        user = self.find(name)
        if user is None or user.account.value.disabled:
            raise Refused("denied", "the account is disabled")
        return user

    def quota(self, name: str) -> tuple[Ledger, int]:
        """The ledger that `name`'s ciphertext counts in, loaded if there is a quota; the quota."""
        account = self.account(name)
        quota = 0 if account is None else account.value.quota
        files = self._index.of(name)
        return (files.weigh() if quota else files.ledger), quota


def block_of(user: User, now: float) -> Notice | None:
    """Why `user` may only read and rotate now, or None."""
    notice = notice_of(user, now)
    return notice if notice is not None and notice.state != "due" else None


def notice_of(user: User, now: float, generation: int = 0) -> Notice | None:
    """What the user is told at a login with `generation`: nothing before `due`, unless that is an
    older one than the account has (0: the recovery key, which is none)."""
    head, forced = user.chain.head, user.account.value.forced
    if 0 < generation < head.generation:
        return Notice(head.due, "rotated", "the keys were rotated on another machine")
    if forced is not None:
        return Notice(head.due, "forced", forced)
    if now >= head.expires:
        return Notice(head.due, "overdue", "the key is past its expiry")
    if now >= head.due:
        return Notice(head.due, "due", "the key has reached its age")
    return None


def judge_first(
    body: bytes,
    signature: bytes,
    bundle: bytes,
    *,
    user: str,
    server_id: bytes,
    policy: Rotation,
    now: float,
) -> Statement:
    """The first statement of `user`, valid by every rule. Raises `Refused` with the rule."""
    statement = _judged(lambda: check_first(body, (signature,)))
    require(statement.server == server_id, "the statement is for another server")
    require(statement.user == user, "the statement is another user's")
    require(statement.bundle_sha256 == hashlib.sha256(bundle).digest(), "not the bundle's hash")
    _check_keys(statement)
    check_times(statement, policy, now)
    return statement


def judge_next(
    chain: Chain,
    body: bytes,
    signatures: tuple[bytes, ...],
    bundle: bytes,
    *,
    reasons: frozenset[str],
    policy: Rotation,
    now: float,
) -> tuple[Statement, dict[str, bytes]]:
    """(statement, its signatures as the log has them) of the next in a chain, for one of `reasons`.

    Raises `Refused`: `conflict` where the chain has grown, else with the rule.
    """
    parsed = _judged(lambda: Statement.parse(body))
    before = chain.links[-1].body
    if (parsed.n, parsed.prev) != (chain.head.n + 1, record_hash(before)):
        raise Refused("conflict", f"the chain has {chain.head.n} statements")
    bodies = [link.body for link in chain.links]
    statement, signers = _judged(lambda: check_next(bodies, body, signatures))
    if statement.reason != RECOVERY and _since_recovery(chain) >= MAX_RUN:
        # Who has a stolen key can lengthen the chain, but not past where its owner can follow.
        raise Refused("denied", f"{MAX_RUN} statements: only the recovery key continues")
    require(statement.reason in reasons, f"{statement.reason} does not come this way")
    require(statement.bundle_sha256 == hashlib.sha256(bundle).digest(), "not the bundle's hash")
    if statement.reason in KEEPING:
        require(abs(statement.created - now) <= CLOCK_SKEW, "it was not made now; check the clock")
    else:
        check_times(statement, policy, now)
    _check_keys(statement)
    named = zip(signers, signatures, strict=True)
    return statement, {signing_key_id(public): signature for public, signature in named}


def _since_recovery(chain: Chain) -> int:
    recovered = [link.statement.n for link in chain.links if link.statement.reason == RECOVERY]
    return chain.head.n - max(recovered, default=0)


def _judged(judge: Callable[[], _Judged]) -> _Judged:
    try:
        return judge()
    except SignatureError as exc:
        raise Refused("refused", "the statement is not signed by its own key") from exc
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"not the statement it should be: {exc}") from exc


def check_times(statement: Statement, policy: Rotation, now: float) -> None:
    """Raise `Refused` unless `created` is about now and `due` and `expires` are within policy."""
    created, due, expires = statement.created, statement.due, statement.expires
    require(abs(created - now) <= CLOCK_SKEW, "the statement was not made now; check the clock")
    longest = min(policy.max_age * (100 + policy.jitter) // 100, MAX_LIFE)
    require(0 < due - created <= max(longest, DAY), "due is not within this server's policy")
    most = min(due - created + max(policy.grace, DAY), MAX_LIFE)
    require(
        due - created <= expires - created <= most, "expires is not within this server's policy"
    )


def check_wrap_key(algorithm: str, public: bytes) -> None:
    """Raise `Refused` unless `public` is a key of `algorithm` that others can wrap to."""
    if algorithm in _RAW_SIZES:
        require(len(public) == _RAW_SIZES[algorithm], f"not an {algorithm} public key")
        require(any(public), f"not an {algorithm} public key")
        return
    require(algorithm in WRAP_ALGORITHMS and len(public) <= _MAX_RSA_SPKI, "not a wrapping key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    try:
        key = load_der_public_key(public)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise Refused("bad-request", f"not an {algorithm} public key") from exc
    if not isinstance(key, RSAPublicKey) or key.key_size != _RSA_BITS[algorithm]:
        raise Refused("bad-request", f"not an {algorithm} public key")
    require(key.public_numbers().e == 65537, "an RSA key with an exponent other than 65537")
    # A key has one spelling, since its name is the hash of its bytes.
    spelled = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    require(spelled == public, f"not the DER form of an {algorithm} public key")


def _check_keys(statement: Statement) -> None:
    check_wrap_key(statement.wrap_alg, statement.wrap_pub)
    devices = statement.devices
    require(len({device for device, _ in devices}) == len(devices), "a device stands twice")
    for _, public in devices:
        check_wrap_key("xwing", public)
    if statement.recovery is not None:
        check_wrap_key("xwing", statement.recovery.xwing_pub)
