"""`sfsc rotate`: new keys for the account."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_time
from protocol.records.records import WRAP_ALGORITHMS
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sfsc.account.recover import StatementSummary
    from sfsc.account.rotate import RotationPlan, RotationResult
    from sfsc.store import Store


@click.command(short_help="Replace your keys.")
@click.option("--plan", is_flag=True, help="Only show what there is to do.")
@click.option("--if-due", is_flag=True, help="Only where the keys are due, or it was begun.")
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    help="Kind of key that file keys are wrapped to from now on.",
)
@click.option(
    "--compromised", is_flag=True, help="Encrypt every content anew too: a key was stolen."
)
@click.option("--drop-device", metavar="ID", help="With --compromised: leave this device out.")
@click.option(
    "--recovery", is_flag=True, help="Take the account back with its recovery code: keys were used."
)
@click.option(
    "--undo-from",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --recovery: undo from this statement on.",
)
@click.option("--yes", is_flag=True, help="With --recovery: do not ask.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.pass_obj
def command(
    context: Context,
    *,
    plan: bool,
    if_due: bool,
    key_type: str | None,
    compromised: bool,
    drop_device: str | None,
    recovery: bool,
    undo_from: int | None,
    yes: bool,
    names: tuple[str, ...],
) -> None:
    """Make new keys, wrap the key of every file for them, and destroy the old ones.

    No content is sent or encrypted anew: it limits what a key stolen tomorrow opens, and does not
    help against who has the old key and what the server had until now. Interrupted, it goes on
    where it was when it is run again, here or on another of your machines.

    With --compromised every content, old versions and trash included, is fetched and stored again
    under a new key: then neither an old private key nor an old file key opens what is there now.
    What was taken before stays taken. With NAMEs only
    these files get new contents, all their versions; the keys of all others are wrapped anew. This
    machine gets another key of its own. Of another whose keyring may have been copied, say
    --drop-device: it joins again with the recovery code.

    With --recovery the recovery code (asked for, or a line of stdin) undoes what somebody with
    stolen keys has signed: his statements, and what he did to the files. Every other machine is
    then out of the account. --plan shows what would be undone.
    """
    if (undo_from is not None or yes) and not recovery:
        raise UsageError("--undo-from and --yes go with --recovery")
    if recovery:
        if if_due or compromised or key_type is not None or names:
            raise UsageError("--recovery goes with --plan, --undo-from and --yes only")
        _take_back(context, undo_from, plan=plan, yes=yes)
        return
    if names and not compromised:
        raise UsageError("NAMEs go with --compromised")
    if drop_device is not None and not compromised:
        raise UsageError("--drop-device goes with --compromised", "or see `sfsc device drop`")
    # What is asked for is done here and seen; nothing is rotated on the way in.
    with sfsc.connect(
        context.home, passphrase=terminal.passphrase_source(), auto_rotate=False
    ) as store:
        if plan:
            _show_plan(store.rotation_plan(), as_json=context.json)
        elif if_due and not store.rotation_is_due():
            if context.json:
                terminal.answer_json({"due": False})
        else:
            device = None if drop_device is None else find_device(store, drop_device)
            done = store.rotate(
                key_type=key_type, compromised=compromised, names=names, drop_device=device
            )
            show(done, as_json=context.json)


def _take_back(context: Context, undo_from: int | None, *, plan: bool, yes: bool) -> None:
    code = terminal.ask_secret("The recovery code: ")
    asked = terminal.passphrase_source()
    lock = None if asked is None else functools.cache(asked)
    links = sfsc.take_back_plan(code, home=context.home, passphrase=lock, undo_from=undo_from)
    for one in links if plan and context.json else ():
        terminal.answer_json(dataclasses.asdict(one))
    if not context.json:
        for line in _lines(links):
            (terminal.answer if plan else terminal.say)(line)
    if plan:
        return
    if not yes and not terminal.confirmed("Take the account back so?"):
        raise UsageError("nothing was done", "--yes does it without asking")
    failures = terminal.Failures()
    done = sfsc.take_back(
        code, home=context.home, passphrase=lock, undo_from=undo_from, on_destroyed=failures
    )
    show(done, as_json=context.json)
    failures.check()


def _lines(links: list[StatementSummary]) -> Iterator[str]:
    """The account's statements; of many that are undone, the first and how many."""
    for one in links:
        undone = "  undone" if one.undone else ""
        when = human_time(one.created)
        about = f"generation {one.generation}, {one.devices} devices"
        yield f"{one.n:>4}  {when}  {one.reason:<12} {about}{undone}"


def find_device(store: Store, start: str) -> bytes:
    """The device whose id begins so. Raises `NotFound` for none, and for more than one."""
    found = [one for one in store.devices() if one.device_id.hex().startswith(start.lower())]
    if len(found) != 1:
        raise NotFound(f"{len(found)} devices begin so", "see `sfsc device list`")
    return found[0].device_id


def show(done: RotationResult, *, as_json: bool) -> None:
    """Answer with a rotation that is finished."""
    if as_json:
        terminal.answer_json(dataclasses.asdict(done))
        return
    terminal.answer(f"generation  {done.generation}, {done.key_type}")
    terminal.answer(f"wrapped     {done.wrapped} versions here; all {done.files} are of it")
    terminal.answer(f"rotate by   {human_time(done.due)}")


def _show_plan(plan: RotationPlan, *, as_json: bool) -> None:
    if as_json:
        terminal.answer_json(dataclasses.asdict(plan))
        return
    size = terminal.human_size(plan.size)
    terminal.answer(f"to wrap     {plan.versions} versions; their {size} stay where they are")
    terminal.answer(f"generation  {plan.generation}{', begun and not finished' * plan.begun}")
    terminal.answer(f"due         {human_time(plan.due)}")
    seconds = plan.versions / _VERSIONS_A_SECOND
    terminal.answer(f"time        about {max(1, round(seconds))} s")


_VERSIONS_A_SECOND = 2000
"""About; `make bench` measures it."""
