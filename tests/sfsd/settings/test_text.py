"""The file that `sfsd init` writes, and the JSON schema, follow the definition of the settings."""

from __future__ import annotations

import re
import tomllib

import jsonschema
import pytest

from sfsd.settings.config import Config, default, problems_in, settings
from sfsd.settings.text import initial_text, schema


def test_initial_text_lists_every_setting_with_its_default() -> None:
    lines = initial_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    assert all(len(line) <= 100 for line in lines)
    live = "\n".join(line.removeprefix("# ") for line in lines[3:] if not line.startswith("## "))
    stated = tomllib.loads(live)
    names = {name if not isinstance(one, dict) else f"{name}.{key}"
             for name, one in stated.items()
             for key in (one if isinstance(one, dict) else [""])}  # fmt: skip
    assert names == set(settings())
    parsed = re.sub('public = ""', "", live)
    assert Config.parse(parsed.encode()) == Config()


@pytest.mark.parametrize("appended", ['public = "here:1"\n', "[limits]\nrotations = 40\n"])
def test_lines_may_be_appended_to_the_initial_text(appended: str) -> None:
    assert problems_in((initial_text() + appended).encode()) == []


def test_stated_values() -> None:
    text = initial_text(public="files.example:7373", listen="")
    assert Config.parse(text.encode()) == Config(public="files.example:7373")


VALIDATOR = jsonschema.Draft7Validator(schema())


def test_schema_is_one_and_has_every_setting() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    for name in settings():
        place = schema()
        for part in name.split("."):
            place = place["properties"][part]
        assert place["description"]
        assert place["default"] == default(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'quota = "50 GiB"',
        "quota = 5\n[limits]\nidle_seconds = 10",
        '[limits]\nidle_seconds = "10 min"\nuser_bytes_per_second = "1M/s"\nrotations = "1k"',
        '[rotation]\nmax_age = "1w 2d"\ngrace = 0\njitter = "5%"',
    ],
)
def test_schema_accepts_what_is_accepted(text: str) -> None:
    assert problems_in(text.encode()) == []
    assert list(VALIDATOR.iter_errors(tomllib.loads(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        'quota = "50 horses"',
        "lisen = 1",
        "[limit]\nx = 1",
        "[limits]\nidle_seconds = 0",
        "[limits]\nidle_seconds = true",
        "[rotation]\nmax_age = 90",
        "listen = 5",
    ],
)
def test_schema_refuses_what_is_refused(text: str) -> None:
    assert problems_in(text.encode())
    assert list(VALIDATOR.iter_errors(tomllib.loads(text)))
