"""Contents under new keys: what helps where an old key and old wraps are in other hands.

A version is fetched, opened, and encrypted anew under a fresh DEK, segment by segment, without
plaintext on the disk. Its record says so; number, name and time stay. What the server had before is
replaced once the new is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from protocol.codec import merkle
from protocol.codec.values import Value
from protocol.records.records import REENCRYPT, FileRecord
from protocol.wire.messages import Done, Error, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutCommit, PutOpen, PutSmall, UploadState
from sfsc.crypto.envelope import ContentKey, content_record
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import ConflictError, Unreachable
from sfsc.session.commit import MAX_CONFLICTS, landed
from sfsc.session.server_errors import answered
from sfsc.session.session import Session, known_file
from sfsc.transfer.blob import Blob, Wanted
from sfsc.transfer.chunks import MAX_BEGINNINGS, Sending, UploadLost, Workshop
from sfsc.transfer.source import SMALL
from sfsc.transfer.upload import Build
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import KnownFile

_Done = TypeVar("_Done")


class Anew(Value):
    """The content of a version under a fresh key, but for its record; `build` makes the request
    that stores it."""

    blob: Blob
    key: ContentKey
    sealed: bytes
    root: bytes
    build: Build


class Stored(Value):
    """The exact bytes of the record that a content stands under now, and the wraps with it."""

    body: bytes
    wraps: tuple[Wrap, ...]


def encrypt_anew(
    session: Session, source: tuple[str, int], file_id: str, commit: Callable[[Anew], _Done]
) -> _Done:
    """Have a version, (file_id, number), go up again under a fresh key, to be stored under
    `file_id`; what `commit` makes of it. Raises `Tampered` and the like for what is not as signed.
    """
    for _ in range(MAX_BEGINNINGS):
        try:
            return _encrypt_anew(session, source, file_id, commit)
        except UploadLost:
            continue  # from the first byte again, under another fresh key
    raise Unreachable("the server has lost the upload", "run the command again")


def _encrypt_anew(
    session: Session, source: tuple[str, int], file_id: str, commit: Callable[[Anew], _Done]
) -> _Done:
    blob = Blob.ask(session, Wanted.of_id(session, *source))
    key = ContentKey.generate()
    plaintext = _Stream(blob.segments())
    sealed = key.seal_metadata(blob.metadata)
    if blob.metadata.size <= SMALL:
        ciphertext = key.encryptor().seal_segment(plaintext.all(), last=True)
        root = merkle.root([merkle.leaf_hash(ciphertext)])

        def small(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, sealed, wraps, ciphertext)

        return commit(Anew(blob, key, sealed, root, small))
    size = ciphertext_size(blob.metadata.size)
    replaces = source[1] if source[0] == file_id else 0
    begun = session.call(PutOpen(session.account.user, file_id, size, replaces), UploadState)
    with Workshop() as workshop, Sending(session, begun.upload, workshop) as stream:
        stream.send(key.encryptor(), plaintext)
        stream.finish()
        root = merkle.root(stream.leaves())

        def large(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutCommit(begun.upload, body, signature, sealed, wraps)

        return commit(Anew(blob, key, sealed, root, large))


def store(
    session: Session, anew: Anew, record: FileRecord, head: FileRecord | None, version: int
) -> Stored | Error:
    """Store a content under `record`, which stands on `head` and leaves `version` the newest;
    proven and remembered, or the server's refusal. Raises `UploadLost`."""
    wraps = session.wrap(anew.key, head, record.readers)
    body = record.encode()
    signature, connection = session.sign(body), session.connections
    reply = session.ask(anew.build(body, signature, wraps))
    if not isinstance(reply, Error):
        session.proven(answered(reply, Done).receipt, record, body, signature)
        session.join()
    elif not landed(session, connection, reply, record, body):
        if reply.code == "upload-lost":
            raise UploadLost
        return reply
    session.state.remember_file(KnownFile.from_record(record, body, version), None)
    return Stored(body, wraps)


class Reencryption:
    """Over one session, whose keys are the new ones already."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def version(self, file_id: str, version: int) -> None:
        """Encrypt one version anew. Raises as `encrypt_anew`."""
        encrypt_anew(self._session, (file_id, version), file_id, self._commit)

    def _commit(self, anew: Anew) -> None:
        session, file_id = self._session, anew.blob.file.file_id
        onto = session.newest(file_id)
        for _ in range(MAX_CONFLICTS):
            reply = store(session, anew, self._record(anew, onto), onto.head, onto.version)
            if isinstance(reply, Stored):
                return
            if reply.code != "conflict" or reply.head is None:
                session.renew(reply)
                continue
            onto = session.learn(reply.head, file_id, known_file(onto))
        raise ConflictError("others keep changing the file", "run the command again")

    def _record(self, anew: Anew, onto: VerifiedFile) -> FileRecord:
        return content_record(
            self._session.author,
            anew.key,
            file_id=onto.file_id,
            head=onto.head_body,
            version=anew.blob.file.version,
            current=onto.head.current,
            ciphertext_size=anew.blob.size,
            segments_root=anew.root,
            metadata=anew.sealed,
            readers=onto.head.readers,
            seen=self._session.seen,
            created=int(time.time()),
            op=REENCRYPT,
        )


class _Stream:
    """Plaintext that comes in segments, to be read into buffers."""

    def __init__(self, segments: Iterator[memoryview]) -> None:
        self._segments = segments
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._rest:
            following = next(self._segments, None)
            if following is None:
                return 0
            self._rest = following
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def all(self) -> bytes:
        """What is left, for something small."""
        return b"".join(bytes(segment) for segment in self._segments)
