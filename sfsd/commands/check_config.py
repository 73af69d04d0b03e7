"""`sfsd check-config`: report all mistakes in a file of settings."""

from __future__ import annotations

import json
from pathlib import Path

import click

from protocol.codec.terminal_text import counted
from protocol.codec.values import as_dict
from sfsd.commands import answer, answer_json, json_option, root_option
from sfsd.errors import ConfigError
from sfsd.settings import config, text


@click.command()
@root_option
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--schema", is_flag=True, help="Print the JSON schema for editors instead.")
@json_option
def command(root: Path, file: Path | None, schema: bool, as_json: bool) -> None:
    """Check FILE, by default sfsd.toml of the root, and print every mistake with its line.

    Unknown tables and settings, values that are not accepted, and settings that contradict each
    other end with exit code 1. Nothing is changed, and a daemon that runs is not asked.

    Example: sfsd check-config --root /srv/sfs

    Example: sfsd check-config --schema > sfsd.schema.json
    """
    if schema:
        click.echo(json.dumps(text.schema(), indent=2))
        return
    path = (file or root / config.FILE_NAME).absolute()
    problems = config.problems_in(config.read_file(path))
    if as_json:
        answer_json({"file": str(path), "errors": [as_dict(one) for one in problems]})
    else:
        for one in problems:
            answer(f"{path}, {one}{f' ({one.hint})' if one.hint else ''}")
    if problems:
        hint = "correct these lines; docs/operating.md lists all settings"
        raise ConfigError(f"{counted(len(problems), 'error')} in {path}", hint)
    if not as_json:
        answer(f"{path}: no errors")
