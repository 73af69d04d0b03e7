"""Options of the commands on folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click

from protocol.codec.errors import QuantityError
from protocol.codec.quantities import parse_rate
from sfsc.errors import UsageError


class Quantity(click.ParamType[int]):
    """A quantity that `parse` reads and that is at least `least`. `parse` is a function of
    `protocol.codec.quantities`."""

    name = "quantity"

    def __init__(self, parse: Callable[[str], int], *, least: int = 0) -> None:
        self._parse = parse
        self._least = least

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            quantity = self._parse(str(value))
        except QuantityError as exc:
            self.fail(str(exc), param, ctx)
        if quantity < self._least:
            self.fail(f"less than {self._least}", param, ctx)
        return quantity


def _add(*options: Callable[[Callable[..., None]], Callable[..., None]]) -> _Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_Decorator = Callable[[Callable[..., None]], Callable[..., None]]

compare_options: Final = _add(
    click.option("--checksum", is_flag=True, help="With -r: compare contents, not times."),
    click.option("--always", is_flag=True, help="With -r: transfer unchanged files too."),
)
exclude_options: Final = _add(
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave out what matches PATTERN in a folder, as in a .gitignore. Can be repeated.",
    ),
    click.option(
        "--exclude-from",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Leave out what matches a line of FILE.",
    ),
)
dry_run_option: Final = click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and do nothing."
)
limit_rate_option: Final = click.option(
    "--limit-rate",
    type=Quantity(parse_rate),
    metavar="RATE",
    help="Send and receive at most RATE bytes a second, such as 5MiB.",
)


def check_folder_options(
    exclude: Sequence[str], exclude_from: Sequence[Path], *, recursive: bool, dry_run: bool
) -> None:
    """Raise `UsageError` if options for folders are given without -r."""
    if not recursive and (exclude or exclude_from or dry_run):
        raise UsageError("--exclude, --exclude-from and --dry-run are for folders", "add -r")


def patterns(exclude: Sequence[str], exclude_from: Sequence[Path]) -> list[str]:
    """Return the patterns of --exclude-from, then those of --exclude. Raises
    `UnreadableSource`."""
    if not exclude_from:
        return list(exclude)
    from sfsc.files.filters import read_patterns

    return [*(line for path in exclude_from for line in read_patterns(path)), *exclude]
