"""Give up damaged versions of a file, so that the rest of it works again.

The server builds the sidecar of a damaged version again from the records in its log. The content is
lost. The account's own log shows that these are the records which the owner signed.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from protocol.log.auditlog import LOST, RETENTION
from protocol.records.records import CONTENT_OPS, PURGED_AT_ONCE, FileRecord, record_hash
from protocol.wire.messages import Done, Error, Reply
from protocol.wire.messages.downloads import Open, OpenTarget
from protocol.wire.messages.files import GiveUp, Stat, Stated
from sfsc.crypto.envelope import WrapBatches
from sfsc.errors import NotFound
from sfsc.files.endorse import endorse_rebuilt
from sfsc.log.account_log import RECORDS, AccountLog
from sfsc.session.changeset import Draft
from sfsc.session.commit import FileChange, build_purge, change_file, delete_file, draft_of
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.transfer.remote_version import open_results
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.server_log import SentChange

_FILE_ID: Final = re.compile(r"[0-9a-f]{32}")


class DamagedFiles:
    """Finds and gives up damaged versions of the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def give_up(self, which: str) -> list[int]:
        """Remove every damaged version of the file `which` (a name or a file_id) by signed records.
        If the current version is one, the file is deleted; its other versions stay.

        Return the numbers of the versions. Raises `NotFound` if there is no such file, or nothing
        of it is damaged.
        """
        file_id, records, removed = find_logged(self._session, which)
        made = {one.version or 0 for one in records.values() if one.op in CONTENT_OPS}
        newest, marked = max(made), set[int]()
        # First: while the newest sidecar is damaged, the server shows no other version.
        if self._is_damaged(file_id, newest, removed=newest in removed):
            self._mark_lost(file_id, newest)
            endorse_rebuilt(self._session, file_id, [newest], records)
            marked.add(newest)
        damaged = sorted(
            marked | {one for one in made if self._is_damaged(file_id, one, removed=one in removed)}
        )
        if not damaged:
            raise NotFound(f"no version of {which} is damaged", "`sfsc get` shows whether it opens")
        self._remove(file_id, damaged)
        endorse_rebuilt(self._session, file_id, damaged, records)
        return damaged

    def _is_damaged(self, file_id: str, version: int, *, removed: bool) -> bool:
        """Return whether the server cannot show this version; or, unless its content was `removed`,
        has no content of it or cannot open its ciphertext."""
        session, user = self._session, self._session.account.user
        reply = session.ask(Stat(user, file_id, version))
        if isinstance(reply, Error) and reply.code == "not-found":
            return True  # the log has it
        if not _names(reply, version):
            if removed:
                expect_reply(reply, Stated)
                return False
            if not expect_reply(reply, Stated).view.metadata:
                return True
            opened = session.ask(Open(user, (OpenTarget(file_id, version),)))
            return _names(open_results(session, user, opened, 1)[0].error, version)
        return _names(reply, version)

    def _mark_lost(self, file_id: str, version: int) -> None:
        """Have the server build the sidecar of the newest version again."""
        reply = self._session.ask(GiveUp(file_id, version))
        if isinstance(reply, Error) and reply.code == "conflict":
            return  # marked before
        user = self._session.account.user
        sent = SentChange(LOST, user, user, file_id, version, b"", {})
        self._session.accept_receipt(expect_reply(reply, Done).receipt, sent)
        self._session.link_receipts()

    def _remove(self, file_id: str, damaged: list[int]) -> None:
        """Sign that these versions are gone, and the file if the current version is one of them."""
        session = self._session
        file = session.fetch_newest(file_id)
        if file.head.current in damaged:
            delete_file(session, file, lambda onto: onto.deleted)
            file = session.fetch_newest(file_id)
        for start in range(0, len(damaged), PURGED_AT_ONCE):
            chosen = tuple(damaged[start : start + PURGED_AT_ONCE])
            change_file(session, FileChange(file, partial(self._draft_purge, chosen)))
            file = session.fetch_newest(file_id)

    def _draft_purge(
        self, chosen: tuple[int, ...], onto: VerifiedFile, _batches: WrapBatches
    ) -> Draft:
        return draft_of(build_purge(self._session, onto.head, onto.head_body, chosen))


def find_logged(session: Session, which: str) -> tuple[str, dict[bytes, FileRecord], set[int]]:
    """Return the id of a file, its records in the account's log by their hashes, and the
    versions that were purged or removed by retention."""
    account, log = session.account, AccountLog(session)
    wanted = [account.file_id(which)]
    if _FILE_ID.fullmatch(which):
        wanted.append(which)
    records: dict[str, dict[bytes, FileRecord]] = {}
    removed: dict[str, set[int]] = {}
    for entry in log.entries():
        if entry.owner != account.user:
            continue
        if entry.op in RECORDS:
            for record, body in log.verify_records(entry):
                records.setdefault(record.file_id, {})[record_hash(body)] = record
                removed.setdefault(record.file_id, set()).update(record.purged or ())
        elif entry.op == RETENTION and entry.file is not None:
            removed.setdefault(entry.file, set()).update(entry.detail.get("purged", ()))
    for file_id in wanted:
        if file_id in records:
            return file_id, records[file_id], removed[file_id]
    raise NotFound(f"no such file: {which}", "`sfsc ls` names damaged files")


def _names(reply: Reply | None, version: int) -> bool:
    """Return whether the reply says that this very version is damaged. Another version of the file
    may be the one that prevents the reply."""
    if not isinstance(reply, Error) or reply.code != "damaged" or reply.damaged is None:
        return False
    return reply.damaged.version == version
