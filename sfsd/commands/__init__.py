"""The operator's commands, one module each, imported when called."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from protocol.codec.errors import MessageError, QuantityError
from protocol.codec.names import check_user_name
from protocol.codec.tables import Table
from protocol.codec.terminal_text import printable, printable_lines
from sfsd.errors import ConfigError

_T = TypeVar("_T")


def answer(text: str) -> None:
    """Print one line of the answer to stdout, made printable."""
    click.echo(printable(text))


def answer_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on one line of stdout."""
    click.echo(json.dumps(value, separators=(",", ":")))


def show_steps(heading: str, steps: Iterable[str]) -> None:
    """Print to stderr what the operator does next, one numbered step a line."""
    numbered = (f"{number}. {step}" for number, step in enumerate(steps, 1))
    click.echo(printable_lines("\n".join([heading, *numbered])), err=True, nl=False)


def table(*headers: str, right: Collection[str] = ()) -> Table:
    """Return a table on stdout; `right` has the headers of the columns aligned to the right."""
    return Table(
        *headers, stream=sys.stdout, right=right, write=functools.partial(click.echo, nl=False)
    )


def parse_with(parse: Callable[[str], _T]) -> Callable[..., _T | None]:
    """Return a click callback that parses an argument; its errors become errors of usage."""

    def read(_context: click.Context, _parameter: click.Parameter, text: str | None) -> _T | None:
        try:
            return None if text is None else parse(text)
        except ConfigError as exc:
            raise click.BadParameter("; ".join(filter(None, (exc.cause, exc.hint)))) from exc
        except (MessageError, QuantityError) as exc:
            raise click.BadParameter(str(exc)) from exc

    return read


@parse_with
def user_name(name: str) -> str:
    """Check an argument that is a user's name."""
    check_user_name(name)
    return name


def _reason(_context: click.Context, _option: click.Parameter, reason: str) -> str:
    from protocol.codec.fields import MAX_TEXT  # imports what --help does not need

    if len(reason.encode(errors="replace")) > MAX_TEXT:
        raise click.BadParameter(f"a reason has at most {MAX_TEXT} bytes")
    return reason


def reason_option(text: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """Return the option ``--reason`` with the help text `text`."""
    return click.option("--reason", default="", callback=_reason, help=text)


root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SFSD_ROOT",
    default=".",
    show_default="the current folder",
    help="The daemon's folder (SFSD_ROOT).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
utc_option = click.option("--utc", is_flag=True, help="Show times in UTC, not in local time.")
"""For a command that shows times by ``human_time(seconds, local=not utc)``."""
