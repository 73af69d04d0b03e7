"""A daemon without network, and users with keys: real store, log, committer and dispatcher."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from protocol.codec import merkle
from protocol.codec.values import Value, changed
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Verifier, origin_of, verify
from protocol.log.tags import account_tag, identity_tag, tag_commit
from protocol.records.record_signatures import RecordSigner, RecordTree
from protocol.records.records import (
    DELETE,
    PUT,
    REENCRYPT,
    Device,
    FileRecord,
    LeaveRecord,
    ServerStatement,
    Statement,
    carried_content,
    enrol_proof_body,
    login_body,
    record_hash,
    server_id,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done, Error, Receipt, Reply, Request
from protocol.wire.messages.accounts import Usage, UsageAnswer, UserAdd, UserQuota
from protocol.wire.messages.base import PIECE, Wrap
from protocol.wire.messages.changes import BatchedWrap, Change, Commit, Committed, WrapBatch
from protocol.wire.messages.downloads import Opened, OpenedVersion
from protocol.wire.messages.rotation import Rewrap, RewrapItem
from protocol.wire.messages.session import PROTOCOL_VERSION, Enroll, Login, Session
from protocol.wire.messages.sharing import LeaveFile
from protocol.wire.messages.uploads import Data, PutOpen, UploadState
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.net.dispatch import Dispatcher
from sfsd.rules.context import Principal, ServerContext, ServerIdentity
from sfsd.settings.config import Config
from sfsd.settings.kinds import DAY
from sfsd.storage.committer import Committer
from sfsd.storage.crash_recovery import recover
from sfsd.storage.set_aside import lost_changes
from sfsd.storage.store import DirectoryStore
from tests.opens import only_result
from tests.record_signing import packed_signature

WELCOME = hashlib.sha256(b"this welcome").digest()
ADDRESS = "192.0.2.7"
SERVER_KEY = SigningKey.from_seed(b"s" * 32)
LOG_KEY = SigningKey.from_seed(b"l" * 32)
OPERATOR_KEY = SigningKey.from_seed(b"o" * 32)
SERVER_ID = server_id(SERVER_KEY.public)
SPKI = hashlib.sha256(b"spki").digest()
XWING_PUBLIC = b"\x09" * 1216
"""An X-Wing public key as the daemon accepts it, whose private key nobody needs."""
VERIFIER = Verifier(origin_of(SERVER_ID), LOG_KEY.public)
_T = TypeVar("_T")
Result = Reply | OpenedVersion


@dataclass
class Clock:
    """Clock that tests set, in Unix seconds."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Daemon:
    """A running daemon; `ask` and `open` go through its `Dispatcher`, on one loop."""

    def __init__(self, context: ServerContext, clock: Clock, runner: asyncio.Runner) -> None:
        self.context = context
        self.clock = clock
        self.dispatcher = Dispatcher(context)
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(coroutine)

    def ask(self, who: Principal, message: Request) -> Result:
        """Return the reply; that of a request for one thing is as `alone` returns it."""
        return alone(self.run(self.dispatcher.handle(who, message)))

    def ask_all(self, who: Principal, messages: Sequence[Request]) -> list[Result]:
        """Send all requests at once, as a pipelining client does."""

        async def together() -> list[Reply]:
            return await asyncio.gather(*(self.dispatcher.handle(who, one) for one in messages))

        return [alone(reply) for reply in self.run(together())]

    def open(self, message: Login | Enroll, address: str = ADDRESS) -> tuple[Principal, Session]:
        return self.run(
            self.dispatcher.open_session(
                message,
                welcome_sha256=WELCOME,
                address=address,
                identity=self.context.identity,
            )
        )

    def operator(self) -> Principal:
        return self.open(login("operator", OPERATOR_KEY))[0]

    def person(self, name: str, *, quota: int = 0, **fields: Any) -> Person:
        """Return a user who is invited and enrolled, with an open session."""
        person = Person(name, self, **fields)
        done = self.ask(self.operator(), person.invitation(quota=quota))
        assert isinstance(done, Done), done
        person.who = self.open(person.enroll())[0]
        return person

    def set_quota(self, user: str, quota: int) -> None:
        done(self.ask(self.operator(), UserQuota(user, quota)))

    def stored_bytes(self, user: str) -> int:
        """Return the bytes of the user's versions on the disk; a ciphertext with several names
        counts once."""
        files = self.context.store.users / user / "files"
        found = [path.stat() for path in files.glob("*/*")]
        return sum({one.st_ino: one.st_size for one in found}.values())

    def entries(self, op: str | None = None) -> list[LogEntry]:
        lines = enumerate(self.context.journal.lines())
        entries = [auditlog.parse(line, seq=seq) for seq, line in lines]
        return [entry for entry in entries if op in (None, entry.op)]


@contextmanager
def daemon(
    root: Path,
    clock: Clock | None = None,
    *,
    config: Config | None = None,
    files: Files | None = None,
) -> Iterator[Daemon]:
    """Run a daemon on `root`, which may be used before."""
    clock = clock or Clock()
    statement = ServerStatement(SERVER_KEY.public, 1, (SPKI,), VERIFIER.vkey, 1_800_000_000)
    body = statement.encode()
    identity = ServerIdentity.parse(
        body, SERVER_KEY.sign(Label.SERVER_STATEMENT, body), SPKI, OPERATOR_KEY.public
    )
    journal = Journal(
        root / "logs",
        LOG_KEY,
        VERIFIER.name,
        files=files,
        clock=lambda: datetime.fromtimestamp(clock.now, UTC),
        reserve=4096,
    )
    store = DirectoryStore(root, files)
    lost = recover(store, journal).lost
    committer = Committer(store, journal)
    for change in lost_changes(store, journal, lost):
        committer.submit(change).result()
    context = ServerContext(root, config or Config(), identity, store, journal, committer, clock)
    with asyncio.Runner() as runner:
        served = Daemon(context, clock, runner)
        try:
            yield served
        finally:
            runner.run(served.dispatcher.close())
            committer.close()
            journal.close()


def login(user: str, key: SigningKey, generation: int = 1, **changes: Any) -> Login:
    """Return a login on the connection of `WELCOME`; without a `device_id` by an account's key."""
    device_id = changes.get("device_id")
    body = login_body(
        server=changes.get("server", SERVER_ID),
        spki=changes.get("spki", SPKI),
        welcome=changes.get("welcome", WELCOME),
        version=PROTOCOL_VERSION,
        user=user,
        device_id=device_id,
        generation=generation,
    )
    known_size, signature = changes.get("known_size", 0), key.sign(Label.LOGIN, body)
    return Login(PROTOCOL_VERSION, user, device_id, generation, known_size, signature)


def check_receipt(receipt: Receipt, body: bytes | None = None) -> LogEntry:
    """Verify a receipt: checkpoint, line hash, leaves if they show the entry. Return the entry."""
    point = verify(receipt.checkpoint, VERIFIER)
    entry = auditlog.parse(receipt.line)
    assert entry.seq < point.size
    if receipt.leaves and receipt.first <= entry.seq:
        assert len(entry.leaf_data).to_bytes(2) + entry.leaf_data in receipt.leaves
    if body is not None:
        assert entry.rec == body
    return entry


def leaf_page(lines: Sequence[bytes]) -> bytes:
    """Return the leaf data of these lines, as the server sends it."""
    found = [auditlog.leaf_data(line) for line in lines]
    return b"".join(len(one).to_bytes(2) + one for one in found)


def check_tags(served: Daemon, keys: Mapping[str, bytes]) -> None:
    """Check that every entry has exactly the tags of its accounts and of its statement. `keys` has
    the tag key of every user of the root."""
    counts, chains = dict.fromkeys(keys, 0), dict[str, bytes]()
    for entry in served.entries():
        expected: list[bytes] = []
        for user, count in entry.accounts.items():
            assert count == counts[user]
            counts[user] += 1
            expected.append(account_tag(keys[user], SERVER_ID, user, count))
        if entry.op in ("enrol", "statement", "rotate-begin", "rotate-finish"):
            assert entry.owner is not None
            assert entry.rec is not None
            first = chains.setdefault(entry.owner, record_hash(entry.rec))
            expected.append(identity_tag(SERVER_ID, first, Statement.parse(entry.rec).n))
        assert entry.tags == tuple(sorted(expected))
        named = {entry.actor, entry.owner} & keys.keys() if entry.op != "user-add" else set()
        assert entry.accounts.keys() >= named


def segments_root(ciphertext: bytes) -> bytes:
    pieces = range(0, max(1, len(ciphertext)), PIECE)
    return merkle.root(merkle.leaf_hash(ciphertext[at : at + PIECE]) for at in pieces)


class Version(Value):
    """All parts of a put; tests may replace each of them."""

    record: FileRecord
    body: bytes
    signature: bytes
    metadata: bytes
    wraps: tuple[Wrap, ...]
    ciphertext: bytes

    def small(self) -> Commit:
        return changeset(self)

    def commit(self, upload: bytes) -> Commit:
        return changeset(changed(self, ciphertext=b""), upload=upload)

    def change(self) -> Commit:
        return changeset(changed(self, ciphertext=b""))

    def share(self, wraps: Mapping[int, Sequence[Wrap]] | None = None) -> Commit:
        """Return a change of the readers, with wraps by version."""
        listed = [(number, wrap) for number, found in (wraps or {}).items() for wrap in found]
        return changeset(changed(self, wraps=()), wraps=listed)


def changeset(
    made: Version, *, upload: bytes | None = None, wraps: Sequence[tuple[int, Wrap]] = ()
) -> Commit:
    """Return a request for one change, as it is signed. `wraps` are beside those of its version."""
    listed = [*((made.record.version or 1, wrap) for wrap in made.wraps), *wraps]
    change = Change(made.body, 0, made.metadata, len(made.ciphertext), upload)
    leaves = (merkle.leaf_hash(record_hash(made.body)),)
    return Commit(
        (change,), leaves, made.signature[:64], *batched({0: listed}), False, made.ciphertext
    )


def batched(
    wraps: Mapping[int, Sequence[tuple[int, Wrap]]],
) -> tuple[tuple[WrapBatch, ...], tuple[BatchedWrap, ...]]:
    """Return (version, wrap) by number of the change, each in a batch of its own."""
    batches, items = [], []
    for change, listed in wraps.items():
        for version, wrap in listed:
            name, enc, item = wrap.wrapped[:16], wrap.wrapped[16:-60], wrap.wrapped[-60:]
            batches.append(WrapBatch(name, wrap.user, wrap.key_id, wrap.algorithm, enc))
            items.append(BatchedWrap(change, version, len(batches) - 1, item))
    return tuple(batches), tuple(items)


@dataclass
class Person:
    """A user with keys. `heads` has the bytes of the last record of each file."""

    name: str
    served: Daemon
    key: SigningKey = field(default_factory=SigningKey.generate)
    device_key: SigningKey = field(default_factory=SigningKey.generate)
    device_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    wrap_pub: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    token: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    bundle: bytes = b"sealed bundle"
    tag_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    generation: int = 1
    who: Principal = field(init=False)
    next_key: SigningKey = field(default_factory=SigningKey.generate)
    next_wrap: bytes = b""
    first: Statement = field(init=False)
    origin: bytes = field(init=False)
    renewed: Statement = field(init=False)
    heads: dict[str, bytes] = field(default_factory=dict)
    made: dict[tuple[str, int], Version] = field(default_factory=dict)

    def used(self) -> int:
        """Return the bytes of the quota that are used; with no upload open, those on the disk."""
        answer = self.served.ask(self.who, Usage())
        assert isinstance(answer, UsageAnswer), answer
        return answer.used

    def stored(self) -> int:
        """Return the bytes of this user's versions on the disk."""
        return self.served.stored_bytes(self.name)

    def invitation(self, *, quota: int = 0, lasts: int = DAY) -> UserAdd:
        expires = int(self.served.clock.now) + lasts
        return UserAdd(self.name, hashlib.sha256(self.token).digest(), expires, quota)

    def statement(self, **changes: Any) -> Statement:
        now = int(self.served.clock.now)
        first = Statement(
            server=SERVER_ID,
            user=self.name,
            kind="user",
            n=1,
            generation=1,
            oldest=1,
            sign_pub=self.key.public,
            wrap_alg="x25519",
            wrap_pub=self.wrap_pub,
            devices=(self.device(),),
            recovery=None,
            custodians=(),
            writers=(),
            voids=(),
            bundle_sha256=hashlib.sha256(self.bundle).digest(),
            created=now,
            due=now + 90 * DAY,
            expires=now + 120 * DAY,
            prev=b"",
            reason="enrol",
            tag_commit=tag_commit(self.tag_key),
        )
        return changed(first, **changes)

    def device(self) -> Device:
        return Device(self.device_id, self.device_key.public, XWING_PUBLIC, "device")

    def enroll(self, statement: Statement | None = None, **changes: Any) -> Enroll:
        if statement is None:
            statement = self.first = getattr(self, "first", None) or self.statement()
            self.origin = record_hash(statement.encode())
        body = changes.get("body", statement.encode())
        covered = enrol_proof_body(
            welcome=changes.get("welcome", WELCOME), statement=record_hash(body)
        )
        token = changes.get("token", self.token)
        proof = hmac.new(hashlib.sha256(token).digest(), covered, hashlib.sha256).digest()
        signature = changes.get("signature", self.key.sign(Label.STATEMENT, body))
        return Enroll(
            PROTOCOL_VERSION,
            self.name,
            body,
            self.bundle,
            signature,
            proof,
            changes.get("tag_key", self.tag_key),
            changes.get("possession", b""),
        )

    @property
    def first_hash(self) -> bytes:
        return self.origin

    def sign(self, body: bytes, *, label: Label = Label.RECORDS) -> bytes:
        """Return the packed signature of a record that is sent alone."""
        return packed_signature(
            self.key,
            body,
            server=SERVER_ID,
            first=self.origin,
            generation=self.generation,
            label=label,
        )

    def together(self, made: Version, gone: Version) -> Commit:
        """Return the request for a move: `gone` is the tombstone. Their records are signed
        together; a version with another signature than its own keeps that."""
        bodies = [made.body, gone.body]
        tree = RecordTree.of_records(map(record_hash, dict.fromkeys(bodies)))
        signer = RecordSigner(self.key, SERVER_ID, self.origin, self.generation)
        wrong = [one.signature for one in (made, gone) if one.signature != self.sign(one.body)]
        signature = wrong[0][:64] if wrong else signer.sign_tree(tree)
        listed = [(made.record.version or 1, wrap) for wrap in (*made.wraps, *gone.wraps)]
        change = Change(
            made.body, 0, made.metadata + gone.metadata, 0, None, gone.body, len(tree.leaves) - 1
        )
        return Commit((change,), tree.leaves, signature, *batched({0: listed}), False, b"")

    def changeset(
        self,
        *versions: Version,
        uploads: Mapping[int, bytes] | None = None,
        padding: Sequence[bytes] = (),
        atomic: bool = False,
    ) -> Commit:
        """Return one request for all of these changes, signed together with `padding` leaves before
        them. `uploads` has the uploads of large files, by number of the change."""
        given = uploads or {}
        records = [merkle.leaf_hash(record_hash(one.body)) for one in versions]
        tree = RecordTree([*padding, *records])
        signer = RecordSigner(self.key, SERVER_ID, self.origin, self.generation)
        contents = [b"" if at in given else one.ciphertext for at, one in enumerate(versions)]
        changes = tuple(
            Change(one.body, len(padding) + at, one.metadata, len(contents[at]), given.get(at))
            for at, one in enumerate(versions)
        )
        listed = {
            at: [(one.record.version or 1, wrap) for wrap in one.wraps]
            for at, one in enumerate(versions)
        }
        signature = signer.sign_tree(tree)
        return Commit(changes, tree.leaves, signature, *batched(listed), atomic, b"".join(contents))

    def rewrap(self, *items: RewrapItem) -> Rewrap:
        """Return the request for these items, with the endorsement that they need."""
        hashes = list(dict.fromkeys(digest for item in items for digest in item.endorsed))
        signer = RecordSigner(self.key, SERVER_ID, self.origin, self.generation)
        return Rewrap(items, signer.endorse(hashes) if hashes else b"")

    def leave(self, owner: str, file_id: str, record: bytes, **changes: Any) -> LeaveFile:
        """Return the request to leave a file whose last record has the hash `record`."""
        made = LeaveRecord(
            server=SERVER_ID,
            user=self.name,
            first=self.origin,
            generation=self.generation,
            owner=owner,
            file_id=file_id,
            record=record,
            created=int(self.served.clock.now),
        )
        body = changed(made, **changes).encode()
        return LeaveFile(body, self.key.sign(Label.LEAVE, body))

    def login(self, **changes: Any) -> Login:
        """Return a login of this user's device."""
        fields: dict[str, Any] = {"device_id": self.device_id, "generation": self.generation}
        return login(self.name, self.device_key, **(fields | changes))

    def log_in(self, **changes: Any) -> Principal:
        return self.served.open(self.login(**changes))[0]

    def wrap(self, **changes: Any) -> Wrap:
        made = Wrap(self.name, self.first.key_id, "x25519", secrets.token_bytes(156))
        return changed(made, **changes)

    def record(self, file_id: str, op: str, **changes: Any) -> FileRecord:
        """Return a record that follows this user's last record of the file."""
        head = self.heads.get(file_id)
        before = None if head is None else FileRecord.parse(head)
        fields: dict[str, Any] = {
            "server": SERVER_ID,
            "owner": self.name,
            "actor": self.name,
            "generation": self.generation,
            "file_id": file_id,
            "rev": 1 if before is None else before.rev + 1,
            "op": op,
            "prev": b"" if head is None else record_hash(head),
            "seen": (0, bytes(32)),
            "created": int(self.served.clock.now),
            "readers": () if before is None else before.readers,
            "current": 0 if before is None else before.current,
        }
        made = fields | changes
        if made["current"] in (0, made.get("version")):
            made.setdefault("content", b"")
        elif before is not None and head is not None:
            made.setdefault("content", carried_content(before, head))
        return FileRecord(**made)

    def signed(
        self, record: FileRecord, metadata: bytes = b"", wraps: tuple[Wrap, ...] = ()
    ) -> Version:
        body = record.encode()
        return Version(record, body, self.sign(body), metadata, wraps, b"")

    def version(
        self, file_id: str, ciphertext: bytes, *, wraps: tuple[Wrap, ...] | None = None, **c: Any
    ) -> Version:
        """Return a valid new version of a file, with the record fields `c` replaced."""
        number = max((v for f, v in self.made if f == file_id), default=0) + 1
        metadata = c.pop("metadata", b"sealed metadata")
        fields: dict[str, Any] = {
            "current": number,
            "content_id": os.urandom(16),
            "version": number,
            "ciphertext_size": len(ciphertext),
            "segments_root": segments_root(ciphertext),
            "dek_commit": os.urandom(32),
            "metadata_sha256": hashlib.sha256(metadata).digest(),
        }
        record = self.record(file_id, c.pop("op", PUT), **(fields | c))
        made = self.signed(record, metadata, (self.wrap(),) if wraps is None else wraps)
        return changed(made, ciphertext=ciphertext)

    def reencrypted(self, file_id: str, number: int, ciphertext: bytes, **changes: Any) -> Version:
        """Return a re-encryption of version `number`, which follows the file's head."""
        current = FileRecord.parse(self.heads[file_id]).current
        fields: dict[str, Any] = {"version": number, "current": current, "op": REENCRYPT}
        return self.version(file_id, ciphertext, **(fields | changes))

    def took(self, version: Version) -> Version:
        """Note that the server accepted `version`: the next record follows it."""
        record = version.record
        self.heads[record.file_id] = version.body
        if record.version is not None:
            self.made[record.file_id, record.version] = version
        return version

    def ask(self, message: Request) -> Result:
        return self.served.ask(self.who, message)

    def put(self, file_id: str, ciphertext: bytes = b"c" * 56, **changes: Any) -> Version:
        """Store a small version and check the receipt."""
        version = self.version(file_id, ciphertext, **changes)
        check_receipt(done(self.ask(version.small())), version.body)
        return self.took(version)

    def upload(self, file_id: str, ciphertext: bytes, size: int | None = None) -> bytes:
        """Upload all pieces of `ciphertext` without a commit; return the upload's id."""
        announced = len(ciphertext) if size is None else size
        state = self.ask(PutOpen(self.name, file_id, announced))
        assert isinstance(state, UploadState), state
        pieces: list[Request] = [
            Data(state.upload, at, ciphertext[at : at + PIECE])
            for at in range(0, len(ciphertext), PIECE)
        ]
        for at in range(0, len(pieces), 8):
            for reply in self.served.ask_all(self.who, pieces[at : at + 8]):
                assert isinstance(reply, UploadState), reply
        return state.upload

    def delete(self, file_id: str) -> Version:
        version = self.signed(self.record(file_id, DELETE, current=0))
        check_receipt(done(self.ask(version.change())), version.body)
        return self.took(version)


def alone(reply: Reply) -> Result:
    """Return what became of the change of a changeset of one, or the result of one version that was
    opened; any other reply as it is."""
    if isinstance(reply, Opened) and len(reply.results) == 1:
        return only_result(reply)
    if not isinstance(reply, Committed) or len(reply.outcomes) != 1:
        return reply
    [outcome] = reply.outcomes
    if outcome.error is not None:
        return outcome.error
    return Done(Receipt(outcome.line, reply.checkpoint, reply.first, reply.leaves))


def done(reply: Result) -> Receipt:
    assert isinstance(reply, Done), reply
    return reply.receipt


def refused(reply: Result, code: str) -> Error:
    assert isinstance(reply, Error), reply
    assert reply.code == code, reply
    return reply


def file_id(number: int) -> str:
    """Return the id of file `number`; ids sort as their numbers do."""
    return f"{number:032x}"
