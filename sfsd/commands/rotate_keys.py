"""`sfsd rotate-keys`: replace keys of the server itself."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sfsd import server_keys
from sfsd.commands import answer, root_option
from sfsd.datadir import lock_root
from sfsd.fs.files import Files


@click.command()
@click.argument("which", type=click.Choice(["tls", "log", "operator"]))
@root_option
def command(root: Path, which: str) -> None:
    """Replace the TLS key, the log key or the operator's key. The daemon must not run.

    Users need not do anything: the server's long-lived key, which their invitation pinned, signs a
    statement with the new TLS key or log key. The operator's key is the one with which commands of
    `sfsd` log in to a running daemon.

    Example: sfsd rotate-keys tls --root /srv/sfs
    """
    with lock_root(root):
        folder, files, now = root / "keys", Files.below(root), int(time.time())
        if which == "operator":
            server_keys.renew_operator_key(folder, files)
            answer("commands log in with a new key")
            return
        renew = server_keys.renew_tls_key if which == "tls" else server_keys.renew_log_key
        keys = renew(folder, now, files)
        answer(f"statement {keys.n} names the new {which} key")
