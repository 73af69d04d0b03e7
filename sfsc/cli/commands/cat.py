"""`sfsc cat`: files to stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

import sfsc
from sfsc.cli import terminal
from sfsc.cli.commands import Context, split_owner
from sfsc.cli.commands.share import shared_options, trusting

if TYPE_CHECKING:
    from sfsc.store import Store


@click.command(short_help="Write files to stdout.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--version", type=click.IntRange(min=1), help="An older version of one NAME.")
@shared_options
@click.pass_obj
def command(
    context: Context,
    names: tuple[str, ...],
    *,
    version: int | None,
    file_id: str | None,
    trust_first_use: bool,
) -> None:
    """Fetch each NAME, decrypt it and write it to stdout, one behind the other. OWNER:NAME is a
    file that OWNER shares.

    Only verified bytes are written, but a later part may still turn out to be bad: mind the exit
    code. The first NAME that cannot be fetched ends it.
    """
    if version is not None and len(names) > 1:
        raise click.UsageError("--version is for one NAME")
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for name in names:
            owner, inner = split_owner(store, name)
            if owner is None:
                with terminal.answering():
                    store.get(inner, sys.stdout.buffer, version=version)
                continue
            _shared(store, owner, inner, version, file_id, first_use=trust_first_use)


def _shared(
    store: Store,
    owner: str,
    name: str,
    version: int | None,
    file_id: str | None,
    *,
    first_use: bool,
) -> None:
    with terminal.answering():
        trusting(
            lambda trust: store.get_shared(
                owner,
                name,
                sys.stdout.buffer,
                version=version,
                file_id=file_id,
                trust_first_use=trust,
            ),
            first_use=first_use,
        )
