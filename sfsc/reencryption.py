"""Contents under new keys: what helps where an old key and old wraps are in other hands.

A version is fetched, opened, and encrypted anew under a fresh DEK, segment by segment, without
plaintext on the disk. Its record says so; number, name and time stay. What the server had before is
replaced once the new is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from protocol import merkle
from protocol.messages import Done, Error, Request
from protocol.messages.base import Wrap
from protocol.messages.uploads import PutCommit, PutOpen, PutSmall, UploadState
from protocol.records import REENCRYPT, FileRecord
from sfsc.blobs import Blob, Wanted
from sfsc.changes import MAX_CONFLICTS, landed
from sfsc.envelope import ContentKey, content_record
from sfsc.errors import ConflictError, Unreachable
from sfsc.identity import File
from sfsc.pieces import Fetching, Sending, UploadLost
from sfsc.refusals import answered
from sfsc.segments import ciphertext_size
from sfsc.session import Session, known_file
from sfsc.sources import SMALL
from sfsc.state import KnownFile

MAX_BEGINNINGS = 3
"""How often a large version is begun where the server loses what it had."""


class Reencryption:
    """Over one session, whose keys are the new ones already."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def version(self, file_id: str, version: int) -> None:
        """Encrypt one version anew. Raises `Tampered` and the like for what is not as signed."""
        for _ in range(MAX_BEGINNINGS):
            try:
                return self._version(file_id, version)
            except UploadLost:
                continue  # from the first byte again, under another fresh key
        raise Unreachable("the server has lost the upload", "run the command again")

    def _version(self, file_id: str, version: int) -> None:
        session = self._session
        wanted = Wanted.of_id(session, file_id, version)
        blob = Blob(session, wanted, session.ask(wanted.request))
        key = ContentKey.fresh()
        opener = blob.ready()
        fetching = Fetching(session, opener, blob.first, blob.handle, blob.reopen)
        source = _Stream(fetching.segments())
        sealed = key.seal_metadata(blob.metadata)
        if blob.metadata.size <= SMALL:
            ciphertext = key.encryptor().seal(source.all(), last=True)
            root = merkle.root([merkle.leaf_hash(ciphertext)])

            def small(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutSmall(body, signature, sealed, wraps, ciphertext)

            return self._commit(blob, key, sealed, root, small)
        size = ciphertext_size(blob.metadata.size)
        begun = session.call(PutOpen(session.account.user, file_id, size, version), UploadState)
        with Sending(session, begun.upload) as stream:
            for piece in key.encryptor().pieces(source, stream.allocate):
                stream.send(piece)
            root = merkle.root(stream.finish())

            def large(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(begun.upload, body, signature, sealed, wraps)

            return self._commit(blob, key, sealed, root, large)

    def _commit(
        self,
        blob: Blob,
        key: ContentKey,
        sealed: bytes,
        root: bytes,
        build: Callable[[bytes, bytes, tuple[Wrap, ...]], Request],
    ) -> None:
        session, file_id = self._session, blob.file.file_id
        onto = session.newest(file_id)
        for _ in range(MAX_CONFLICTS):
            record = self._record(blob, key, sealed, root, onto)
            wraps = session.wrap(key, onto.head, record.readers)
            body = record.encode()
            signature, connection = session.sign(body), session.connections
            reply = session.ask(build(body, signature, wraps))
            if not isinstance(reply, Error):
                receipt = answered(reply, Done).receipt
                session.proven(receipt, record, body, signature)
                session.join()
                session.state.remember_file(KnownFile.of(record, body, onto.version), None)
                return
            again = session.connections != connection
            if (
                again
                and reply.code in ("conflict", "upload-lost")
                and landed(session, record, body)
            ):
                return
            if reply.code == "upload-lost":
                raise UploadLost
            if reply.code != "conflict" or reply.head is None:
                session.renew(reply)
                continue
            onto = session.learn(reply.head, file_id, known_file(onto))
        raise ConflictError("others keep changing the file", "run the command again")

    def _record(
        self, blob: Blob, key: ContentKey, sealed: bytes, root: bytes, onto: File
    ) -> FileRecord:
        return content_record(
            self._session.author,
            key,
            file_id=onto.file_id,
            head=onto.head_body,
            version=blob.file.version,
            current=onto.head.current,
            ciphertext_size=blob.size,
            segments_root=root,
            metadata=sealed,
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
