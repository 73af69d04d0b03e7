"""`sfsd fsck`: the store compared with the log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.datadir import lock_root
from sfsd.errors import CommandError
from sfsd.storage.fsck import Fsck


@click.command()
@root_option
@json_option
@click.option("--read-data", is_flag=True, help="Read all ciphertext too, not only its size.")
@click.option("--repair", is_flag=True, help="Make anew what can be derived from the rest.")
def command(root: Path, as_json: bool, *, read_data: bool, repair: bool) -> None:
    """Check that every file of the store is what the log says, and that nothing else is there.

    The daemon must not run. No key is needed. With --repair, inbox notes, leaf hashes, identity
    chains, second names of a ciphertext and the log's cache are made anew, and files that the log
    knows nothing of are moved to stray/. Exit code 5 where damage is left.
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
            f"{left} of {check.checked} files are not what the log says",
            "bring them back from a backup of the root, or ask their owners",
            exit_code=5,
        )
    if not as_json:
        answer(f"{check.checked} files are what the log says, {found} differences found before")
