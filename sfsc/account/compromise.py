"""After a theft of keys: encrypt contents again under new keys."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.records.records import PUT, REENCRYPT
from protocol.wire.messages.rotation import WrapItem
from sfsc.account.rewrap import SERVER_FAULTS, LeftOut, compare_with_log, place_of, wrap_items
from sfsc.errors import IntegrityError
from sfsc.files.history import FileHistory, PastReaders
from sfsc.session.commit import find_file
from sfsc.session.session import Session
from sfsc.transfer.reencrypt import Reencryption


def reencrypt_versions(
    session: Session, chosen: frozenset[str] | None, left_out: LeftOut
) -> LeftOut:
    """Encrypt again every version whose content the old keys open, trash included. The session has
    the new keys already. `chosen` holds the ids of the files to do this for; None means all.

    Return the versions whose content is damaged, or whose record is not the one that the log has;
    those in `left_out` are not tried. Raises as `Reencryption.version` and `Session.refresh_log`.
    """
    damaged: LeftOut = {}
    account, since = session.account, session.refresh_log().size
    reencryption = Reencryption(session, PastReaders(session).readers_of_version)

    def is_chosen(item: WrapItem) -> bool:
        # Only its owner can encrypt a shared file again.
        if item.wrap is None or item.owner != account.user or place_of(item) in left_out:
            return False
        return not account.is_lost((item.wrap,)) and (chosen is None or item.file_id in chosen)

    items = list(filter(is_chosen, wrap_items(session, damaged, damaged)))
    # Before anything is changed here: from then on the records of these files are newer.
    false = compare_with_log(session, items, since)
    for item in items:
        place = place_of(item)
        try:
            if (error := false.get(place)) is not None:
                raise error
            record = account.verify_record(item.content, item.file_id)
            renewed = record.generation == session.author.generation
            # The content of a restore or a move is older than its record.
            if not renewed or record.op not in (PUT, REENCRYPT) or place in false:
                reencryption.version(item.file_id, item.version)
        except SERVER_FAULTS:
            raise
        except IntegrityError as exc:
            damaged[place] = exc
    return damaged


def files_of(session: Session, names: Iterable[str]) -> frozenset[str]:
    """Return the ids of these files and of all files that they were renamed from or to. A rename
    leaves the same content key under the old name. Raises `NotFound`."""
    versions = FileHistory(session)
    waiting = [find_file(session, name).file_id for name in names]
    found: set[str] = set()
    while waiting:
        file_id = waiting.pop()
        if file_id in found:
            continue
        found.add(file_id)
        for record in versions.records(session.fetch_newest(file_id)):
            waiting += [record.to] if record.to is not None else []
            waiting += [record.from_[0]] if record.from_ is not None else []
    return frozenset(found)
