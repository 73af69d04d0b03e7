"""Kinds of settings: what a value in TOML may be, and how it is read, checked and shown.

An instance describes one setting. It is metadata of the annotated fields in `sfsd.settings.config`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from protocol.codec.errors import MessageError, QuantityError
from protocol.codec.quantities import (
    COUNT_PATTERN,
    DURATION_PATTERN,
    PERCENT_PATTERN,
    RATE_PATTERN,
    SIZE_PATTERN,
    parse_count,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
)
from protocol.codec.values import Value
from protocol.records.invitation import parse_address
from sfsd.errors import ConfigError

DAY: Final = 86_400
ANY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104
"""Hosts that mean every address of this machine. No client can connect to them."""
_SIZES: Final = tuple((unit, 1024**power) for power, unit in enumerate(("", "K", "M", "G", "T")))
_DURATIONS: Final = (("d", DAY), ("h", 3600), ("m", 60), ("s", 1))


class Setting(Value):
    """A setting. `meaning` is the text for the documentation: sentences without markup. `zero` says
    what the value 0 means, if that is special. With `reload`, a daemon that runs takes a new value
    at SIGHUP; otherwise it must be restarted.

    `form` names the values in a word.
    """

    meaning: str
    zero: str = ""
    reload: bool = True
    form: ClassVar[str]

    @property
    def text(self) -> str:
        """The text for the documentation, with what 0 means."""
        return f"{self.meaning} 0: {self.zero}." if self.zero else self.meaning

    def read(self, value: object) -> int | str:
        """Return the setting's value for its `value` in TOML. Raises `ConfigError`."""
        raise NotImplementedError

    def literal(self, value: int | str) -> str:
        """Return a value of the setting as it is written in TOML."""
        return str(value)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the values in TOML. Where a bound depends on a unit in text,
        the schema accepts more than `read`."""
        raise NotImplementedError


class _Quantity(Setting):
    """A number from `least` to `most`. 0 is accepted too if it has a meaning, `zero`."""

    least: int = 0
    most: int = 10**6
    pattern: ClassVar[str]
    example: ClassVar[str]

    def read(self, value: object) -> int | str:
        try:
            number = self._number(value)
        except QuantityError as exc:
            raise ConfigError(exc.cause, exc.hint) from exc
        if not self.least <= number <= self.most and not (self.zero and number == 0):
            zero = "0 or " if self.zero and self.least else ""
            bounds = f"between {self._shown(self.least)} and {self._shown(self.most)}"
            raise ConfigError(f"not {zero}{bounds}")
        return number

    def schema(self) -> dict[str, Any]:
        least = 0 if self.zero else self.least
        number = {"type": "integer", "minimum": least, "maximum": self.most}
        text = {"type": "string", "pattern": f"^\\s*({self.pattern})\\s*$"}
        return {"anyOf": [number, text]}

    def _number(self, value: object) -> int:
        if isinstance(value, str):
            return self._parse(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ConfigError("not a whole number", f"write it like {self.example}")

    def _parse(self, text: str) -> int:
        raise NotImplementedError

    def _shown(self, value: int) -> str:
        return f"{value:,}"


class Count(_Quantity):
    """A number of things, such as connections."""

    form = "number"
    pattern = COUNT_PATTERN
    example = '10000 or "10k"'

    def _parse(self, text: str) -> int:
        return parse_count(text)


class Percent(_Quantity):
    """A percentage: ``10`` or ``"10%"``."""

    most: int = 100
    form = "percentage"
    pattern = PERCENT_PATTERN
    example = '10 or "10%"'

    def _parse(self, text: str) -> int:
        return parse_percent(text)

    def _shown(self, value: int) -> str:
        return f"{value}%"


class Size(_Quantity):
    """A number of bytes: ``1048576`` or ``"50 GiB"``."""

    most: int = 2**53
    form = "size"
    pattern = SIZE_PATTERN
    example = '1048576 or "50 GiB"'

    def literal(self, value: int | str) -> str:
        return f'"{self._shown(value)}"' if isinstance(value, int) and value else str(value)

    def _parse(self, text: str) -> int:
        return parse_size(text)

    def _shown(self, value: int) -> str:
        if value == self.most:
            return "8 PiB"
        unit, size = max((one for one in _SIZES if value % one[1] == 0), key=lambda one: one[1])
        return f"{value // size} {unit}iB" if unit and value else f"{value} bytes"


class Rate(Size):
    """A number of bytes a second: as a `Size`, and ``/s`` may follow."""

    form = "size"
    pattern = RATE_PATTERN

    def _parse(self, text: str) -> int:
        return parse_rate(text)


class Duration(_Quantity):
    """A duration: ``"90m"``, ``"7d"``, ``"1d 12h"``; the value counts `unit` seconds.

    The names of some settings say the unit. With `plain`, these take a number too. With `never`,
    the word ``"never"`` is 0.
    """

    unit: int = 1
    plain: bool = False
    never: bool = False
    form = "duration"
    pattern = DURATION_PATTERN
    example = '"90m" or "7d"'

    def literal(self, value: int | str) -> str:
        return str(value) if self.plain or not isinstance(value, int) else f'"{self._text(value)}"'

    def schema(self) -> dict[str, Any]:
        number, text = super().schema()["anyOf"]
        never = [{"const": "never"}] if self.never else []
        return {"anyOf": [number if self.plain else {"const": 0}, text, *never]}

    def _number(self, value: object) -> int:
        if type(value) is int and not self.plain and value:
            hint = f'write it as text with a unit, such as "{value}d"'
            raise ConfigError("a duration without a unit", hint)
        return super()._number(value)

    def _parse(self, text: str) -> int:
        seconds = 0 if self.never and text == "never" else parse_duration(text)
        if seconds % self.unit:
            raise ConfigError("not a whole number of days", "write it like 7d or 2w")
        return seconds // self.unit

    def _text(self, value: int) -> str:
        seconds = value * self.unit
        unit, length = next(one for one in _DURATIONS if seconds % one[1] == 0)
        return f"{seconds // length}{unit}"

    def _shown(self, value: int) -> str:
        return super()._shown(value) if self.plain else self._text(value)


class _Text(Setting):
    """A setting whose value is text."""

    def read(self, value: object) -> int | str:
        if not isinstance(value, str):
            raise ConfigError("not text", "put it into quotes")
        return self._checked(value)

    def literal(self, value: int | str) -> str:
        return f'"{value}"'

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def _checked(self, text: str) -> str:
        raise NotImplementedError


class Choice(_Text):
    """One of a few words."""

    choices: tuple[str, ...] = ()
    form = "word"

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.choices)}

    def _checked(self, text: str) -> str:
        if text not in self.choices:
            raise ConfigError(f"not a choice: {text[:40]!r}", f"use {', '.join(self.choices)}")
        return text


class ListenAddress(_Text):
    """A ``HOST:PORT`` to listen on; port 0 is any free port. With `optional`, it may be empty."""

    optional: bool = False
    form = "HOST:PORT"

    def _checked(self, text: str) -> str:
        return text if self.optional and not text else check_listen_address(text)


class PublicAddress(ListenAddress):
    """A ``HOST:PORT`` that clients connect to."""

    def _checked(self, text: str) -> str:
        return text if self.optional and not text else check_public_address(text)


def check_listen_address(address: str) -> str:
    """Return `address` if it is ``HOST:PORT`` (0: any free port). Raises `ConfigError`."""
    try:
        parse_address(address)
    except MessageError as exc:
        raise ConfigError(str(exc), "write it like 127.0.0.1:7373 or [::]:7373") from exc
    return address


def check_public_address(address: str) -> str:
    """Return `address` if it is a ``HOST:PORT`` that clients can connect to. Raises
    `ConfigError`."""
    host, port = parse_address(check_listen_address(address))
    if port == 0:
        raise ConfigError("no client can connect to port 0", "name the port that users reach")
    if host in ANY_ADDRESS:
        raise ConfigError(f"no client can connect to {host}", "name this machine as users reach it")
    return address
