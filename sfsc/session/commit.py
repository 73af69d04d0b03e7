"""Changes of files: drafted onto their heads, committed together, proven to be in the log, and
drafted again on newer heads after a conflict. Every change of a file's records goes this way."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from protocol.records.records import (
    DELETE,
    PURGE,
    FileRecord,
    ReaderEntry,
    carried_content,
    record_hash,
)
from protocol.wire.messages import Error, FileView, Receipt, Reply, Request
from protocol.wire.messages.changes import MAX_CHANGE_WRAPS, MAX_CHANGES, Committed
from protocol.wire.messages.files import Stat, Stated
from sfsc.crypto.envelope import WrapBatches, check_name
from sfsc.errors import (
    BadReceipt,
    ConflictError,
    Distrusted,
    Fork,
    IntegrityError,
    LocalError,
    NetworkError,
    NotFound,
    SfscError,
    StaleGeneration,
    UsageError,
    WrongServer,
)
from sfsc.session.changeset import Changeset, Draft, fitting
from sfsc.session.pipeline import Skip, Window
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import MadeRecord

MAX_CONFLICTS: Final = 16
"""Conflicts after which a change gives up."""
TOGETHER: Final = 128
"""Changes that are sent together. Several such requests are in flight, so that client and server
are never idle."""
AHEAD: Final = 3
"""Requests in flight while another is drafted."""
FATAL: Final = (IntegrityError, NetworkError)
"""After these errors nothing more is sent, and no further proof is requested from the server."""
STOPPING: Final = (BadReceipt, Distrusted, Fork, NetworkError, StaleGeneration, WrongServer)
"""Errors that are about more than one file: no other change would be made either."""
SET_LIMITS: Final = (
    f"one set changes at most {MAX_CHANGES} names (a move two) with {MAX_CHANGE_WRAPS:,} keys for"
    " readers, and holds 1 MiB of files of at most 256 KiB"
)
"""Hint for changes that do not fit into one changeset."""
_MAY_HAVE_LANDED: Final = frozenset({"conflict", "upload-lost", "stale-generation"})
"""Error codes for a record that was accepted before: another record followed it, its upload is
gone, or keys were rotated."""
_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)


class UploadLost(Exception):
    """The server no longer has what was uploaded: the file must start again, under a new key."""


class PlannedChange(ABC, Generic[_Result_co]):
    """A change that somebody wants of one file, or of the two of a move."""

    name: str = ""
    """The file's name, if errors are to name it."""

    @abstractmethod
    def draft(self, batches: WrapBatches) -> Draft | None:
        """Return the change onto the present head; None if nothing is left to do."""

    @abstractmethod
    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        """Draft onto `head` from now on, which the server has shown after the log was followed to
        `since`; verify it (`verify_head`). None if the reply had no room for it."""

    def adapts(self, session: Session, refused: Error) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether another draft avoids this refusal, for a reason of this change's own."""
        return False

    def renewed(self, session: Session) -> None:
        """The account's keys, or a reader's, were renewed; draft with these from now on."""

    def unneeded(self) -> Iterable[_Result_co]:
        """Return the result, if any, of a change that has nothing left to do."""
        return ()

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:  # noqa: ARG002 - for subclasses
        """Return the records of the change that are to be remembered, besides one with content."""
        return ()

    @abstractmethod
    def committed(self, draft: Draft, receipt: Receipt | None) -> _Result_co:
        """Return the result of the change: the log has `draft`. Without a `receipt`, its reply was
        lost."""


class SentChanges(Generic[_Result]):
    """Changes with their drafts, signed together for one request."""

    def __init__(
        self,
        session: Session,
        members: Sequence[tuple[PlannedChange[_Result], Draft]],
        *,
        atomic: bool = False,
    ) -> None:
        self.changes: list[PlannedChange[_Result]] = [change for change, _ in members]
        drafts = [draft for _, draft in members]
        self.changeset: Changeset = Changeset(session, drafts, atomic=atomic)

    @property
    def request(self) -> Request:
        return self.changeset.request

    @property
    def file_ids(self) -> list[str]:
        """The files that are changed."""
        return [draft.record.file_id for draft in self.changeset.drafts]

    def refused(self, reply: Reply) -> Error | None:
        """Return why the first change was refused, if it was; nothing is verified."""
        if isinstance(reply, Committed):
            return reply.outcomes[0].error if reply.outcomes else None
        return reply if isinstance(reply, Error) else None


class Committer(Generic[_Result]):
    """Commits changes in changesets, over one session. With `skip`, a change that fails is passed
    to it by its name, and the others are made: it is no `failure` then."""

    def __init__(self, session: Session, skip: Skip | None = None) -> None:
        self._session = session
        self._skip = skip
        self._unneeded: list[_Result] = []

    def _failed(self, change: PlannedChange[_Result], error: SfscError) -> SfscError | None:
        """Pass the error of one change to `skip`. Return the one, if any, that stops the others
        too."""
        if self._skip is None or isinstance(error, STOPPING):
            return error
        self._session.keep_evidence(error)
        try:
            self._skip(change.name, error)
        except SfscError as exc:
            return exc
        return None

    def take_unneeded(self) -> list[_Result]:
        """Return the results of changes that turned out to have nothing left to do."""
        found, self._unneeded = self._unneeded, []
        return found

    def prepare(
        self, changes: Sequence[PlannedChange[_Result]]
    ) -> tuple[list[SentChanges[_Result]], SfscError | None]:
        """Draft and sign changes of different files. Return what is to be sent at once, and the
        error of the first that could not be drafted: those after it are left out."""
        session = self._session
        try:
            members, failure = self._draft_trusted(changes)
            left = iter(members)  # the groups keep their order
            return [
                SentChanges(session, list(itertools.islice(left, len(group))))
                for group in fitting(draft for _, draft in members)
            ], failure
        except SfscError as exc:
            return [], exc

    def commit_set(
        self, changes: Sequence[PlannedChange[_Result]]
    ) -> list[tuple[_Result, Draft, Receipt | None]]:
        """Commit changes of different files, each of which drafts something: all of them, or none.
        Return (result, draft, receipt) of each in order, proven to be in the log; without a
        receipt, the reply was lost. If one is refused because others were faster, all are drafted
        again.

        Raises `UsageError` if they do not fit into one changeset, the error of the first change
        that could not be drafted or was refused, `ConflictError` if others keep changing the files,
        and `PartialSet` if the server has made some of the changes only. `UploadLost` is raised for
        an upload which the server has lost.
        """
        for _ in range(MAX_CONFLICTS):
            members, failure = self._draft_trusted(changes)
            if failure is not None:
                raise failure
            if len(members) != len(changes):
                raise TypeError("a change drafts nothing")
            if len(list(fitting(draft for _, draft in members))) > 1:
                raise UsageError("the changes do not fit into one changeset", SET_LIMITS)
            sent = SentChanges(self._session, members, atomic=True)
            outcomes = sent.changeset.outcomes(self._session.ask(sent.request))
            receipts = [one for one in outcomes if isinstance(one, Receipt)]
            if receipts or sent.changeset.has_landed():
                proven: Sequence[Receipt | None] = receipts or [None] * len(members)
                made = [
                    (change.committed(draft, receipt), draft, receipt)
                    for (change, draft), receipt in zip(members, proven, strict=True)
                ]
                self._session.state.remember_changes(
                    record for change, draft in members for record in change.made_records(draft)
                )
                self._session.link_receipts()
                return made
            renewed: set[str] = set()
            for (change, draft), refused in zip(members, outcomes, strict=True):
                if not isinstance(refused, Error) or refused.code == "set-refused":
                    continue
                try:
                    self._rebase(sent, change, draft, refused, renewed)
                except SfscError as exc:
                    if change.name not in exc.cause:
                        exc.cause = f"{change.name}: {exc.cause}"
                        exc.args = (exc.cause,)
                    raise
        raise ConflictError("others keep changing the files", "run the command again")

    def _draft_trusted(
        self, changes: Sequence[PlannedChange[_Result]]
    ) -> tuple[list[tuple[PlannedChange[_Result], Draft]], SfscError | None]:
        """Draft changes under the account's newest keys. Raises as `Session.check_trusted`."""
        session = self._session
        session.adopt_newest()
        session.check_trusted()
        members, failure = self._draft(changes)
        if members and session.is_behind:  # another device rotated: a draft has found it
            session.adopt_newest()
            return self._draft([change for change, _ in members])
        return members, failure

    def finish(
        self, sent: SentChanges[_Result], reply: Reply
    ) -> tuple[list[_Result], SfscError | None]:
        """Return the results of changes that were sent, in order, and the error of the first that
        was refused. Those on which others were faster are committed again.

        Call `Session.link_receipts` before reporting success. Raises `UploadLost` for a change that
        commits an upload which the server has lost.
        """
        results, failure = self._finish(sent, reply, MAX_CONFLICTS)
        return [results[id(one)] for one in sent.changes if id(one) in results], failure

    def _finish(
        self, sent: SentChanges[_Result], reply: Reply, left: int
    ) -> tuple[dict[int, _Result], SfscError | None]:
        """Like `finish`, with results by the id of their change. `left` attempts may be made."""
        results: dict[int, _Result] = {}
        failure: SfscError | None = None
        outcomes = sent.changeset.outcomes(reply)
        may_have_landed = self._session.connections != sent.changeset.connection and any(
            isinstance(one, Error) and one.code in _MAY_HAVE_LANDED for one in outcomes
        )
        if may_have_landed:
            self._session.refresh_log()
        refused: list[tuple[PlannedChange[_Result], Draft, Error]] = []
        made = zip(sent.changes, sent.changeset.drafts, outcomes, strict=True)
        records: list[MadeRecord] = []
        with self._session.state.transaction():  # one for all, which costs as much as for one
            for change, draft, outcome in made:
                receipt = None if isinstance(outcome, Error) else outcome
                if isinstance(outcome, Error) and not (
                    may_have_landed and self._was_accepted(outcome, draft)
                ):
                    refused.append((change, draft, outcome))
                    continue
                try:
                    results[id(change)] = change.committed(draft, receipt)
                    records += change.made_records(draft)
                except FATAL:
                    raise
                except SfscError as exc:
                    failure = failure or self._failed(change, exc)
            try:
                self._session.state.remember_changes(records)
            except LocalError as exc:
                failure = failure or exc
        self._session.progress.advance_items(len(results))
        again, error = self._rebase_refused(sent, refused, last=left == 1)
        failure = failure or error
        following, error = self.prepare(again) if again else ([], None)
        failure = failure or error
        for one in following:
            more, error = self._finish(one, self._session.ask(one.request), left - 1)
            results |= more
            failure = failure or error
        return results, failure

    def _rebase_refused(
        self,
        sent: SentChanges[_Result],
        refused: Sequence[tuple[PlannedChange[_Result], Draft, Error]],
        *,
        last: bool,
    ) -> tuple[list[PlannedChange[_Result]], SfscError | None]:
        """Return the refused changes that are to be committed again, and the error of the first of
        the others. After the `last` attempt none is."""
        again: list[PlannedChange[_Result]] = []
        failure: SfscError | None = None
        renewed: set[str] = set()
        for change, draft, refusal in refused:
            try:
                self._rebase(sent, change, draft, refusal, renewed)
                if last:
                    raise ConflictError("others keep changing the file", "run the command again")
                again.append(change)
            except SfscError as exc:
                error = self._failed(change, exc)
                if error is not None and isinstance(exc, FATAL):
                    raise
                failure = failure or error
        return again, failure

    def _draft(
        self, changes: Sequence[PlannedChange[_Result]]
    ) -> tuple[list[tuple[PlannedChange[_Result], Draft]], SfscError | None]:
        batches = self._session.account.wrap_batches()
        members: list[tuple[PlannedChange[_Result], Draft]] = []
        for change in changes:
            try:
                draft = change.draft(batches)
            except SfscError as exc:
                if (error := self._failed(change, exc)) is not None:
                    return members, error
                continue
            if draft is None:
                self._unneeded += change.unneeded()
            else:
                members.append((change, draft))
        return members, None

    def _was_accepted(self, refused: Error, draft: Draft) -> bool:
        """Whether the followed log has this very record although it is `refused` now.

        A record may be accepted, the reply lost with its connection, and another record added
        before the request is repeated. Only the followed log counts: a server could show a record
        as accepted that nobody else will ever see.
        """
        record, log = draft.record, self._session.log
        place = record.file_id, record.rev, record_hash(draft.body)
        return refused.code in _MAY_HAVE_LANDED and log.find_record(*place) is not None

    def _rebase(
        self,
        sent: SentChanges[_Result],
        change: PlannedChange[_Result],
        draft: Draft,
        refused: Error,
        renewed: set[str],
    ) -> None:
        """Prepare `change` for another draft. `renewed` are the codes of errors for which keys were
        renewed since the request was sent. Raises the exception of an error that no other draft
        avoids."""
        if refused.code == "upload-lost" and draft.upload is not None:
            raise UploadLost
        if refused.code == "conflict":
            change.rebase(self._session, refused.head, sent.changeset.since)
        elif not change.adapts(self._session, refused):
            if refused.code not in renewed:
                self._session.renew_keys(refused)
                renewed.add(refused.code)
            change.renewed(self._session)


def commit_change(session: Session, change: PlannedChange[_Result]) -> _Result:
    """Commit one change, which always drafts something, and return its result, as
    `commit_if_needed`."""
    result = commit_if_needed(session, change)
    if result is None:
        raise TypeError("the change drafts nothing")
    return result


def commit_if_needed(session: Session, change: PlannedChange[_Result]) -> _Result | None:
    """Commit one change and return its result, proven to be in the log; None if nothing was left to
    do. Raises `ConflictError` if others keep changing the file, `UploadLost`, and `SfscError`."""
    committer = Committer[_Result](session)
    sent, failure = committer.prepare([change])
    found: list[_Result] = []
    if failure is None and sent:
        found, failure = committer.finish(sent[0], session.ask(sent[0].request))
        session.link_receipts()
    if failure is not None:
        raise failure
    return found[0] if found else None


def commit_changes(
    session: Session, changes: Iterable[PlannedChange[_Result]], skip: Skip | None = None
) -> Iterator[_Result]:
    """Commit changes of different files, several changesets in flight; yield the results in order.
    The receipts are linked to one log at the end. A change that fails is passed to `skip`, by its
    name, and the others are made; without `skip`, the first error is raised after the results of
    what was sent before."""
    committer, window = Committer[_Result](session, skip), Window[SentChanges[_Result]](session)
    failure: SfscError | None = None
    try:
        source = iter(changes)
        while True:
            try:
                group = list(itertools.islice(source, TOGETHER))
            except STOPPING:
                raise
            except SfscError as exc:  # what was sent is finished first
                failure = exc
                break
            if not group:
                break
            sent, failure = committer.prepare(group)
            for one in sent:
                window.send(one, one.request)
            session.transport.push()
            if failure is not None:
                break
            while len(window) > AHEAD and failure is None:
                found, failure = committer.finish(*window.take())
                yield from found
            yield from committer.take_unneeded()
            if failure is not None:
                break
        while window:
            found, error = committer.finish(*window.take())
            yield from found
            failure = failure or error
        yield from committer.take_unneeded()
    finally:
        window.abandon()
    session.link_receipts()
    if failure is not None:
        raise failure


class FileChange(PlannedChange[FileRecord]):
    """A change that depends on the present version of its file alone. The result is the record, and
    `file` then the file that it was drafted onto."""

    def __init__(
        self, file: VerifiedFile, build: Callable[[VerifiedFile, WrapBatches], Draft | None]
    ) -> None:
        """`build` drafts the change; None means that nothing is left to do."""
        self.file: VerifiedFile = file
        self._build = build
        self.body: bytes = b""
        """The exact bytes of the record that was committed."""

    def draft(self, batches: WrapBatches) -> Draft | None:
        return self._build(self.file, batches)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        file = verify_head(session, self.file.file_id, head, since)
        self.file = session.without_left(file)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> FileRecord:
        self.body = draft.body
        return draft.record


def change_file(session: Session, change: FileChange) -> bool:
    """Commit a change that adds no version, and remember the file's new record. Return False if
    nothing was left to do. Raises as `commit_if_needed`."""
    change.file = session.without_left(change.file)
    record = commit_if_needed(session, change)
    if record is None:
        return False
    session.state.remember_changes([(record, change.body, change.file.version)])
    return True


def verify_head(session: Session, file_id: str, head: FileView | None, since: int) -> VerifiedFile:
    """Return the newest version of a file of ours, which the server has shown after the log was
    followed to `since`; without a `head`, ask for it. Raises as `Session.verify_newest`, and
    `NotFound`."""
    if head is None:
        return session.fetch_newest(file_id)
    return session.verify_newest(head, file_id, since)


def find_file(session: Session, name: str) -> VerifiedFile:
    """Return the newest version of our file `name`, deleted or not. Raises `NotFound`."""
    check_name(name)
    try:
        return session.fetch_newest(session.account.file_id(name))
    except NotFound as exc:
        raise NotFound(f"no such file: {name}", "run `sfsc ls` to see what is stored") from exc


def find_current_file(session: Session, name: str) -> VerifiedFile:
    """Return the current version of our file `name`. Raises `NotFound`."""
    file = find_file(session, name)
    if file.deleted:
        raise NotFound(f"the file {name} was deleted", "run `sfsc history` to see its versions")
    return file


def fetch_version(session: Session, file: VerifiedFile, version: int) -> VerifiedFile:
    """Return one version of `file`, whose newest version is given, confirmed to be the one that the
    file's records name, and with a wrap for a key of this machine if there is one. Raises
    `NotFound`, and as `Session.confirm_version`."""
    if version != file.version:
        file = _fetch_stated(session, file.file_id, version)
    return with_present_wraps(session, session.confirm_version(file))


def with_present_wraps(session: Session, file: VerifiedFile) -> VerifiedFile:
    """Adopt the account's newest keys, and return a version of ours with a wrap for one of them.

    If the keys were rotated twice since it was fetched, those that its wraps are for are destroyed,
    and it is fetched again. Without any wrap for us it is returned as it is. Raises as
    `fetch_version`.
    """
    for _ in range(MAX_CONFLICTS):
        session.adopt_newest()
        account = session.account
        if not file.wraps or any(wrap.key_id in account.private_keys for wrap in file.wraps):
            break
        file = session.confirm_version(_fetch_stated(session, file.file_id, file.version))
        if session.account is account and not session.is_behind:
            break
    return file


def _fetch_stated(session: Session, file_id: str, version: int) -> VerifiedFile:
    since = session.followed_size
    stated = session.call(Stat(session.account.user, file_id, version), Stated)
    file = session.account.verify_version(stated.view, file_id, version, None)
    session.check_head(file.head, file.head_body, stated.view.at, since)
    return file


def build_tombstone(
    session: Session, head: FileRecord, body: bytes, to: str | None = None
) -> FileRecord:
    """Return the record that deletes a file, on its `head`, whose exact bytes are `body`. `to` is
    the file_id to which the file moved."""
    return build_record(session, head, body, op=DELETE, current=0, to=to)


def build_purge(
    session: Session, head: FileRecord, body: bytes, versions: Sequence[int]
) -> FileRecord:
    """Return the record that removes the content of `versions`, which are sorted and not current,
    on the file's `head`, whose exact bytes are `body`."""
    return build_record(session, head, body, op=PURGE, current=head.current, purged=tuple(versions))


def build_record(
    session: Session,
    head: FileRecord,
    body: bytes,
    *,
    op: str,
    current: int,
    to: str | None = None,
    purged: tuple[int, ...] | None = None,
    readers: tuple[ReaderEntry, ...] | None = None,
) -> FileRecord:
    """Return the record of `op` on `head`, whose exact bytes are `body`; without `readers` these
    stay the same."""
    author = session.author
    return FileRecord(
        server=author.server,
        owner=author.owner,
        actor=author.actor,
        generation=author.generation,
        file_id=head.file_id,
        rev=head.rev + 1,
        op=op,
        prev=record_hash(body),
        seen=session.seen,
        created=int(time.time()),
        readers=head.readers if readers is None else readers,
        current=current,
        content=carried_content(head, body) if current else b"",
        to=to,
        purged=purged,
    )


def draft_of(record: FileRecord) -> Draft:
    """Return the draft of a record that describes no content."""
    return Draft(record, record.encode())


def delete_file(
    session: Session, file: VerifiedFile, is_deleted: Callable[[VerifiedFile], bool]
) -> VerifiedFile:
    """Put a tombstone onto the head of `file`, unless `is_deleted` says that there is one. Return
    the file as it was before. Raises `ConflictError`."""

    def build(onto: VerifiedFile, _batches: WrapBatches) -> Draft | None:
        if is_deleted(onto):
            return None
        return draft_of(build_tombstone(session, onto.head, onto.head_body))

    change = FileChange(file, build)
    change_file(session, change)
    return change.file
