"""`sfsc rotate`: new keys for the account."""

from __future__ import annotations

import dataclasses

import click

import sfsc
from protocol.records import WRAP_ALGORITHMS
from sfsc import terminal
from sfsc.client import Plan, Rotated
from sfsc.commands import Context


@click.command(short_help="Replace your keys.")
@click.option("--plan", is_flag=True, help="Only show what there is to do.")
@click.option("--if-due", is_flag=True, help="Only where the keys are due, or it was begun.")
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    help="Kind of key that file keys are wrapped to from now on.",
)
@click.pass_obj
def command(context: Context, *, plan: bool, if_due: bool, key_type: str | None) -> None:
    """Make new keys, wrap the key of every file for them, and destroy the old ones.

    No content is sent or encrypted anew: it limits what a key stolen tomorrow opens, and does not
    help against who has the old key and what the server had until now. Interrupted, it goes on
    where it was when it is run again, here or on another of your machines.
    """
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
            show(store.rotate(key_type=key_type), as_json=context.json)


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
