"""Examples of every record and message of version 2, from fixed seeds, for tests and vectors.

Seeds are SHA-256 of a name, other bytes SHAKE-256 of one. The chain, the log and every signature
are valid. A public key without a needed private key, or a ciphertext, is arbitrary bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog, checkpoint
from protocol.log.tags import account_tag, identity_tag, tag_commit
from protocol.records import records
from protocol.records.record_signatures import RecordSigner, RecordTree
from protocol.records.records import (
    Device,
    FileRecord,
    LeaveRecord,
    RecoveryKey,
    RotationFinish,
    ServerStatement,
    Statement,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.connection import WELCOME_ID
from protocol.wire.messages import (
    Done,
    Error,
    FileView,
    Message,
    Receipt,
    accounts,
    changes,
    downloads,
    encode,
    files,
    log,
    rotation,
    session,
    sharing,
    uploads,
)
from protocol.wire.messages.base import DamagedVersion, GenerationSignature, SignedRecord, Wrap

NOW = 1_767_225_600  # 2026-01-01T00:00:00Z
DAY = 86_400
FILE_ID = "0123456789abcdef0123456789abcdef"
MOVED_ID = "fedcba9876543210fedcba9876543210"


def fill(name: str, size: int) -> bytes:
    """Return `size` bytes as a placeholder for a key, hash or ciphertext."""
    return hashlib.shake_256(b"sfs test vector: " + name.encode()).digest(size)


def seed(name: str) -> bytes:
    return hashlib.sha256(b"sfs test seed: " + name.encode()).digest()


SIGNERS = {
    name: SigningKey.from_seed(seed(name))
    for name in ("server", "log", "alice 1", "alice 2", "laptop", "recovery")
}
TOKEN = fill("token", 32)
SPKI = hashlib.sha256(fill("tls public key", 91)).digest()
SERVER_ID = records.server_id(SIGNERS["server"].public)
XWING = fill("alice's x-wing public key", records.XWING_PUBLIC_SIZE)
X25519 = fill("alice's x25519 public key", 32)
BUNDLE = fill("bundle", 600)
LOG_KEY = checkpoint.Verifier(checkpoint.origin_of(SERVER_ID), SIGNERS["log"].public)

SERVER_STATEMENT = ServerStatement(
    server_pub=SIGNERS["server"].public,
    n=1,
    tls_spki_sha256=(SPKI,),
    log_vkey=LOG_KEY.vkey,
    created=NOW,
)
TAG_KEY = fill("tag key", 32)
FIRST = Statement(
    server=SERVER_ID,
    user="alice",
    kind="user",
    n=1,
    generation=1,
    oldest=1,
    sign_pub=SIGNERS["alice 1"].public,
    wrap_alg="xwing",
    wrap_pub=XWING,
    devices=(
        Device(
            device_id=fill("laptop", 16),
            sign_pub=SIGNERS["laptop"].public,
            xwing_pub=fill("laptop's x-wing key", records.XWING_PUBLIC_SIZE),
            kind="device",
        ),
    ),
    recovery=RecoveryKey(
        sign_pub=SIGNERS["recovery"].public,
        xwing_pub=fill("recovery x-wing key", records.XWING_PUBLIC_SIZE),
    ),
    custodians=(),
    writers=(),
    voids=(),
    bundle_sha256=hashlib.sha256(BUNDLE).digest(),
    created=NOW,
    due=NOW + 90 * DAY,
    expires=NOW + 120 * DAY,
    prev=b"",
    reason="enrol",
    tag_commit=tag_commit(TAG_KEY),
)
FIRST_HASH = records.record_hash(FIRST.encode())
SECOND = changed(
    FIRST,
    n=2,
    generation=2,
    sign_pub=SIGNERS["alice 2"].public,
    wrap_alg="x25519",
    wrap_pub=X25519,
    devices=(),
    recovery=None,
    voids=(fill("a statement undone", 32),),
    created=NOW + 90 * DAY,
    due=NOW + 180 * DAY,
    expires=NOW + 210 * DAY,
    prev=FIRST_HASH,
    reason="rotate",
)
PUT = FileRecord(
    server=SERVER_ID,
    owner="alice",
    actor="alice",
    generation=1,
    file_id=FILE_ID,
    rev=1,
    op="put",
    prev=b"",
    seen=(3, fill("root", 32)),
    created=NOW,
    readers=(("bob", fill("bob's first statement", 32), 0),),
    current=1,
    content=b"",
    content_id=fill("content id", 16),
    version=1,
    ciphertext_size=96,
    segments_root=fill("segments root", 32),
    dek_commit=fill("commitment", 32),
    metadata_sha256=hashlib.sha256(fill("metadata", 60)).digest(),
)


def _successor(of: FileRecord, **changes: Any) -> FileRecord:
    """Return the next record of the same file, without fields of other ops."""
    own = {key.rstrip("_") for key in records.OWN_KEYS[changes["op"]]}
    foreign = {
        name: None
        for name, default in FileRecord.__defaults__.items()
        if default is None and name.rstrip("_") not in own
    }
    fields = {"rev": of.rev + 1, "prev": records.record_hash(of.encode()), **foreign, **changes}
    current, version = (fields.get(key, getattr(of, key)) for key in ("current", "version"))
    fields["content"] = b"" if current in (0, version) else records.carried_content(of, of.encode())
    return changed(of, **fields)


DELETE = _successor(PUT, op="delete", current=0, to=None)
RESTORE = changed(
    _successor(PUT, op="restore", from_=(FILE_ID, 1), version=2, current=2),
    rev=3,
    prev=records.record_hash(DELETE.encode()),
)
MOVE = changed(
    _successor(RESTORE, op="move", from_=(FILE_ID, 2), file_id=MOVED_ID, version=1, current=1),
    rev=1,
    prev=b"",
)
MOVED_AWAY = _successor(RESTORE, op="delete", current=0, to=MOVED_ID)
ACCESS = _successor(MOVE, op="access", readers=())
REENCRYPT = changed(
    _successor(MOVE, op="reencrypt", content_id=fill("new content id", 16), generation=2),
    rev=3,
    prev=records.record_hash(ACCESS.encode()),
    readers=(),
)
OLDER = _successor(
    RESTORE, op="reencrypt", content_id=fill("another content id", 16), version=1, from_=None
)
PURGE = _successor(MOVED_AWAY, op="purge", purged=(1, 2))
FINISH = RotationFinish(
    server=SERVER_ID,
    user="alice",
    statement=fill("the finish statement", 32),
    generation=2,
    as_of_seq=7,
    files=1,
    root=fill("wraps root", 32),
    left_out=1,
    left_out_root=fill("left out", 32),
)
LEAVE = LeaveRecord(
    server=SERVER_ID,
    user="alice",
    first=FIRST_HASH,
    generation=2,
    owner="bob",
    file_id=FILE_ID,
    record=fill("bob's record", 32),
    created=NOW,
)

RECORDS: dict[str, tuple[records.SignedStruct, Label, str]] = {
    "server statement": (SERVER_STATEMENT, Label.SERVER_STATEMENT, "server"),
    "first statement": (FIRST, Label.STATEMENT, "alice 1"),
    "second statement": (SECOND, Label.STATEMENT, "alice 2"),
    "put": (PUT, Label.RECORDS, "alice 1"),
    "delete": (DELETE, Label.RECORDS, "alice 1"),
    "restore": (RESTORE, Label.RECORDS, "alice 1"),
    "move": (MOVE, Label.RECORDS, "alice 1"),
    "delete, moved away": (MOVED_AWAY, Label.RECORDS, "alice 1"),
    "access": (ACCESS, Label.RECORDS, "alice 1"),
    "reencrypt": (REENCRYPT, Label.RECORDS, "alice 2"),
    "reencrypt, older version": (OLDER, Label.RECORDS, "alice 1"),
    "purge": (PURGE, Label.RECORDS, "alice 1"),
    "leave": (LEAVE, Label.LEAVE, "alice 2"),
    "rotation finish": (FINISH, Label.ROTATION_FINISH, "alice 2"),
}


MOVED = ("move", "delete, moved away")
"""Records that are signed together."""


def signed(name: str) -> tuple[bytes, bytes]:
    """Return (exact bytes, signature) of a record above; that of a file record is packed."""
    record, label, signer = RECORDS[name]
    body = record.encode()
    if not isinstance(record, FileRecord):
        return body, SIGNERS[signer].sign(label, body)
    together = MOVED if name in MOVED else (name,)
    packed = RecordSigner(SIGNERS[signer], SERVER_ID, FIRST_HASH, record.generation).sign(
        [RECORDS[one][0].encode() for one in together]
    )
    return body, packed[together.index(name)]


def _log() -> list[bytes]:
    """Return the lines of a small log: start, enrolment, and alice's file records in order."""
    drafts = [
        auditlog.EntryDraft("start", "server"),
        auditlog.EntryDraft("enrol", "alice", "alice", **_logged("first statement")),
        auditlog.EntryDraft("login", "alice", "alice"),
    ]
    for name in ("put", "delete", "restore", "access", "purge"):
        record = RECORDS[name][0]
        assert isinstance(record, FileRecord)
        drafts.append(
            auditlog.EntryDraft(
                record.op, "alice", "alice", record.file_id, record.version, 2, **_logged(name)
            )
        )
    lines: list[bytes] = []
    prev = auditlog.GENESIS
    for seq, draft in enumerate(drafts):
        accounts = {} if draft.actor == "server" else {"alice": seq - 1}
        tags = [account_tag(TAG_KEY, SERVER_ID, "alice", count) for count in accounts.values()]
        if draft.op == "enrol":
            tags.append(identity_tag(SERVER_ID, FIRST_HASH, 1))
        line, prev = auditlog.encode(
            draft,
            seq=seq,
            time=f"2026-01-01T00:00:{seq:02}.000Z",
            salt=fill(f"salt {seq}", auditlog.SALT_SIZE),
            detail={},
            accounts=accounts,
            tags=tags,
            prev=prev,
        )
        lines.append(line)
    return lines


def _logged(name: str) -> dict[str, Any]:
    body, signature = signed(name)
    return {"rec": body, "sigs": {"1": signature}}


LOG = _log()
LEAF_DATA = [auditlog.leaf_data(line) for line in LOG]
LEAVES = [merkle.leaf_hash(data) for data in LEAF_DATA]


def node(level: int, index: int) -> bytes:
    return merkle.root(LEAVES[index << level : (index + 1) << level])


ROOT = merkle.root(LEAVES)
CHECKPOINT = checkpoint.sign(SIGNERS["log"], LOG_KEY.name, len(LOG), ROOT)
INCLUSION = merkle.inclusion_proof(3, len(LOG), node)
CONSISTENCY = merkle.consistency_proof(3, len(LOG), node)


def leaf_page(first: int) -> bytes:
    """Return the leaf data of the log's entries from `first` on, as the server sends it."""
    return b"".join(len(one).to_bytes(2) + one for one in LEAF_DATA[first:])


RECEIPT = Receipt(line=LOG[3], checkpoint=CHECKPOINT, first=3, leaves=leaf_page(3))


WELCOME = session.Welcome(
    (session.PROTOCOL_VERSION,),
    *signed("server statement"),
    challenge=fill("challenge", 32),
    limits=session.Limits(window=32 * 1024 * 1024, max_age=90 * DAY, grace=30 * DAY, jitter=10),
)
WELCOME_SHA256 = hashlib.sha256(b"".join(encode(WELCOME_ID, WELCOME))).digest()
LOGIN_BODY = records.login_body(
    server=SERVER_ID,
    spki=SPKI,
    welcome=WELCOME_SHA256,
    version=2,
    user="alice",
    device_id=fill("laptop", 16),
    generation=1,
)
LOGIN_SIGNATURE = SIGNERS["laptop"].sign(Label.LOGIN, LOGIN_BODY)
POSSESSION = SIGNERS["recovery"].sign(Label.RECOVERY_POSSESSION, FIRST.encode())
PROOF_BODY = records.enrol_proof_body(welcome=WELCOME_SHA256, statement=FIRST_HASH)
PROOF = hmac.digest(hashlib.sha256(TOKEN).digest(), PROOF_BODY, "sha256")
METADATA = fill("metadata", 60)
WRAP = Wrap("alice", records.key_id("x25519", X25519), "x25519", fill("wrapped DEK", 156))
UPLOAD = fill("upload", 16)
HANDLE = fill("handle", 16)
ENDORSED_HASHES = [records.record_hash(signed(name)[0]) for name in ("put", "delete", "restore")]
ENDORSEMENT = RecordTree.of_records(ENDORSED_HASHES)
ENDORSING = RecordSigner(SIGNERS["alice 2"], SERVER_ID, FIRST_HASH, 2)
ENDORSED = SignedRecord(
    signed("put")[0],
    (
        GenerationSignature(1, signed("put")[1]),
        GenerationSignature(2, ENDORSEMENT.pack(ENDORSING.endorse(ENDORSED_HASHES))[0]),
    ),
)
DELETED = SignedRecord(signed("delete")[0], (GenerationSignature(1, signed("delete")[1]),))
VIEW = FileView(seq=7, at=8, content=ENDORSED, head=DELETED, metadata=METADATA, wraps=(WRAP,))


def commit(
    name: str,
    tombstone: str = "",
    *,
    wrapped: bool,
    upload: bytes | None = None,
    content: bytes = b"",
) -> changes.Commit:
    """Return a changeset of one change, the record above that has this name."""
    names = [name, tombstone] if tombstone else [name]
    bodies = [RECORDS[one][0].encode() for one in names]
    tree = RecordTree.of_records(map(records.record_hash, bodies))
    batch = changes.WrapBatch(
        WRAP.wrapped[:16], WRAP.user, WRAP.key_id, WRAP.algorithm, WRAP.wrapped[16:-60]
    )
    return changes.Commit(
        changes=(
            changes.Change(
                bodies[0],
                0,
                b"" if name == "access" else METADATA,
                len(content),
                upload,
                *((bodies[1], 1) if tombstone else ()),
            ),
        ),
        leaves=tree.leaves,
        signature=signed(name)[1][:64],
        batches=(batch,) if wrapped else (),
        wraps=(changes.BatchedWrap(0, 1, 0, WRAP.wrapped[-60:]),) if wrapped else (),
        atomic=False,
        contents=content,
    )


COMMITTED = changes.Committed(
    (
        changes.Outcome(4, RECEIPT.line, None),
        changes.Outcome(0, b"", Error("quota", "the quota of this user is used up")),
    ),
    RECEIPT.checkpoint,
    RECEIPT.first,
    RECEIPT.leaves,
)
SCRUB = accounts.ScrubStatus(
    began=NOW,
    files=120,
    bytes=3 * 1024**3,
    last_began=NOW - 7 * DAY,
    last_finished=NOW - 6 * DAY,
    last_files=4000,
    last_bytes=80 * 1024**3,
    damage=1,
    damaged=(
        accounts.DamagedFile(
            f"alice/files/{FILE_ID[:2]}/{FILE_ID}.1.ct", 5, "the content is not what was written"
        ),
    ),
)
ACCOUNT = accounts.Account(
    user="alice",
    fingerprint=FIRST_HASH,
    generation=1,
    wrap_alg="xwing",
    created=NOW,
    due=NOW + 90 * DAY,
    expires=NOW + 120 * DAY,
    disabled=False,
    invited_until=0,
    used=96,
    quota=10 * 1024**3,
    files=1,
    last_login=NOW,
    rotation="forced",
    reason="a laptop was stolen",
)

MESSAGES: list[tuple[int, Message]] = [
    (9, Error("conflict", "the file has a newer version", VIEW)),
    (9, Done(RECEIPT)),
    (WELCOME_ID, WELCOME),
    (1, session.Login(2, "alice", fill("laptop", 16), 1, 3, LOGIN_SIGNATURE)),
    (
        1,
        session.Session(CHECKPOINT, RECEIPT, session.Notice(NOW, "due", ""), NOW),
    ),
    (
        1,
        session.Enroll(
            2,
            "alice",
            FIRST.encode(),
            BUNDLE,
            signed("first statement")[1],
            PROOF,
            TAG_KEY,
            POSSESSION,
        ),
    ),
    (2, session.Pong(NOW)),
    (2, session.Ping()),
    (3, commit("put", wrapped=True, content=fill("ciphertext", 96))),
    (3, COMMITTED),
    (4, uploads.PutOpen("alice", FILE_ID, 96, 0)),
    (4, uploads.UploadState(UPLOAD, 0)),
    (5, uploads.Data(UPLOAD, 0, fill("ciphertext", 96))),
    (6, uploads.PutResume(UPLOAD)),
    (7, commit("put", wrapped=True, upload=UPLOAD)),
    (8, uploads.Aborted()),
    (8, uploads.PutAbort(UPLOAD)),
    (10, downloads.Open("alice", (downloads.OpenTarget(FILE_ID, 0),))),
    (
        10,
        downloads.Opened(
            (
                downloads.OpenResult(
                    downloads.OpenedVersion(HANDLE, VIEW, fill("leaf", 32), fill("ciphertext", 96)),
                    None,
                ),
                downloads.OpenResult(None, Error("not-found", "no such file")),
            ),
            RECEIPT,
        ),
    ),
    (11, downloads.GetLeaves(HANDLE, 1)),
    (11, downloads.LeavesPage(fill("leaf 1", 32) + fill("leaf 2", 32))),
    (12, downloads.Read(HANDLE, 1024 * 1024, 1024 * 1024)),
    (12, downloads.Bytes(fill("ciphertext", 96))),
    (13, files.Stat("alice", FILE_ID, 0)),
    (13, files.Stated(changed(VIEW, head=None))),
    (14, files.List("", 256, 0)),
    (14, files.Listing((VIEW,), FILE_ID, (DamagedVersion("alice", FILE_ID, 2),))),
    (15, files.History("alice", FILE_ID, 1)),
    (15, files.HistoryPage((ENDORSED, DELETED), 0)),
    (
        16,
        commit("move", "delete, moved away", wrapped=True),
    ),
    (17, sharing.Lookup("alice", 1)),
    (
        17,
        sharing.Identity(
            (
                sharing.SignedStatement(
                    signed("second statement")[0],
                    (
                        signed("second statement")[1],
                        SIGNERS["alice 1"].sign(Label.STATEMENT, SECOND.encode()),
                    ),
                    3,
                    RECEIPT.line,
                ),
            ),
            0,
        ),
    ),
    (18, accounts.Usage()),
    (18, accounts.UsageAnswer(96, 10 * 1024**3, 1)),
    (19, accounts.UserList("")),
    (19, accounts.AccountsPage((ACCOUNT,), "")),
    (20, accounts.UserShow("alice")),
    (21, accounts.UserAdd("bob", hashlib.sha256(TOKEN).digest(), NOW + 7 * DAY, 0)),
    (22, accounts.UserAccess("bob", True, "left the team")),
    (22, accounts.UserRevoke("bob", "a laptop was stolen")),
    (22, accounts.UserRemove("bob", NOW + 30 * DAY, "left the team")),
    (22, accounts.UserErase("bob", "")),
    (22, accounts.UserErased(FILE_ID, False)),
    (23, accounts.Status(check=True)),
    (
        23,
        accounts.StatusAnswer(
            version="0.1.0",
            address="127.0.0.1:7373",
            started=NOW,
            log_size=8,
            connections=2,
            sessions=1,
            users=2,
            disk_free=10**12,
            failed="",
            scrub=SCRUB,
            damaged=("bob",),
            files_free=10**6,
            metrics="127.0.0.1:9373",
            reasons=("retention: the disk failed",),
        ),
    ),
    (23, accounts.StartScrub()),
    (24, log.LogHead()),
    (24, log.LogCheckpoint(CHECKPOINT)),
    (25, log.LogLeaves(6, 256)),
    (25, log.LogLeavesPage(leaf_page(6))),
    (25, log.LogLines((3, 7))),
    (25, log.LogLinesPage(tuple(log.LogItem(seq, LOG[seq]) for seq in (3, 7)))),
    (26, log.LogProof(log.INCLUSION, 7, 8)),
    (26, log.LogProven(INCLUSION)),
    (
        27,
        rotation.NewStatement(
            SECOND.encode(),
            (
                signed("second statement")[1],
                SIGNERS["alice 1"].sign(Label.STATEMENT, SECOND.encode()),
            ),
            BUNDLE,
        ),
    ),
    (28, rotation.GetBundle(0)),
    (28, rotation.SealedBundle(BUNDLE)),
    (29, accounts.UserQuota("bob", 10 * 1024**3)),
    (30, rotation.RotateBegin(SECOND.encode(), (bytes(64), bytes(64)), BUNDLE)),
    (31, rotation.GetWraps("", 256, False)),
    (
        31,
        rotation.WrapsPage(
            (rotation.WrapItem("alice", FILE_ID, 1, VIEW.content, None, WRAP),),
            f"alice.{FILE_ID}.2",
            (DamagedVersion("alice", FILE_ID, 2),),
        ),
    ),
    (
        32,
        rotation.Rewrap(
            (
                rotation.RewrapItem(
                    "alice",
                    FILE_ID,
                    1,
                    WRAP,
                    (ENDORSED_HASHES[0],),
                ),
            ),
            ENDORSING.endorse(ENDORSED_HASHES[:1]),
        ),
    ),
    (32, rotation.Rewrapped(RECEIPT, (0,))),
    (
        33,
        rotation.RotateFinish(
            SECOND.encode(),
            (bytes(64),),
            BUNDLE,
            FINISH.encode(),
            fill("finish signature", 64),
        ),
    ),
    (37, files.GiveUp(FILE_ID, 2)),
    (34, accounts.ForceRotation("bob", "a laptop was stolen")),
    (35, commit("access", wrapped=True)),
    (36, sharing.Inbox("", 256, 7)),
    (
        36,
        sharing.InboxPage(
            (sharing.SharedFile("alice", FILE_ID, VIEW), sharing.SharedFile("bob", FILE_ID, None)),
            f"bob.{FILE_ID}",
            (DamagedVersion("bob", FILE_ID, 2),),
        ),
    ),
    (38, sharing.LeaveFile(*signed("leave"))),
    (39, sharing.BlockOwner("bob", True)),
    (40, sharing.ListBlocked()),
    (40, sharing.BlockedOwners(("bob",))),
]
