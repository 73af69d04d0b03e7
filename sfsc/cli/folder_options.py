"""Options of the commands on folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click

from sfsc.errors import UsageError

_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_RATE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)([kmg]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


class _Rate(click.ParamType[int]):
    """A number of bytes in a second, such as ``5MiB`` or ``800k``."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        found = _RATE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no rate such as 5MiB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].lower()])


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
    type=_Rate(),
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
