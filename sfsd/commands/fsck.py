"""`sfsd fsck`: compare the store with the log."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import click

from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_id, check_user_name
from protocol.codec.terminal_text import counted
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.datadir import lock_root, open_server_context, repair_settings
from sfsd.errors import Absent, CommandError, JournalDamagedError, RecoveryError, Refused
from sfsd.storage.fsck import Fsck


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
def command(
    root: Path,
    as_json: bool,
    *,
    read_data: bool,
    repair: bool,
    give_up: tuple[str, str, int] | None,
) -> None:
    """Check that the store holds exactly the files that the log says.

    The daemon must not run. No key is needed. --repair restores inbox notes, leaf hashes, identity
    chains, second names of a ciphertext and the log's cache, and moves files that are not in the
    log to stray/. With the server's keys it also installs logged changes as a start does, and marks
    versions as lost if their bytes are gone. Exit code 5 if damage is left.

    --give-up is for damage that no backup repairs: the version is marked as lost in the log, and
    its file works again without it. A version that is not damaged is refused.

    Example: sfsd fsck --root /srv/sfs --read-data
    """
    if give_up is not None:
        _give_up(root, *give_up)
        return
    with lock_root(root):
        if repair:
            _recover(root)
        check = Fsck(root, read_data=read_data, repair=repair)
        left = found = 0
        for finding in check.run():
            found += 1
            left += not finding.repaired and finding.kind != "waiting"
            if as_json:
                answer_json(dataclasses.asdict(finding))
            else:
                entry = "" if finding.seq is None else f" (entry {finding.seq})"
                state = "repaired " if finding.repaired else ""
                answer(f"{state}{finding.kind}: {finding.path}{entry}: {finding.text}")
    if left:
        raise CommandError(
            f"{counted(left, 'difference')} from the log left in {counted(check.checked, 'file')}",
            "restore the files from a backup of the root, or ask their owners",
            exit_code=5,
        )
    if not as_json:
        answer(f"{counted(check.checked, 'file')} checked, no damage left ({found} reported above)")


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


def _recover(root: Path) -> None:
    """Recover the root as a start does. The check reports what prevents it, and a copy without the
    server's keys is only checked."""
    if (root / "keys" / "log.key").is_file():
        with (
            contextlib.suppress(JournalDamagedError, RecoveryError),
            open_server_context(root) as context,
        ):
            repair_settings(context)
