"""`sfsc agent`: a process that keeps the keyring unlocked for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_duration, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context

if TYPE_CHECKING:
    from sfsc.agent.client import AgentStatus

_MEMORY = {
    "locked": "all of it is kept out of swap",
    "key-locked": "the key is kept out of swap",
    "unlocked": "this system lets no user keep it out of swap",
}


@click.group()
def agent() -> None:
    """Keep the keyring unlocked, so that commands neither ask for the passphrase nor derive a key
    from it.

    The agent holds the key of this keyring's file in memory. It forgets it 15 minutes after its
    last use (SFSC_AGENT_TIMEOUT, such as 8h), after the machine was suspended, with `agent lock`,
    and when you log out. With SFSC_AGENT=1, every command that had to ask starts the agent; with
    SFSC_AGENT=0 none uses it. Only programs that run as you can reach it.

    Example: sfsc agent start
    """


@agent.command("start")
@click.option("--timeout", metavar="TIME", help="Forget the key so long after its last use: 8h.")
@click.pass_obj
def agent_start(context: Context, *, timeout: str | None) -> None:
    """Start the agent, and unlock the keyring for it.

    Example: sfsc agent start --timeout 8h
    """
    seconds = None
    if timeout is not None:
        from sfsc.agent.client import parse_timeout

        seconds = parse_timeout(timeout)
    source = terminal.passphrase_source()
    status = sfsc.start_agent(home=context.home, passphrase=source, timeout=seconds)
    context.confirm(status, *_lines(status))


@agent.command("lock")
@click.pass_obj
def agent_lock(context: Context) -> None:
    """Forget the key now. The agent goes on; the next command asks for the passphrase.

    Example: sfsc agent lock
    """
    running = sfsc.lock_agent(home=context.home)
    context.confirm({"running": running}, "locked" if running else "no agent runs")


@agent.command("stop")
@click.pass_obj
def agent_stop(context: Context) -> None:
    """Forget the key and end the agent.

    Example: sfsc agent stop
    """
    stopped = sfsc.stop_agent(home=context.home)
    context.confirm({"stopped": stopped}, "stopped" if stopped else "no agent runs")


@agent.command("status")
@click.pass_obj
def agent_status(context: Context) -> None:
    """Show whether the agent runs, and whether it holds the key of the keyring.

    Example: sfsc agent status
    """
    status = sfsc.agent_status(home=context.home)
    context.answer(status, *_lines(status))


def _lines(status: AgentStatus) -> list[str]:
    if not status.running:
        return ["agent   does not run"]
    left = human_duration(status.seconds_left)
    keyring = f"unlocked, forgotten in {left} unless it is used" if status.unlocked else "locked"
    return [
        f"agent   process {status.pid}, at {printable(status.socket)}",
        f"keyring {keyring}",
        f"memory  {_MEMORY[status.memory or 'unlocked']}",
    ]
