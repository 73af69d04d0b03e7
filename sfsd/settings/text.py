"""Texts made of the definition of the settings: the file that ``sfsd init`` writes, and the JSON
schema for editors."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from sfsd.settings.config import default, settings

_HEAD = """\
# Settings of this sfsd root. A line behind a # is a setting with its default value: remove the #,
# and the one before the [table] above it, to change it. `sfsd check-config` finds mistakes.
# Sizes: 1048576, "50 GiB"; durations: "90s", "15m", "12h", "7d"; numbers: 10000, "10k".
"""
_COLUMNS = 98


def initial_text(**stated: str) -> str:
    """Return a new sfsd.toml: every setting as a comment, except those `stated`, by full name.

    An empty value is not stated.
    """
    return "".join(_initial_lines(stated))


def _initial_lines(stated: dict[str, str]) -> Iterator[str]:
    yield _HEAD
    present = ""
    for name, setting in settings().items():
        table, _, key = name.rpartition(".")
        if table != present:
            present = table
            yield f"\n# [{table}]\n"
        yield "\n"
        yield from (f"## {line}\n" for line in textwrap.wrap(setting.text, _COLUMNS - 3))
        value = stated.get(name)
        hash_or_not = "" if value else "# "
        yield f"{hash_or_not}{key} = {setting.literal(value or default(name))}\n"


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 7) of sfsd.toml, for editors that complete and check TOML."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "sfsd.toml: settings of an sfsd daemon",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for name, setting in settings().items():
        table, _, key = name.rpartition(".")
        place = root
        if table:
            place = root["properties"].setdefault(
                table, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        place["properties"][key] = {
            "description": setting.text,
            "default": default(name),
            **setting.schema(),
        }
    return root
