"""`sfsd fsck`: compare the store with the log."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import click

from protocol.codec.terminal_text import counted
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.datadir import lock_root, open_server_context
from sfsd.errors import CommandError, JournalDamagedError, RecoveryError
from sfsd.storage.fsck import Fsck


@click.command()
@root_option
@json_option
@click.option("--read-data", is_flag=True, help="Read all ciphertext too, not only its size.")
@click.option("--repair", is_flag=True, help="Restore what can be derived from other files.")
def command(root: Path, as_json: bool, *, read_data: bool, repair: bool) -> None:
    """Check that the store holds exactly the files that the log says.

    The daemon must not run. No key is needed. --repair restores inbox notes, leaf hashes, identity
    chains, second names of a ciphertext and the log's cache, and moves files that are not in the
    log to stray/. With the server's keys it also installs logged changes as a start does, and marks
    versions as lost if their bytes are gone. Exit code 5 if damage is left.

    Example: sfsd fsck --root /srv/sfs --read-data
    """
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


def _recover(root: Path) -> None:
    """Recover the root as a start does, even if staging/ is empty. The check reports what prevents
    it, and a copy without the server's keys is only checked."""
    if (root / "keys" / "log.key").is_file():
        with (
            contextlib.suppress(JournalDamagedError, RecoveryError),
            open_server_context(root, without_stage=True),
        ):
            pass
