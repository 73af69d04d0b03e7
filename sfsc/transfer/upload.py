"""Storing files: small ones in one message each, a window of them at a time; large ones in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and after a lost
connection sends these again. **No segment is ever encrypted twice under one key**: where the server
has lost what it had, the file begins again from its first byte with a fresh key.

Among many, nothing waits for a large file either: its commit is sent behind its pieces, which the
server takes up first, and is answered in its turn. Small ones are gathered, and each step is taken
for all of them (`attempts.step_by_step`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from protocol.codec import merkle
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.uploads import PutCommit, PutOpen, UploadState
from sfsc.crypto.envelope import ContentKey
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import (
    IntegrityError,
    LocalError,
    NetworkError,
    SfscError,
    UnreadableSource,
)
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.transfer.attempts import Attempt, Attempts, Content, Made, Put, only, step_by_step
from sfsc.transfer.chunks import Sending, UploadLost, Workshop
from sfsc.transfer.openings import Openings
from sfsc.transfer.source import SMALL, Source, name_for, opened
from sfsc.transfer.together import Large, Many, Small
from sfsc.trust.file_records import SETTINGS

_LAST: Final = (IntegrityError, NetworkError)
"""After these nothing is sent any more, and nothing that the server proves is worth asking for."""


class Uploads:
    """Puts files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._attempts = Attempts(session)
        self._openings = Openings(session)

    def put(self, source: Source, name: str | None = None, *, expected: int | None = None) -> Put:
        """Store what `source` holds as the newest version of `name`.

        With `expected` only onto that version (0: only where there is no such file), else whatever
        is there. Raises `SfscError`.
        """
        name = name_for(source, name)
        with opened(source) as plaintext:
            self._session.progress.expect(plaintext.size or 0)
            small = plaintext.small()
            if small is None:
                with Workshop() as workshop:
                    large = Large(plaintext, name, expected)
                    done = self._commit(large, workshop)
            else:
                file_id = self._session.file_id(name)
                done = self._store(Small(plaintext, small, name, file_id, expected))
        self._session.join()
        return done

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, onto the version `expected` (0: none).
        Raises `ConflictError` where another machine was faster."""
        with opened(io.BytesIO(data)) as plaintext:
            file_id = self._session.file_id(SETTINGS)
            small = plaintext.small() or b""
            done = self._store(Small(plaintext, small, SETTINGS, file_id, expected))
        self._session.join()
        return done

    def foresee(self, sources: Sequence[tuple[str, str]]) -> None:
        """That these paths are to be put next, in order, under these names, all checked: what is
        known of them is asked together, and large ones are opened ahead."""
        if not self._session.has_one_id:
            return  # the server must be asked for it
        ids = [self._session.file_id(name) for _, name in sources]
        self._attempts.look_up(ids)
        sizes = [(file_id, _size(path)) for file_id, (path, _) in zip(ids, sources, strict=True)]
        self._openings.foresee((one, ciphertext_size(size)) for one, size in sizes if size > SMALL)

    def put_many(
        self,
        items: Iterable[tuple[Source, str | None]],
        *,
        skip: Skip | None = None,
    ) -> Iterator[Put]:
        """Store many, small ones without waiting for each; answers in order.

        A source that cannot be read is told to `skip`, and the work goes on. Whatever else fails
        ends it: the error is raised behind the answers of all that was sent before.
        Each answer is proven to stand in a log that continues the one of the login; that all of
        them stand in one and the same is proven last, and `Fork` raised where they do not.
        """
        failure: SfscError | None = None
        with Many(self._session, self._openings) as many:
            for source, name in items:
                try:
                    yield from self._put_next(many, source, name_for(source, name))
                except SfscError as exc:
                    if skip is not None and isinstance(exc, UnreadableSource):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            if isinstance(failure, _LAST):
                many.gathered.clear()
            while many.window or many.gathered:
                try:
                    yield from self._answered(many)
                except SfscError as exc:
                    failure = failure or exc
        if not isinstance(failure, _LAST):
            self._session.join()
        if failure is not None:
            raise failure

    def _put_next(self, many: Many, source: Source, name: str) -> Iterator[Put]:
        """Take up one more file; what must be answered before that is yielded."""
        # A second version of a file stands on the first, which must be there.
        file_id = self._session.file_id(name)
        while many.full or file_id in many:
            yield from self._answered(many)
        with opened(source) as plaintext:
            small = plaintext.small()
            if small is not None:
                many.gathered.append(Small(plaintext, small, name, file_id))
                if many.are_enough:
                    self._send_gathered(many)
                return
            self._send_gathered(many)
            while not many.has_room:
                yield from self._answered(many)
            large = Large(plaintext, name, None)
            self._send(large, many.workshop)
            plaintext.kept = True
            many.commit(large)

    def _send_gathered(self, many: Many) -> None:
        """Encrypt, sign and send what was gathered; where that fails for one, those before it."""
        gathered, many.gathered = many.gathered, []
        attempts, failure = self._made(gathered)
        for attempt in attempts:
            many.send(attempt)
        self._session.transport.push()
        if failure is not None:
            raise failure

    def _answered(self, many: Many) -> Iterator[Put]:
        """Wait for the oldest, and with it follow up on all that are answered by then: what they
        have taught us is remembered together, before anybody is told."""
        self._send_gathered(many)
        done: list[Put] = []
        failure: SfscError | None = None
        try:
            done.append(self._taken(many))
            while many.window.answered:
                done.append(self._taken(many))
        except SfscError as exc:
            failure = exc
        finally:
            self._attempts.remember()
        yield from done
        if failure is not None:
            raise failure

    def _taken(self, many: Many) -> Put:
        item, reply = many.window.take()
        if isinstance(item, Attempt):
            return self._attempts.follow_up(item, reply)
        try:
            return self._committed(item, reply, many.workshop)
        except UnreadableSource as exc:
            # Read again from its beginning: it is not the source whose turn it is, nor left out.
            raise LocalError(exc.cause, exc.hint) from exc
        finally:
            many.done(item)

    # --- what is put --------------------------------------------------------------------------

    def _made(self, small: list[Small]) -> Made:
        """An attempt at each, up to the first that fails, and its error."""
        failure = step_by_step(small, (Small.encrypt, Small.describe))
        attempts, earlier = self._attempts.make_all([one.draft for one in small])
        return attempts, earlier or failure

    def _store(self, small: Small) -> Put:
        """Store a small file, and wait for it."""
        return self._attempts.settle(only(self._made([small])))

    def _send(self, large: Large, workshop: Workshop) -> None:
        """Send all of a large file, and make its commit. Raises as `Large.begin_again`."""
        while True:
            try:
                return self._upload(large, workshop)
            except UploadLost:
                large.begin_again()

    def _upload(self, large: Large, workshop: Workshop) -> None:
        key, plaintext = ContentKey.fresh(), large.plaintext
        file_id = self._session.file_id(large.name)
        size = 0 if plaintext.size is None else ciphertext_size(plaintext.size)
        upload = self._openings.take(file_id, size) or self._opened(file_id, size)
        with Sending(self._session, upload, workshop) as sending:
            sending.send(key.encryptor(), plaintext)
            root = merkle.root(sending.leaves())
            content = Content.of(plaintext, large.name, file_id, key, root, large.expected)

            def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
                return PutCommit(upload, body, signature, content.sealed, wraps)

            large.attempt = self._attempts.make(content, build)
            large.sending = sending

    def _opened(self, file_id: str, size: int) -> bytes:
        asked = PutOpen(self._session.account.user, file_id, size)
        return self._session.call(asked, UploadState).upload

    def _commit(self, large: Large, workshop: Workshop) -> Put:
        """Store a large file, and wait for it. Raises as `Large.begin_again`."""
        while True:
            self._send(large, workshop)
            try:
                with large.sending:
                    large.sending.finish()
                    return self._attempts.settle(large.attempt)
            except UploadLost:
                large.begin_again()

    def _committed(self, large: Large, reply: Reply, workshop: Workshop) -> Put:
        """Follow up on the answer to a commit that was sent behind its pieces."""
        try:
            with large.sending as sending:
                if isinstance(reply, Error) and reply.code not in ("conflict", "upload-lost"):
                    sending.finish()  # where a piece was refused, that is the reason
                done = self._attempts.follow_up(large.attempt, reply)
                sending.committed()
                return done
        except UploadLost:
            large.begin_again()
        return self._commit(large, workshop)


def _size(path: str) -> int:
    """Bytes of the file at `path`; 0 where that cannot be told, as whoever opens it will hear."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
