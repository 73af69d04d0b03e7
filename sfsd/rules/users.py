"""Users: identity chains, account settings, quota, and the rules for new statements.

Every rule for a statement is checked before it is stored, so code that reads a chain from the store
may rely on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

from protocol.codec.base64text import to_text
from protocol.codec.errors import PublicKeyError, RemoteProtocolError, SignatureError
from protocol.codec.values import Value
from protocol.log.tags import check_tag_key
from protocol.records.chain import KEEPING, check_first, check_next, split_voided, voided
from protocol.records.public_keys import check_statement_keys
from protocol.records.records import RECOVERY, Statement, key_id, record_hash
from protocol.wire.messages.session import Notice
from sfsd.errors import DamagedError, Refused, require
from sfsd.settings.config import RotationPolicy
from sfsd.settings.kinds import DAY
from sfsd.state.documents import Document, Documents
from sfsd.state.file_index import FileIndex
from sfsd.state.quota import Ledger
from sfsd.storage.json_files import StoredAccount, StoredStatement
from sfsd.storage.paths import account_path, statements_path

MAX_LIFE: Final = 730 * DAY
"""Maximum seconds from `created` to `due` and to `expires`; a policy may always allow one day."""
CLOCK_SKEW: Final = DAY
"""Seconds by which `created` may differ from the server's clock."""
MAX_RUN: Final = 2048
"""Maximum statements since the chain's last recovery. Clients follow chains of 8,192."""
_USERS: Final = 1024
"""Maximum cached users, with what was derived from their chains."""
_Checked = TypeVar("_Checked")


def signing_key_id(public: bytes) -> str:
    """Return the hex id under which log entries list signatures of this Ed25519 key."""
    return key_id("ed25519", public).hex()


def possession_detail(possession: bytes) -> dict[str, str]:
    """Return what the log entry of a statement says of the signature by a new recovery key."""
    return {"possession": to_text(possession)} if possession else {}


@dataclass(frozen=True)
class Chain:
    """A user's identity chain: at least one statement, in order."""

    user: str
    links: tuple[StoredStatement, ...]

    def may_log_in(self, public: bytes) -> bool:
        """Return whether this Ed25519 key may open a session: the newest statement names it."""
        head = self.head
        recovery = () if head.recovery is None else (head.recovery.sign_pub,)
        return public in (head.sign_pub, *recovery, *(one.sign_pub for one in head.devices))

    @property
    def head(self) -> Statement:
        """The newest statement."""
        return self.links[-1].statement

    @property
    def first_hash(self) -> bytes:
        """The hash of the first statement (32 bytes), which other users pin."""
        return record_hash(self.links[0].body)

    @property
    def statements(self) -> list[Statement]:
        """All parsed statements, in order."""
        return [link.statement for link in self.links]

    @cached_property
    def signing_keys(self) -> dict[int, bytes]:
        """Ed25519 public keys by generation, without the voided generations."""
        undone = voided(self.statements)
        stand = (one for one in self.statements if one.n not in undone)
        return {statement.generation: statement.sign_pub for statement in stand}

    def voided_keys(self) -> tuple[frozenset[int], frozenset[bytes]]:
        """Return (generations, ids of their wrapping keys) that a recovery voided."""
        stand, undone = split_voided(self.statements)
        gone = {one.generation for one in undone} - {one.generation for one in stand}
        # A thief may have listed one of the owner's keys. Wraps for that key stay valid.
        keys = {one.key_id for one in undone if one.generation in gone}
        keys -= {one.key_id for one in stand}
        return frozenset(gone), frozenset(keys)


class User(Value):
    """An enrolled user as stored. `expect` has the digests of the two files this was read from."""

    name: str
    account: Document[StoredAccount]
    chain: Chain
    expect: Mapping[str, bytes | None]


class UserRegistry:
    """Looks up users through a cache that is checked against the store. Thread-safe."""

    def __init__(self, documents: Documents, index: FileIndex) -> None:
        self._documents = documents
        self._index = index
        self._users: dict[str, User] = {}

    def account(self, name: str) -> Document[StoredAccount] | None:
        """Return the account of an invited or enrolled user."""
        return self._documents.account(name)

    def readable_account(self, name: str) -> StoredAccount | None:
        """Return the account of a user, None also if it is damaged: for what must not keep others
        from going on."""
        try:
            found = self.account(name)
        except DamagedError:
            return None
        return None if found is None else found.value

    def chain(self, name: str) -> tuple[Chain, bytes] | None:
        """Return (chain, digest of its file) of an enrolled user. Raises `DamagedError`."""
        path, known = statements_path(name), self._users.get(name)
        if known is not None:
            digest = known.expect[path]
            # The same file content gives the same chain.
            if digest is not None and self._documents.has(path, digest):
                return known.chain, digest
        found = self._documents.statements(name)
        return None if found is None else (Chain(name, found.value), found.digest)

    def find(self, name: str) -> User | None:
        """Return an enrolled user, disabled or not. Raises `DamagedError`."""
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
        key, commit = account.value.tag_key, chain[0].links[0].statement.tag_commit
        if key is None or not check_tag_key(key, commit):
            raise DamagedError("not the tag key that the user committed to", path=account.path)
        user = User(name, account, chain[0], expect)
        if name not in self._users and len(self._users) >= _USERS:
            self._users.clear()
        self._users[name] = user
        return user

    def require_active(self, name: str) -> User:
        """Return an enrolled user. Raises `Refused` if the account was disabled."""
        user = self.find(name)
        if user is None or user.account.value.disabled:
            raise Refused("denied", "the account is disabled")
        return user

    def quota(self, name: str) -> tuple[Ledger, int]:
        """Return (ledger of the user's ciphertext, loaded if there is a quota; quota in bytes)."""
        account = self.account(name)
        quota = 0 if account is None else account.value.quota
        files = self._index.for_user(name)
        return (files.loaded_ledger() if quota else files.ledger), quota


def write_block(user: User, now: float) -> Notice | None:
    """Return why `user` may only read and rotate now, or None."""
    notice = rotation_notice(user, now)
    return notice if notice is not None and notice.state != "due" else None


def rotation_notice(user: User, now: float, generation: int = 0) -> Notice | None:
    """Return the notice for a login with the key of `generation` (0: the recovery key).

    There is none before `due`, unless that generation is not the account's newest. A server that
    was restored from a backup knows older generations than a device.
    """
    head, forced = user.chain.head, user.account.value.forced
    if generation not in (0, head.generation):
        return Notice(head.due, "rotated", "the keys were rotated on another device")
    if forced is not None:
        return Notice(head.due, "forced", forced)
    if now >= head.expires:
        return Notice(head.due, "overdue", "the key has expired")
    if now >= head.due:
        return Notice(head.due, "due", "the key is due for rotation")
    return None


def validate_first_statement(
    body: bytes,
    signature: bytes,
    bundle: bytes,
    possession: bytes,
    *,
    user: str,
    server_id: bytes,
    policy: RotationPolicy,
    now: float,
) -> Statement:
    """Parse and check the first statement of `user`. Raises `Refused` with the broken rule."""
    statement = _refusing(lambda: check_first(body, (signature,), possession))
    require(statement.server == server_id, "the statement is for another server")
    require(statement.user == user, "the statement is for another user")
    _check_keys(statement, bundle)
    check_times(statement, policy, now)
    return statement


def validate_next_statement(
    chain: Chain,
    body: bytes,
    signatures: tuple[bytes, ...],
    bundle: bytes,
    possession: bytes,
    *,
    reasons: frozenset[str],
    policy: RotationPolicy,
    now: float,
) -> tuple[Statement, dict[str, bytes]]:
    """Return (statement, its signatures by hex key id) of a chain's next statement.

    Its reason must be among `reasons`. Raises `Refused`: `conflict` if the chain has grown, else
    with the broken rule.
    """
    parsed = _refusing(lambda: Statement.parse(body))
    before = chain.links[-1].body
    if (parsed.n, parsed.prev) != (chain.head.n + 1, record_hash(before)):
        raise Refused("conflict", f"the chain has {chain.head.n} statements")
    bodies = [link.body for link in chain.links]
    statement, signers = _refusing(lambda: check_next(bodies, body, signatures, possession))
    if statement.reason != RECOVERY and _since_recovery(chain) >= MAX_RUN:
        # A thief of the key can lengthen the chain, but not further than its owner can follow.
        raise Refused("denied", f"{MAX_RUN} statements: only the recovery key may add more")
    require(statement.reason in reasons, f"wrong request for reason {statement.reason}")
    if statement.reason in KEEPING:
        _check_created(statement, now)
    else:
        check_times(statement, policy, now)
    _check_keys(statement, bundle)
    named = zip(signers, signatures, strict=True)
    return statement, {signing_key_id(public): signature for public, signature in named}


def _since_recovery(chain: Chain) -> int:
    recovered = [link.statement.n for link in chain.links if link.statement.reason == RECOVERY]
    return chain.head.n - max(recovered, default=0)


def _refusing(check: Callable[[], _Checked]) -> _Checked:
    """Return `check()`, translating protocol errors to `Refused`."""
    try:
        return check()
    except SignatureError as exc:
        raise Refused("refused", "the statement is not signed by a key that must sign it") from exc
    except RemoteProtocolError as exc:
        raise Refused("bad-request", f"invalid statement: {exc}") from exc


def check_times(statement: Statement, policy: RotationPolicy, now: float) -> None:
    """Check that `created` is near `now` and `due` and `expires` are within policy.

    Raises `Refused`.
    """
    _check_created(statement, now)
    created, due, expires = statement.created, statement.due, statement.expires
    longest = min(policy.max_age * (100 + policy.jitter) // 100, MAX_LIFE)
    require(0 < due - created <= max(longest, DAY), "due is not within this server's policy")
    latest = created + min(due - created + max(policy.grace, DAY), MAX_LIFE)
    require(due <= expires <= latest, "expires is not within this server's policy")


def _check_created(statement: Statement, now: float) -> None:
    if abs(statement.created - now) > CLOCK_SKEW:
        raise Refused("clock", "the clocks of client and server differ by more than a day")


def _check_keys(statement: Statement, bundle: bytes) -> None:
    """Check the statement's public keys, and that it names `bundle`. Raises `Refused`."""
    digest = hashlib.sha256(bundle).digest()
    require(statement.bundle_sha256 == digest, "bundle_sha256 does not match")
    try:
        check_statement_keys(statement)
    except PublicKeyError as exc:
        raise Refused("bad-request", f"invalid statement: {exc}") from exc
