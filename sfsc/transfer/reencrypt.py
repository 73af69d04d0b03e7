"""Contents encrypted again under new keys, which helps if a thief has an old key and old wraps.

A version is fetched, decrypted, and encrypted under a fresh DEK, segment by segment, without
plaintext on the disk. A record of op `reencrypt` says so; number, name and time stay. The server
replaces the old bytes once the new ones are durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from protocol.codec import merkle
from protocol.codec.values import Value
from protocol.records.records import REENCRYPT, FileRecord, ReaderEntry
from protocol.wire.messages import Done, Error, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutCommit, PutOpen, PutSmall, UploadState
from sfsc.crypto.envelope import ContentKey, content_record
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import ConflictError, Unreachable
from sfsc.session.commit import MAX_CONFLICTS, was_accepted
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.transfer.chunks import MAX_UPLOAD_STARTS, EncryptionWorker, UploadLost, UploadStream
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.source import SMALL
from sfsc.transfer.upload import BuildRequest
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import KnownFile


class _Content(Value):
    """The content of a version under a fresh key, stored but for its record; `build` makes the
    request that stores it."""

    source: RemoteVersion
    key: ContentKey
    sealed: bytes
    root: bytes
    build: BuildRequest


class Reencryption:
    """Encrypts versions again, over one session whose keys are the new ones already."""

    def __init__(
        self,
        session: Session,
        readers_of: Callable[[VerifiedFile, int], tuple[ReaderEntry, ...]],
    ) -> None:
        """`readers_of` tells which of a file's readers have the key of a version: they get the
        fresh key, and no other reader does."""
        self._session = session
        self._readers_of = readers_of

    def version(self, file_id: str, version: int) -> None:
        """Encrypt one version again under a fresh key.

        Raises `ConflictError` if others keep changing the file, and `Tampered` and other
        `IntegrityError`s for a content that is not as signed.
        """
        for _ in range(MAX_UPLOAD_STARTS):
            try:
                return self._reencrypt(file_id, version)
            except UploadLost:
                continue  # from the first byte again, under another fresh key
        raise Unreachable("the server has lost the upload", "run the command again")

    def _reencrypt(self, file_id: str, version: int) -> None:
        session, key = self._session, ContentKey.generate()
        source = RemoteVersion.request(session, VersionRequest.build(session, file_id, version))
        plaintext = _Stream(source.segments())
        sealed = key.seal_metadata(source.metadata)
        if source.metadata.size <= SMALL:
            ciphertext = key.encryptor().seal_segment(plaintext.all(), last=True)
            root = merkle.root([merkle.leaf_hash(ciphertext)])

            def small(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutSmall(body, signature, sealed, wraps, ciphertext)

            return self._commit(_Content(source, key, sealed, root, small))
        size = ciphertext_size(source.metadata.size)
        begun = session.call(PutOpen(session.account.user, file_id, size, version), UploadState)
        with (
            EncryptionWorker() as worker,
            UploadStream(session, begun.upload, worker) as stream,
        ):
            stream.send(key.encryptor(), plaintext)
            stream.finish()
            root = merkle.root(stream.leaves())

            def large(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(begun.upload, body, signature, sealed, wraps)

            return self._commit(_Content(source, key, sealed, root, large))

    def _commit(self, content: _Content) -> None:
        """Put the record of `content` onto the head of its file. Raises `UploadLost`."""
        session, file_id = self._session, content.source.file.file_id
        onto = session.fetch_newest(file_id)
        for _ in range(MAX_CONFLICTS):
            refused = self._store(content, onto)
            if refused is None:
                return
            if refused.code != "conflict" or refused.head is None:
                session.renew_keys(refused)
                continue
            onto = session.verify_newest(refused.head, file_id, known_file(onto))
        raise ConflictError("others keep changing the file", "run the command again")

    def _store(self, content: _Content, onto: VerifiedFile) -> Error | None:
        """Store `content` under a record upon the head of `onto`, proven and remembered. Return the
        server's refusal, None if it was stored. Raises `UploadLost`."""
        session, record = self._session, self._record(content, onto)
        readers = self._readers_of(onto, content.source.file.version)
        wraps = session.wrap(content.key, onto.head, readers)
        body = record.encode()
        signature, connection = session.sign(body), session.connections
        reply = session.ask(content.build(body, signature, wraps))
        if not isinstance(reply, Error):
            session.verify_receipt(expect_reply(reply, Done).receipt, record, body, signature)
            session.link_receipts()
        elif not was_accepted(session, connection, reply, record, body):
            if reply.code == "upload-lost":
                raise UploadLost
            return reply
        session.state.remember_file(KnownFile.from_record(record, body, onto.version), None)
        return None

    def _record(self, content: _Content, onto: VerifiedFile) -> FileRecord:
        return content_record(
            self._session.author,
            content.key,
            file_id=onto.file_id,
            head=onto.head_body,
            version=content.source.file.version,
            current=onto.head.current,
            ciphertext_size=content.source.size,
            segments_root=content.root,
            metadata=content.sealed,
            readers=onto.head.readers,
            seen=self._session.seen,
            created=int(time.time()),
            op=REENCRYPT,
        )


class _Stream:
    """Plaintext that arrives in segments and is read into buffers."""

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
        """Return all that is left; for a small content."""
        return b"".join(bytes(segment) for segment in self._segments)
