"""`sfsd fsck`: compare the store with the log."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from protocol.buffers.file_status import is_file
from protocol.codec.errors import MessageError
from protocol.codec.names import SERVER, check_file_id, check_user_name
from protocol.codec.terminal_text import counted
from protocol.codec.values import as_dict
from protocol.log.auditlog import LOST, EntryDraft
from sfsd import server_keys
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.datadir import (
    lock_root,
    lock_root_to_read,
    open_server_context,
    repair_settings,
)
from sfsd.errors import Absent, CommandError, JournalDamagedError, RecoveryError, Refused
from sfsd.fs.files import Files
from sfsd.log.cut import begin_cut, finish_cut
from sfsd.storage.change import Change
from sfsd.storage.fsck import Finding, Fsck, applied_mark


@click.command()
@root_option
@json_option
@click.option("--read-data", is_flag=True, help="Read all ciphertext too, not only its size.")
@click.option("--repair", is_flag=True, help="Restore what can be derived from other files.")
@click.option(
    "--give-up",
    nargs=3,
    type=(str, str, click.IntRange(min=1)),
    metavar="USER FILE VERSION",
    help="Only mark this damaged version as lost; FILE is the file id.",
)
@click.option(
    "--cut-log",
    type=click.IntRange(min=1),
    metavar="N",
    help="Repair with the first N entries of a log whose end is lost.",
)
def command(
    root: Path,
    as_json: bool,
    *,
    read_data: bool,
    repair: bool,
    give_up: tuple[str, str, int] | None,
    cut_log: int | None,
) -> None:
    """Check that the store holds exactly the files that the log says.

    The daemon must not run. No key is needed, and without --repair no right to write: a copy on a
    read-only disk is checked too. --repair restores inbox notes, leaf hashes, identity
    chains, second names of a ciphertext and the log's cache, and moves files that are not in the
    log to stray/. With the server's keys it also installs logged changes as a start does, and marks
    versions as lost if their bytes are gone. Exit code 5 if damage is left.

    --give-up is for damage that no backup repairs: the version is marked as lost in the log, and
    its file works again without it. A version that is not damaged is refused.

    --cut-log is the last resort for a log whose end is gone: a start names the N. What was stored
    by later entries goes to stray/, and users go on with `sfsc audit accept`.

    Example: sfsd fsck --root /srv/sfs --read-data
    """
    if give_up is not None:
        _give_up(root, *give_up)
        return
    changes = repair or cut_log is not None
    with lock_root(root) if changes else lock_root_to_read(root):
        if cut_log is not None:
            _cut_log(root, cut_log)
        elif repair:
            _recover(root)
        check = Fsck(root, read_data=read_data, repair=changes)
        left = found = 0
        for finding in check.run():
            found += 1
            left += not finding.repaired and finding.kind != "waiting"
            if as_json:
                answer_json(as_dict(finding))
            else:
                answer(describe(finding))
        if cut_log is not None:
            finish_cut(root, Files.below(root))
    if left:
        raise CommandError(
            f"{counted(left, 'difference')} from the log left in {counted(check.checked, 'file')}",
            "restore the files from a backup of the root, or ask their owners",
            exit_code=5,
        )
    if not as_json:
        answer(f"{counted(check.checked, 'file')} checked, no damage left ({found} reported above)")


def describe(finding: Finding) -> str:
    """Return the line that tells of a difference from the log."""
    entry = "" if finding.seq is None else f" (entry {finding.seq})"
    state = "repaired " if finding.repaired else ""
    return f"{state}{finding.kind}: {finding.path}{entry}: {finding.text}"


def _give_up(root: Path, user: str, file_id: str, version: int) -> None:
    from sfsd.operations.lost import give_up_offline

    with lock_root(root), open_server_context(root) as server:
        try:
            check_user_name(user)
            check_file_id(file_id)
            give_up_offline(server, user, file_id, version)
        except MessageError as exc:
            raise CommandError(str(exc), "`sfsd fsck` shows damaged files", exit_code=2) from exc
        except (Refused, Absent) as exc:
            hint = "`sfsd fsck --read-data` shows damaged files: USER/files/…/FILE.VERSION.json"
            raise CommandError(exc.cause, hint, exit_code=3) from exc
    answer(f"marked version {version} of {file_id} as lost")


def _cut_log(root: Path, count: int) -> None:
    """Cut the log, and make the store fit it but for files that the log does not know. The new log
    begins with an entry that tells of the cut."""
    files = Files.below(root)
    server_keys.load(root / "keys")  # fails before anything is changed
    begin_cut(root, count, applied_mark(root, files), files)
    with open_server_context(root, after_cut=True, files=files) as server:
        if server.failed is not None:
            raise CommandError(server.failed, "check the disk, then run this again", exit_code=1)
        detail = {"why": "the end of the log was lost", "entries": [count]}
        entry = EntryDraft(op=LOST, actor=SERVER, detail=detail)
        server.committer.submit(Change(entry)).result()


def _recover(root: Path) -> None:
    """Recover the root as a start does. The check reports what prevents it, and a copy without the
    server's keys is only checked."""
    if is_file(root / "keys" / "log.key"):
        with (
            contextlib.suppress(JournalDamagedError, RecoveryError),
            open_server_context(root) as context,
        ):
            repair_settings(context)
