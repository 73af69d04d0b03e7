"""Simulator of a server, honest or not: real keys, a real log, a store in memory, and hooks that
change replies.

`SimulatedLog` signs statements and checkpoints and proves entries. `Simulator` serves one user over
TLS, with a thread for each connection, through the server role of `Connection`. It accepts exactly
what a daemon would; `tamper` then sees every reply before it is sent.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import EntryDraft
from protocol.log.tags import account_tag, identity_tag
from protocol.records.record_signatures import RecordTree
from protocol.records.records import (
    FileRecord,
    ServerStatement,
    Statement,
    key_id,
    login_body,
    record_hash,
    server_id,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.connection import Connection, Role
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.base import MAX_SMALL, PIECE, GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.changes import Change, Commit, Committed, Outcome
from protocol.wire.messages.downloads import (
    HEAD,
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
    Read,
)
from protocol.wire.messages.files import (
    History,
    HistoryPage,
    List,
    Listing,
    Stat,
    Stated,
)
from protocol.wire.messages.log import (
    INCLUSION,
    LogCheckpoint,
    LogHead,
    LogItem,
    LogLeaves,
    LogLeavesPage,
    LogLines,
    LogLinesPage,
    LogProof,
    LogProven,
)
from protocol.wire.messages.session import Enroll, Limits, Login, Session, Welcome
from protocol.wire.messages.sharing import Identity, Lookup, SignedStatement
from protocol.wire.messages.uploads import (
    ALL_UPLOADS,
    Aborted,
    Data,
    PutAbort,
    PutOpen,
    PutResume,
    UploadState,
)
from tests.changes import Kind, is_kind, wrapped

SPKI = hashlib.sha256(b"the TLS key of tests without TLS").digest()
TIME = "2026-11-25T00:00:00.000Z"
OPENED_AT_ONCE = 5
"""Most versions that are opened by one reply."""


class SimulatedLog:
    """A server's keys and its log. `fork` gives a second log with the same keys."""

    def __init__(self) -> None:
        self.server = SigningKey.generate()
        self.key = SigningKey.generate()
        self.server_id = server_id(self.server.public)
        self.lines: list[bytes] = []
        self.leaves: list[bytes] = []
        self.heads: dict[str, tuple[int, bytes]] = {}
        self.tag_keys: dict[str, bytes] = {}
        self._prev = auditlog.GENESIS

    def fork(self, size: int) -> SimulatedLog:
        """Return a log with the first `size` entries and the same keys, which continues
        differently."""
        other = SimulatedLog()
        other.server, other.key, other.server_id = self.server, self.key, self.server_id
        other.tag_keys = self.tag_keys
        for line in self.lines[:size]:
            other._take(line, auditlog.line_hash(line))
            for user, count in auditlog.parse(line).accounts.items():
                other.heads[user] = (count + 1, auditlog.line_hash(line))
        return other

    def statement(self, n: int = 1, spki: bytes = SPKI, **changes: Any) -> tuple[bytes, bytes]:
        """Return (bytes, signature) of server statement `n`."""
        verifier = checkpoint.Verifier(checkpoint.origin_of(self.server_id), self.key.public)
        made = ServerStatement(self.server.public, n, (spki,), verifier.vkey, 1_800_000_000)
        body = changed(made, **changes).encode()
        return body, self.server.sign(Label.SERVER_STATEMENT, body)

    def welcome(self, n: int = 1, spki: bytes = SPKI, window: int = 8 * PIECE) -> Welcome:
        body, signature = self.statement(n, spki)
        limits = Limits(window, 90 * 86400, 30 * 86400, 10)
        return Welcome((2,), body, signature, os.urandom(32), limits)

    def append(self, draft: EntryDraft) -> int:
        """Append an entry and return its seq."""
        seq = len(self.lines)
        heads = {user: self.heads.get(user, (0, auditlog.GENESIS)) for user in draft.accounts}
        accounts = {user: count for user, (count, _) in heads.items()}
        line, digest = auditlog.encode(
            draft,
            seq=seq,
            time=TIME,
            salt=os.urandom(16),
            detail=draft.detail,
            accounts=accounts,
            tags=self.tags(draft, accounts),
            prev=self._prev,
        )
        self._take(line, digest)
        self.heads |= {user: (count + 1, digest) for user, (count, _) in heads.items()}
        return seq

    def tags(self, draft: EntryDraft, accounts: dict[str, int]) -> list[bytes]:
        """Return the tags of an entry: of its enrolled accounts, and of its identity statement."""
        known = [(user, self.tag_keys[user]) for user in accounts if user in self.tag_keys]
        tags = [account_tag(key, self.server_id, user, accounts[user]) for user, key in known]
        if draft.identity is not None:
            tags.append(identity_tag(self.server_id, *draft.identity))
        return tags

    def fill(self, count: int) -> None:
        """Append entries of other users."""
        for _ in range(count):
            self.append(EntryDraft(op="login", actor="someone"))

    def _take(self, line: bytes, digest: bytes) -> None:
        self.lines.append(line)
        self.leaves.append(merkle.leaf_hash(auditlog.leaf_data(line)))
        self._prev = digest

    @property
    def size(self) -> int:
        return len(self.lines)

    def node(self, level: int, index: int) -> bytes:
        return merkle.root(self.leaves[index << level : (index + 1) << level])

    def root(self, size: int) -> bytes:
        return merkle.root(self.leaves[:size])

    def checkpoint(self, size: int | None = None) -> bytes:
        size = self.size if size is None else size
        return checkpoint.sign(
            self.key, checkpoint.origin_of(self.server_id), size, self.root(size)
        )

    def consistency(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        new = self.size if new is None else new
        return merkle.consistency_proof(old, new, self.node) if old <= new else ()

    def leaf_page(self, first: int, end: int) -> bytes:
        """Return the leaf data of entries [first, end), as the server sends it."""
        found = [auditlog.leaf_data(line) for line in self.lines[first:end]]
        return b"".join(len(one).to_bytes(2) + one for one in found)

    def receipt(self, seq: int, since: int, size: int | None = None) -> Receipt:
        """Return entry `seq` in the checkpoint of `size`, with the leaves from `since` on."""
        size = self.size if size is None else size
        return Receipt(self.lines[seq], self.checkpoint(size), since, self.leaf_page(since, size))

    def session(self, receipt: Receipt | None = None) -> Session:
        """Return the reply to a login, at the present size."""
        return Session(self.checkpoint(), receipt, None, 1_800_000_000)


def make_certificate(path: Path) -> bytes:
    """Write a TLS key and certificate to `path`; return the hash of the key's
    SubjectPublicKeyInfo."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfsd")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + builder.sign(key, None).public_bytes(Encoding.PEM)
    )
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


@dataclass
class StoredVersion:
    """A stored version."""

    signed: SignedRecord
    metadata: bytes
    wraps: tuple[Wrap, ...]
    blob: bytes
    seq: int


@dataclass
class StoredFile:
    """A file: all its records and its versions."""

    records: list[SignedRecord] = field(default_factory=list)
    versions: dict[int, StoredVersion] = field(default_factory=dict)


class DropConnection(Exception):
    """Raised by a hook: the connection breaks and the reply is never sent."""


Tamper = Callable[[Request, Reply], Reply]


class Simulator:
    """One user's server. After a request was processed, `tamper(request, reply)` returns the reply
    to send, or raises `DropConnection`. `intercept(request)` may return one before anything is
    done.

    `requests` are all requests over all connections; `uploads` are the staged uploads.
    """

    def __init__(self, folder: Path) -> None:
        self.log = SimulatedLog()
        self.pem = folder / "tls.pem"
        self.spki = make_certificate(self.pem)
        self.token = b"t" * 32
        self.statement = b""
        self.files: dict[str, StoredFile] = {}
        self.uploads: dict[bytes, bytearray] = {}
        self.handles: dict[bytes, StoredVersion] = {}
        self.requests: list[Request] = []
        self.tamper: Tamper = lambda _request, reply: reply
        self.intercept: Callable[[Request], Reply | None] = lambda _request: None
        self.welcome: Callable[[Welcome], Welcome] = lambda welcome: welcome
        self.log_moves: Callable[[dict[str, Any]], dict[str, Any]] = lambda detail: detail
        self.all_leaves = True
        """Whether receipts show all leaves since the last one, or none."""
        self.failure: BaseException | None = None
        self._receipts: dict[bytes, int] = {}
        self._here = threading.local()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def invitation(self, user: str) -> str:
        token = "dHR0dHR0dHR0dHR0dHR0dHR0dHR0dHR0dHR0dHR0dHQ"
        return f"sfs://{self.address}/{user}?pin={self.log.server_id.hex()}&token={token}"

    def asked(self, kind: Kind) -> list[Any]:
        """Return all requests of one kind."""
        return [request for request in self.requests if is_kind(request, kind)]

    def changes(self, kind: Kind = Commit) -> list[Change]:
        """Return all changes in the changesets of one kind."""
        return [change for request in self.asked(kind) for change in request.changes]

    def __enter__(self) -> Simulator:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._threads):
            thread.join(10)
            assert not thread.is_alive()
        if self.failure is not None:
            raise self.failure

    # --- connections

    @property
    def connected(self) -> bool:
        """Whether there is a connection that has not ended on this side."""
        return any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        context.num_tickets = 0
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(context, connected), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, context: ssl.SSLContext, connected: socket.socket) -> None:
        # A client that leaves or is dropped ends only its own connection.
        with (
            contextlib.suppress(OSError, DropConnection),
            connected,
            context.wrap_socket(connected, server_side=True) as tls,
        ):
            try:
                self._converse(tls)
            except (OSError, DropConnection):
                raise
            except BaseException as exc:
                self.failure = exc
                raise DropConnection from exc

    def _converse(self, tls: ssl.SSLSocket) -> None:
        connection = Connection(Role.SERVER)
        welcome = self.welcome(self.log.welcome(spki=self.spki))
        tls.sendall(b"".join(connection.respond(0, welcome)))
        self._here.welcome = connection.welcome_sha256
        while count := tls.recv_into(connection.get_buffer(-1)):
            for incoming in connection.buffer_updated(count):
                request = incoming.message
                assert isinstance(request, Request)
                with self._lock:
                    self.requests.append(request)
                    reply = self.intercept(request) or self.tamper(request, self.answer(request))
                if isinstance(reply, Session):
                    connection.established()
                tls.sendall(b"".join(connection.respond(incoming.request_id, reply)))
                if isinstance(reply, Error) and reply.code == "shutting-down":
                    # Later requests are not processed, even if another connection opens.
                    while tls.recv(1 << 16):
                        pass
                    return

    # --- requests

    def answer(self, request: Request) -> Reply:
        """Return the reply of an honest server."""
        handler = getattr(self, f"_on_{type(request).__name__.lower()}")
        reply: Reply = handler(request)
        return reply

    def _on_enroll(self, request: Enroll) -> Reply:
        if self.statement not in (b"", request.statement):
            return Error("token", "used")
        statement = Statement.parse(request.statement)
        if not self.statement:
            self.log.tag_keys[statement.user] = request.tag_key
            self._append("enrol", statement.user, request.statement, request.signature)
        self.statement = request.statement
        receipt = self.log.receipt(self._receipts[request.statement], 0)
        self._here.opened = self.log.size
        return self.log.session(receipt)

    def _on_login(self, request: Login) -> Reply:
        body = login_body(
            server=self.log.server_id,
            spki=self.spki,
            welcome=self._here.welcome,
            version=request.version,
            user=request.user,
            device_id=request.device_id,
            generation=request.generation,
        )
        device = Statement.parse(self.statement).devices[0]
        if request.device_id != device.device_id:
            return Error("refused", "no such device")
        seq = self.log.append(
            EntryDraft(
                op="login",
                actor=request.user,
                rec=body,
                sigs={key_id("ed25519", device.sign_pub).hex(): request.signature},
                accounts=(request.user,),
            )
        )
        self._here.opened = self.log.size
        return self.log.session(self.log.receipt(seq, min(request.known_size, self.log.size)))

    def _append(
        self,
        op: str,
        user: str,
        body: bytes,
        signature: bytes,
        record: FileRecord | None = None,
        detail: dict[str, Any] | None = None,
    ) -> int:
        public = Statement.parse(self.statement or body).sign_pub
        seq = self.log.append(
            EntryDraft(
                op=op,
                actor=user,
                owner=user,
                file=None if record is None else record.file_id,
                version=None if record is None else record.version,
                rec=body,
                sigs={key_id("ed25519", public).hex(): signature},
                detail=detail or {},
                accounts=(user,),
                identity=(record_hash(body), 1) if op == "enrol" else None,
            )
        )
        self._receipts[body] = seq
        return seq

    def _on_loghead(self, _request: LogHead) -> Reply:
        return LogCheckpoint(self.log.checkpoint(None))

    def _on_logleaves(self, request: LogLeaves) -> Reply:
        return LogLeavesPage(self.log.leaf_page(request.first, request.first + request.limit))

    def _on_loglines(self, request: LogLines) -> Reply:
        return LogLinesPage(tuple(LogItem(seq, self.log.lines[seq]) for seq in request.seqs[:7]))

    def _on_lookup(self, request: Lookup) -> Reply:
        seq = self._receipts[self.statement]
        public = Statement.parse(self.statement).sign_pub
        line = self.log.lines[seq]
        shown = SignedStatement(
            self.statement,
            (auditlog.parse(line).sigs[key_id("ed25519", public).hex()],),
            seq,
            line,
        )
        return Identity((shown,), 0)

    def _on_logproof(self, request: LogProof) -> Reply:
        if not request.start <= request.size <= self.log.size:
            return Error("bad-request", "no such part of the log")
        if request.kind == INCLUSION:
            if request.start == request.size:
                return Error("bad-request", "no such entry")
            return LogProven(merkle.inclusion_proof(request.start, request.size, self.log.node))
        if not 0 < request.start <= request.size <= self.log.size:
            return Error("bad-request", "no such part of the log")
        return LogProven(self.log.consistency(request.start, request.size))

    def store(
        self,
        change: Change,
        signature: bytes,
        wraps: tuple[Wrap, ...] = (),
        blob: bytes = b"",
        **detail: Any,
    ) -> int | Error:
        """Add a record to the head of its file, as any device of the user may send one. Return the
        number of its entry."""
        body, record = change.record, FileRecord.parse(change.record)
        chain = self.files.get(record.file_id, StoredFile())
        head = chain.records[-1].record if chain.records else b""
        if body == head:
            return self._receipts[body]
        if record.prev != (record_hash(head) if head else b""):
            view = self.view(record.file_id) if head else None
            return Error("conflict", "another device was faster", view)
        signed = SignedRecord(body, (GenerationSignature(record.generation, signature),))
        op = {"put": "upload"}.get(record.op, record.op)
        seq = self._append(op, record.owner, body, signature, record, detail)
        chain.records.append(signed)
        if record.version is not None:
            leaves = self.leaves(blob)
            assert merkle.root(leaves) == record.segments_root
            assert len(blob) == record.ciphertext_size
            chain.versions[record.version] = StoredVersion(
                signed, change.metadata, wraps, blob, seq
            )
        self.files[record.file_id] = chain
        return seq

    def _receipt(self, seq: int) -> Receipt:
        """Return a receipt with the leaves since this connection's last one."""
        receipt = self.log.receipt(seq, self._here.opened)
        self._here.opened = self.log.size
        return receipt if self.all_leaves else changed(receipt, leaves=b"")

    @staticmethod
    def leaves(blob: bytes) -> list[bytes]:
        return [merkle.leaf_hash(blob[at : at + PIECE]) for at in range(0, len(blob), PIECE)]

    def view(self, file_id: str, version: int = 0) -> FileView:
        chain = self.files[file_id]
        stored = chain.versions[version or max(chain.versions)]
        head = chain.records[-1]
        seq = max(stored.seq, self._receipts[head.record])
        shown = None if head.record == stored.signed.record else head
        return FileView(seq, self.log.size, stored.signed, shown, stored.metadata, stored.wraps)

    def _on_commit(self, request: Commit) -> Reply:
        packed, at, outcomes = RecordTree(request.leaves).pack(request.signature), 0, []
        for index, change in enumerate(request.changes):
            content = bytes(request.contents[at : at + change.inline_size])
            at += change.inline_size
            wraps = tuple(wrapped(request, one) for one in request.wraps if one.change == index)
            made = self._change(change, packed, wraps, content)
            if isinstance(made, Error):
                outcomes.append(Outcome(0, b"", made))
            else:
                outcomes.append(Outcome(made, self.log.lines[made], None))
        shown = self._receipt(self.log.size - 1)
        return Committed(tuple(outcomes), shown.checkpoint, shown.first, shown.leaves)

    def _change(
        self, change: Change, packed: list[bytes], wraps: tuple[Wrap, ...], content: bytes
    ) -> int | Error:
        record, signature = FileRecord.parse(change.record), packed[change.leaf]
        if change.upload is not None:
            return self._commit_upload(change, change.upload, signature, wraps)
        if record.from_ is None:
            return self.store(change, signature, wraps, content)
        blob = self.files[record.from_[0]].versions[record.from_[1]].blob
        if not change.tombstone:
            return self.store(change, signature, wraps, blob)
        return self._move(change, packed, wraps, blob)

    def _on_putopen(self, request: PutOpen) -> Reply:
        upload = os.urandom(16)
        self.uploads[upload] = bytearray()
        return UploadState(upload, 0)

    def _on_data(self, request: Data) -> Reply:
        staged = self.uploads.get(request.upload)
        if staged is None:
            return Error("upload-lost", "no such upload")
        if request.offset > len(staged):  # an earlier piece was rejected
            return Error("bad-request", "a piece is missing")
        if request.offset == len(staged):
            staged += request.data
        return UploadState(request.upload, len(staged))

    def _on_putresume(self, request: PutResume) -> Reply:
        staged = self.uploads.get(request.upload)
        if staged is None:
            return Error("upload-lost", "no such upload")
        return UploadState(request.upload, len(staged))

    def _commit_upload(
        self, change: Change, upload: bytes, signature: bytes, wraps: tuple[Wrap, ...]
    ) -> int | Error:
        record = FileRecord.parse(change.record)
        chain = self.files.get(record.file_id, StoredFile())
        if any(change.record == known.record for known in chain.records):
            return self.store(change, signature)
        staged = self.uploads.get(upload)
        if staged is None:
            return Error("upload-lost", "no such upload")
        if record.ciphertext_size != len(staged):
            return Error("bad-request", "the upload is not whole")
        made = self.store(change, signature, wraps, bytes(staged))
        if not isinstance(made, Error):
            del self.uploads[upload]
        return made

    def _on_putabort(self, request: PutAbort) -> Reply:
        if request.upload == ALL_UPLOADS:
            self.uploads.clear()
        self.uploads.pop(request.upload, None)
        return Aborted()

    def _move(
        self, change: Change, packed: list[bytes], wraps: tuple[Wrap, ...], blob: bytes
    ) -> int | Error:
        left, signature = FileRecord.parse(change.tombstone), packed[change.tombstone_leaf]
        arriving = FileRecord.parse(change.record)
        public = Statement.parse(self.statement).sign_pub
        detail = {
            "from": list(arriving.from_ or ()),
            "tombstone": base64.b64encode(change.tombstone).decode(),
            "tombstone_sigs": {
                key_id("ed25519", public).hex(): base64.b64encode(signature).decode()
            },
        }
        chain = self.files[left.file_id]
        head = chain.records[-1].record
        if head != change.tombstone and left.prev != record_hash(head):
            return Error("conflict", "another device was faster", self.view(left.file_id))
        target = self.files.get(arriving.file_id)
        there = None if target is None else target.records[-1].record
        if there not in (None, change.record) and FileRecord.parse(there or b"").current:
            return Error("conflict", "taken", self.view(arriving.file_id))
        made = self.store(change, packed[change.leaf], wraps, blob, **self.log_moves(detail))
        if not isinstance(made, Error) and head != change.tombstone:
            signatures = (GenerationSignature(left.generation, signature),)
            chain.records.append(SignedRecord(change.tombstone, signatures))
            self._receipts[change.tombstone] = made
        return made

    def _find(self, file_id: str, version: int) -> StoredVersion | None:
        chain = self.files.get(file_id)
        if chain is None:
            return None
        current = FileRecord.parse(chain.records[-1].record).current
        return chain.versions.get(version or current)

    def _on_open(self, request: Open) -> Reply:
        alone = len(request.targets) == 1
        results = [self._open(one, alone=alone) for one in request.targets[:OPENED_AT_ONCE]]
        return Opened(tuple(results))

    def _open(self, target: OpenTarget, *, alone: bool) -> OpenResult:
        stored = self._find(target.file_id, target.version)
        if stored is None:
            return OpenResult(None, Error("not-found", "no such file"))
        handle = os.urandom(16)
        self.handles[handle] = stored
        version = FileRecord.parse(stored.signed.record).version or 0
        view = self.view(target.file_id, version)
        leaves = b"".join(self.leaves(stored.blob)[:3])
        whole = alone or len(stored.blob) <= MAX_SMALL
        data = bytes(stored.blob[: MAX_SMALL if whole else HEAD])
        return OpenResult(OpenedVersion(handle, view, leaves, data), None)

    def _on_getleaves(self, request: GetLeaves) -> Reply:
        hashes = self.leaves(self.handles[request.handle].blob)
        return LeavesPage(b"".join(hashes[request.first : request.first + 3]))

    def _on_read(self, request: Read) -> Reply:
        blob = self.handles[request.handle].blob
        return Bytes(blob[request.offset : request.offset + request.length])

    def _on_stat(self, request: Stat) -> Reply:
        if request.file_id not in self.files:
            return Error("not-found", "no such file")
        return Stated(self.view(request.file_id, request.version))

    def _on_list(self, request: List) -> Reply:
        names = self.files.keys() & request.wanted if request.wanted else self.files.keys()
        found = [self.view(name) for name in sorted(names) if name > request.after]
        changes = [view for view in found if view.seq >= request.since_seq]
        page = changes[:2]
        more = len(changes) > len(page)
        last = FileRecord.parse(page[-1].content.record).file_id if more else ""
        return Listing(tuple(page), last)

    def _on_history(self, request: History) -> Reply:
        chain = self.files.get(request.file_id)
        if chain is None:
            return Error("not-found", "no such file")
        return HistoryPage(tuple(chain.records[request.first - 1 :]), 0)

    def _on_usage(self, request: Usage) -> Reply:
        return UsageAnswer(0, 0, len(self.files))


@contextlib.contextmanager
def running_simulator(folder: Path) -> Iterator[Simulator]:
    with Simulator(folder) as simulator:
        yield simulator
