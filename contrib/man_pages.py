"""Writes the manual pages of `sfsc` and `sfsd`, one for each command, from what --help shows.

Run as ``python -m contrib.man_pages FOLDER``. The pages are in ``FOLDER/man1``, so that
``man -M FOLDER sfsc-get`` shows one. A wheel is built with them (`contrib.build_backend`).
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from click_man.man import ManPage

from protocol import VERSION
from sfsc.cli import group as client
from sfsd.cli import group as daemon

PROGRAMS: Final = {"sfsc": client, "sfsd": daemon}
_SENTENCE: Final = re.compile(r"(.+?\.)(?:\s|$)", re.DOTALL)
_EXAMPLE: Final = "Example: "


def pages(name: str, command: click.Command, above: click.Context | None = None) -> Iterator[Page]:
    """Yield the page of a command, then those of the commands in it."""
    ctx = click.Context(command, info_name=name, parent=above)
    inner = _commands(command, ctx)
    yield Page(ctx, inner)
    for inner_name, one in inner.items():
        yield from pages(inner_name, one, ctx)


def _commands(command: click.Command, ctx: click.Context) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {}
    found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return {name: one for name, one in found.items() if one is not None and not one.hidden}


class Page:
    """Manual page of one command: the name of its file, and its source in roff."""

    def __init__(self, ctx: click.Context, inner: dict[str, click.Command]) -> None:
        self.file_name = f"{ctx.command_path.replace(' ', '-')}.1"
        paragraphs = inspect.cleandoc(ctx.command.help or "").split("\n\n")
        text = [one for one in paragraphs if not one.startswith(_EXAMPLE)]
        page = ManPage(ctx.command_path)
        page.version = f"sfs {VERSION}"
        page.short_help = _roff(_first_sentence(ctx.command))
        page.synopsis = " ".join(ctx.command.collect_usage_pieces(ctx))
        page.description = _roff("\n\n".join(text))
        page.options = [
            (option, _roff(help_text))
            for one in ctx.command.get_params(ctx)
            if isinstance(one, click.Option)
            if (record := one.get_help_record(ctx)) is not None
            for option, help_text in [record]
        ]
        page.commands = [(name, _roff(_first_sentence(one))) for name, one in inner.items()]
        self.source = str(page)
        examples = [one.removeprefix(_EXAMPLE) for one in paragraphs if one.startswith(_EXAMPLE)]
        if examples:
            self.source += ".SH EXAMPLES\n" + "".join(f".PP\n{_roff(one)}\n" for one in examples)
        if ctx.parent is not None:
            above = ctx.parent.command_path.replace(" ", "\\-")
            self.source += f".SH SEE ALSO\n\\fB{above}\\fP(1)\n"


def _first_sentence(command: click.Command) -> str:
    found = _SENTENCE.match(inspect.cleandoc(command.help or ""))
    return "" if found is None else " ".join(found[1].split())


def _roff(text: str) -> str:
    """Return `text` with everything escaped that roff would take for an instruction."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


def write(folder: Path) -> int:
    """Write all pages into ``folder/man1``, without any that were there; return their number."""
    target = folder / "man1"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    count = 0
    for name, program in PROGRAMS.items():
        for page in pages(name, program):
            (target / page.file_name).write_text(page.source, encoding="utf-8")
            count += 1
    return count


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} manual pages in {sys.argv[1]}/man1")
