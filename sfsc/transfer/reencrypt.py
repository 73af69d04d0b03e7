"""Contents encrypted again under new keys, which helps if a thief has an old key and old wraps.

A version is fetched, decrypted, and encrypted under a fresh DEK, segment by segment, without
plaintext on the disk. A record of op `reencrypt` says so; number, name and time stay. The server
replaces the old bytes once the new ones are durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from protocol.codec import merkle
from protocol.codec.encoding import Buffer
from protocol.records.records import REENCRYPT, ReaderEntry
from protocol.wire.messages.uploads import PutOpen, UploadState
from sfsc.crypto.envelope import ContentKey, WrapBatches, content_record
from sfsc.crypto.padding import Padded
from sfsc.crypto.segments import plaintext_size, read_fully
from sfsc.errors import Unreachable
from sfsc.session.changeset import Draft
from sfsc.session.commit import FileChange, UploadLost, change_file
from sfsc.session.session import Session
from sfsc.transfer.chunks import MAX_UPLOAD_STARTS, EncryptionWorker, UploadStream
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.transfer.source import SMALL
from sfsc.trust.file_records import VerifiedFile


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
        size = plaintext_size(source.size)
        plaintext = Padded(_Stream(source.segments()), size)
        sealed = key.seal_metadata(source.metadata)
        if size <= SMALL:
            content = memoryview(bytearray(size))
            read_fully(plaintext, content)
            ciphertext = key.encryptor().seal_segment(content, last=True)
            root = merkle.root([merkle.leaf_hash(ciphertext)])
            return self._commit(source, key, sealed, root, ciphertext=ciphertext)
        message = PutOpen(session.account.user, file_id, source.size, version)
        upload = session.call(message, UploadState).upload
        with EncryptionWorker() as worker, UploadStream(session, upload, worker) as stream:
            stream.send(key.encryptor(), plaintext)
            stream.finish()
            root = merkle.root(stream.leaves())
            return self._commit(source, key, sealed, root, upload=upload)

    def _commit(
        self,
        source: RemoteVersion,
        key: ContentKey,
        sealed: bytes,
        root: bytes,
        ciphertext: Buffer = b"",
        upload: bytes | None = None,
    ) -> None:
        """Add the record of the new ciphertext to its file. Raises as `change_file`."""
        session, version = self._session, source.file.version

        def build(onto: VerifiedFile, batches: WrapBatches) -> Draft:
            record = content_record(
                session.author,
                key,
                file_id=onto.file_id,
                head=onto.head_body,
                version=version,
                current=onto.head.current,
                ciphertext_size=source.size,
                segments_root=root,
                metadata=sealed,
                readers=onto.head.readers,
                seen=session.seen,
                created=int(time.time()),
                op=REENCRYPT,
            )
            wraps = session.wrap(key, version, self._readers_of(onto, version), batches)
            return Draft(record, record.encode(), sealed, wraps, ciphertext, upload)

        change_file(session, FileChange(session.fetch_newest(source.file.file_id), build))


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
