"""`sfsc rotate`: new keys for the account."""

from __future__ import annotations

import dataclasses

import click

import sfsc
from protocol.records import WRAP_ALGORITHMS
from sfsc import terminal
from sfsc.client import Plan, Rotated, Store
from sfsc.commands import Context
from sfsc.errors import NotFound, UsageError


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
@click.pass_obj
def command(
    context: Context,
    *,
    plan: bool,
    if_due: bool,
    key_type: str | None,
    compromised: bool,
    drop_device: str | None,
) -> None:
    """Make new keys, wrap the key of every file for them, and destroy the old ones.

    No content is sent or encrypted anew: it limits what a key stolen tomorrow opens, and does not
    help against who has the old key and what the server had until now. Interrupted, it goes on
    where it was when it is run again, here or on another of your machines.

    With --compromised every content, old versions and trash included, is fetched and stored again
    under a new key: then neither an old private key nor an old file key opens what is there now.
    What was taken before stays taken.
    """
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
            done = store.rotate(key_type=key_type, compromised=compromised, drop_device=device)
            show(done, as_json=context.json)


def find_device(store: Store, start: str) -> bytes:
    """The device whose id begins so. Raises `NotFound` for none, and for more than one."""
    found = [one for one in store.devices() if one.device_id.hex().startswith(start.lower())]
    if len(found) != 1:
        raise NotFound(f"{len(found)} devices begin so", "see `sfsc device list`")
    return found[0].device_id


def show(done: Rotated, *, as_json: bool) -> None:
    """Answer with a rotation that is finished."""
    if as_json:
        terminal.answer_json(dataclasses.asdict(done))
        return
    terminal.answer(f"generation  {done.generation}, {done.key_type}")
    terminal.answer(f"wrapped     {done.wrapped} versions here; all {done.files} are of it")
    terminal.answer(f"rotate by   {terminal.human_time(done.due)}")


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        terminal.answer_json(dataclasses.asdict(plan))
        return
    size = terminal.human_size(plan.size)
    terminal.answer(f"to wrap     {plan.versions} versions; their {size} stay where they are")
    terminal.answer(f"generation  {plan.generation}{', begun and not finished' * plan.begun}")
    terminal.answer(f"due         {terminal.human_time(plan.due)}")
    seconds = plan.versions / _VERSIONS_A_SECOND
    terminal.answer(f"time        about {max(1, round(seconds))} s")


_VERSIONS_A_SECOND = 2000
"""About; `make bench` measures it."""
