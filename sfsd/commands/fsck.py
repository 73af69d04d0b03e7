"""`sfsd fsck`: compare the store with the log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from protocol.codec.terminal_text import counted
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.datadir import lock_root
from sfsd.errors import CommandError
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
    log to stray/. Exit code 5 if damage is left.

    Example: sfsd fsck --root /srv/sfs --read-data
    """
    with lock_root(root):
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
