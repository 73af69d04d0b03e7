"""Storing files: small ones in one message each, a window of them at a time; large ones in pieces.

A large upload keeps the pieces that the server has not acknowledged in a ring, and after a lost
connection sends these again. **No segment is ever encrypted twice under one key**: where the server
has lost what it had, the file begins again from its first byte with a fresh key.

Among many, nothing waits for a large file either: its commit is sent behind its pieces, which the
server takes up first, and is answered in its turn.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from protocol import merkle
from protocol.messages import Error, Reply, Request
from protocol.messages.base import Wrap
from protocol.messages.uploads import PutCommit, PutOpen, PutSmall, UploadState
from sfsc.attempts import Attempt, Attempts, Content, Put
from sfsc.closing import Closing
from sfsc.envelope import ContentKey
from sfsc.errors import (
    IntegrityError,
    NetworkError,
    SfscError,
    Unreachable,
    Unreadable,
)
from sfsc.identity import SETTINGS
from sfsc.openings import Openings
from sfsc.pieces import MAX_BEGINNINGS, Sending, UploadLost, Workshop
from sfsc.segments import ciphertext_size
from sfsc.session import Session
from sfsc.sources import SMALL, Input, Source, name_for, opened
from sfsc.window import Skip, Window

_HELD: Final = 8
"""Pieces in memory of large files whose commit is under way, from which on no other is begun."""


class _Large:
    """A large file whose pieces were sent, and its commit with them or next. Its source is kept
    open for another beginning."""

    def __init__(self, plaintext: Input, name: str, expected: int | None) -> None:
        self.plaintext = plaintext
        self.name = name
        self.expected = expected
        self.attempt: Attempt
        self.sending: Sending
        self._beginnings = 1

    def begin_again(self) -> None:
        """Go back to the first byte of what the server has lost. Raises `Unreachable` where it does
        so too often, or where the source cannot."""
        if self._beginnings == MAX_BEGINNINGS or not self.plaintext.begin_again():
            raise Unreachable("the server has lost the upload", "put the file again")
        self._beginnings += 1


class _Many(Closing):
    """Files under way, oldest first."""

    def __init__(self, session: Session, openings: Openings) -> None:
        self.window = Window[Attempt | _Large](session)
        self._openings = openings
        self.workshop = Workshop()
        self._large: list[_Large] = []

    @property
    def has_room(self) -> bool:
        """Whether a large file may be begun beside those under way."""
        return sum(large.sending.under_way for large in self._large) < _HELD

    def send(self, attempt: Attempt) -> None:
        self.window.send(attempt, attempt.request, attempt.content.file_id)

    def commit(self, large: _Large) -> None:
        """Send the commit of what was sent."""
        self._large.append(large)
        attempt = large.attempt
        ahead = large.sending.ahead_of_commit
        self.window.send(large, attempt.request, attempt.content.file_id, ahead)

    def done(self, large: _Large) -> None:
        self._large.remove(large)
        large.plaintext.close()

    def close(self) -> None:
        self.window.abandon()
        self._openings.abandon()
        for large in self._large:
            large.sending.abandon()
            large.plaintext.close()
        self._large.clear()
        self.workshop.close()


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
                    large = _Large(plaintext, name, expected)
                    done = self._commit(large, workshop)
            else:
                attempt = self._small(plaintext, small, name, self._session.file_id(name), expected)
                done = self._attempts.settle(attempt)
        self._session.join()
        return done

    def put_settings(self, data: bytes, *, expected: int) -> Put:
        """Store the account's settings, at most 64 KiB, onto the version `expected` (0: none).
        Raises `ConflictError` where another machine was faster."""
        with opened(io.BytesIO(data)) as plaintext:
            file_id = self._session.file_id(SETTINGS)
            attempt = self._small(plaintext, plaintext.small() or b"", SETTINGS, file_id, expected)
            done = self._attempts.settle(attempt)
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
        with _Many(self._session, self._openings) as many:
            for source, name in items:
                try:
                    yield from self._put_next(many, source, name_for(source, name))
                except SfscError as exc:
                    if skip is not None and isinstance(exc, Unreadable):
                        skip(str(source), exc)
                        continue
                    failure = exc
                    break
            while many.window:
                try:
                    yield from self._answered(many)
                except SfscError as exc:
                    failure = failure or exc
        # Nothing that a server proves after these is worth asking for.
        if not isinstance(failure, IntegrityError | NetworkError):
            self._session.join()
        if failure is not None:
            raise failure

    def _put_next(self, many: _Many, source: Source, name: str) -> Iterator[Put]:
        """Take up one more file; what must be answered before that is yielded."""
        # A second version of a file stands on the first, which must be there.
        file_id = self._session.file_id(name)
        while many.window.full or file_id in many.window:
            yield from self._answered(many)
        with opened(source) as plaintext:
            small = plaintext.small()
            if small is not None:
                many.send(self._small(plaintext, small, name, file_id, None))
                return
            while not many.has_room:
                yield from self._answered(many)
            large = _Large(plaintext, name, None)
            self._send(large, many.workshop)
            plaintext.kept = True
            many.commit(large)

    def _answered(self, many: _Many) -> Iterator[Put]:
        """Wait for the oldest, and with it follow up on all that are answered by then: what they
        have taught us is remembered together, before anybody is told."""
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

    def _taken(self, many: _Many) -> Put:
        item, reply = many.window.take()
        if isinstance(item, Attempt):
            return self._attempts.follow_up(item, reply)
        try:
            return self._committed(item, reply, many.workshop)
        finally:
            many.done(item)

    # --- what is put --------------------------------------------------------------------------

    def _small(
        self, plaintext: Input, whole: bytes, name: str, file_id: str, expected: int | None
    ) -> Attempt:
        key = ContentKey.fresh()
        ciphertext = key.encryptor().seal(whole, last=True)
        root = merkle.root([merkle.leaf_hash(ciphertext)])
        content = Content.of(plaintext, name, file_id, key, root, expected)

        def build(body: bytes, signature: bytes, wraps: tuple[Wrap, ...]) -> Request:
            return PutSmall(body, signature, content.sealed, wraps, ciphertext)

        return self._attempts.make(content, build)

    def _send(self, large: _Large, workshop: Workshop) -> None:
        """Send all of a large file, and make its commit. Raises as `_Large.begin_again`."""
        while True:
            try:
                return self._upload(large, workshop)
            except UploadLost:
                large.begin_again()

    def _upload(self, large: _Large, workshop: Workshop) -> None:
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

    def _commit(self, large: _Large, workshop: Workshop) -> Put:
        """Store a large file, and wait for it. Raises as `_Large.begin_again`."""
        while True:
            self._send(large, workshop)
            try:
                with large.sending:
                    large.sending.finish()
                    return self._attempts.settle(large.attempt)
            except UploadLost:
                large.begin_again()

    def _committed(self, large: _Large, reply: Reply, workshop: Workshop) -> Put:
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
