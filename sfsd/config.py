"""Settings of the operator: ``ROOT/sfsd.toml``. Every key has a default.

::

    listen = "127.0.0.1:7373"  # where `serve` binds when no --listen is given
    public = "files.example:7373"  # what invitations tell users to connect to
    quota = "50 GiB"  # of a new user; "0" is no limit

    [limits]  # against floods and stuck clients
    login_seconds = 10  # TLS handshake and login together
    unauthenticated = 256  # connections before login, in total and of one address
    unauthenticated_per_address = 64
    connections = 512  # connections after login, in total, of one address and of one user
    connections_per_address = 64
    user_connections = 32
    user_requests_per_second = 0  # of one user; 0 is no limit
    user_bytes_per_second = "0"  # in both directions together
    user_log_lines_per_day = 10000000  # of changes, and as many of logins; 0 is no limit
    idle_seconds = 600  # without a request
    write_seconds = 60  # without reading its answers
    rotations = 40  # begun by one account within 30 days
    user_shared_files = 10000  # that one user can share with one other user

    [rotation]  # policy for users' keys
    max_age = "90d"
    grace = "30d"
    jitter = 10  # percent of max_age

    [retention]  # removed automatically; 0: nothing
    trash_days = 0  # content of files deleted that many days ago
    versions = 0  # all but that many newest versions of a file

    [health]  # when `sfsd status --check` and /healthz fail
    checkpoint_age = "1m"  # entries of the log that long without a stored checkpoint
    free_space = "1 GiB"  # less room on a disk of the root
    free_files = 10000  # fewer files that can still be created there

An unknown key is an error: a mistyped limit would silently not apply.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from protocol.codec.errors import MessageError
from protocol.codec.values import Value, field
from protocol.records.invitation import parse_address
from sfsd.errors import ConfigError

FILE_NAME = "sfsd.toml"
MAX_CONFIG = 64 * 1024
LEAST_BYTES = 64 * 1024
"""Least limit on a user's bytes a second. With a lower one, clients would time out."""
DAY = 86_400

_T = TypeVar("_T")
_SIZE = re.compile(r"(\d{1,16})\s*(?:([KMGTP])i?B?|B)?", re.IGNORECASE)
_UNITS = {unit: 1024**power for power, unit in enumerate("KMGTP", 1)}
_DURATION = re.compile(r"(\d{1,9})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_MAX_SIZE = 2**53


def parse_size(text: str) -> int:
    """Parse ``1048576``, ``50G`` or ``50 GiB`` (powers of 1024) to bytes. Raises `ConfigError`."""
    matched = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    size = int(matched[1]) * _UNITS.get((matched[2] or "").upper(), 1) if matched else _MAX_SIZE + 1
    if size > _MAX_SIZE:
        raise ConfigError(f"not a size: {text[:40]!r}", "write it like 500M or 50 GiB")
    return size


def parse_duration(text: str) -> int:
    """Parse ``90s``, ``15m``, ``12h``, ``7d`` or ``2w`` to seconds. Raises `ConfigError`."""
    matched = _DURATION.fullmatch(text.strip()) if text.isascii() else None
    if matched is None or int(matched[1]) * _SECONDS[matched[2]] > 100 * 366 * DAY:
        raise ConfigError(f"not a duration: {text[:40]!r}", "write it like 12h or 7d")
    return int(matched[1]) * _SECONDS[matched[2]]


_LARGE = ("user_bytes_per_second", "user_log_lines_per_day")


class ConnectionLimits(Value):
    """Table ``[limits]``: seconds, numbers of connections, and `rotations` per account in 30 days.

    Statements that keep the keys may be twice as many as `rotations`. `user_shared_files` are those
    that one user can share with one other user. `user_requests_per_second`,
    `user_bytes_per_second` and `user_log_lines_per_day` are 0 for no limit; each other limit is at
    least 1.
    """

    login_seconds: int = 10
    unauthenticated: int = 256
    unauthenticated_per_address: int = 64
    connections: int = 512
    connections_per_address: int = 64
    idle_seconds: int = 600
    write_seconds: int = 60
    rotations: int = 40
    user_shared_files: int = 10_000
    user_connections: int = 32
    user_requests_per_second: int = 0
    user_bytes_per_second: int = 0
    user_log_lines_per_day: int = 10_000_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            least = 0 if name.endswith("_per_second") else 1
            if name in _LARGE:
                continue
            if not least <= getattr(self, name) <= 10**6:
                raise ConfigError(f"limits.{name} is not between {least} and 1,000,000")
        if not 0 <= self.user_log_lines_per_day <= 10**9:
            raise ConfigError("limits.user_log_lines_per_day is not between 0 and 1,000,000,000")
        if 0 < self.user_bytes_per_second < LEAST_BYTES:
            raise ConfigError(f"limits.user_bytes_per_second is not 0 or at least {LEAST_BYTES}")


class RotationPolicy(Value):
    """Table ``[rotation]``: `max_age` and `grace` in seconds, `jitter` in percent of max_age."""

    max_age: int = 90 * DAY
    grace: int = 30 * DAY
    jitter: int = 10

    def __post_init__(self) -> None:
        # A client limits a statement's lifetime to between 1 day and 2 years.
        if not DAY <= self.max_age <= 730 * DAY or not 0 <= self.grace <= 730 * DAY:
            raise ConfigError("rotation.max_age is 1 to 730 days, rotation.grace at most 730")
        if not 0 <= self.jitter <= 100:
            raise ConfigError("rotation.jitter is 0 to 100 percent")


class RetentionPolicy(Value):
    """Table ``[retention]``: what is removed automatically; 0 keeps everything.

    Content is removed of files deleted `trash_days` days ago, and of all but the newest `versions`.
    """

    trash_days: int = 0
    versions: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.trash_days <= 36_500 or not 0 <= self.versions <= 10**6:
            raise ConfigError(
                "retention.trash_days is 0 to 36,500, retention.versions to 1,000,000"
            )


class HealthBounds(Value):
    """Table ``[health]``: `checkpoint_age` in seconds, `free_space` in bytes, `free_files`."""

    checkpoint_age: int = 60
    free_space: int = 1024**3
    free_files: int = 10_000

    def __post_init__(self) -> None:
        if not 1 <= self.checkpoint_age <= 30 * DAY:
            raise ConfigError("health.checkpoint_age is not between 1 second and 30 days")
        if not 0 <= self.free_files <= 10**12:
            raise ConfigError("health.free_files is not between 0 and 10^12")


class Config(Value):
    """Settings of one root. `quota` is the bytes of a user added without --quota; 0: no limit."""

    listen: str = "127.0.0.1:7373"
    public: str = ""
    quota: int = 0
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    rotation: RotationPolicy = field(default_factory=RotationPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    health: HealthBounds = field(default_factory=HealthBounds)

    def __post_init__(self) -> None:
        _with_name("listen", lambda: check_listen_address(self.listen))
        if self.public:
            _with_name("public", lambda: check_public_address(self.public))

    @classmethod
    def load(cls, root: Path) -> Self:
        """Load the settings of `root`. Raises `ConfigError`, also if there is no root."""
        path = root / FILE_NAME
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_CONFIG + 1)
        except FileNotFoundError as exc:
            hint = "make one with `sfsd init`, or name it with --root or SFSD_ROOT"
            raise ConfigError(f"no sfsd root at {root}", hint) from exc
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
        try:
            return cls.parse(raw)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc.cause}", exc.hint) from exc

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a TOML document of at most 64 KiB. Raises `ConfigError`."""
        if len(raw) > MAX_CONFIG:
            raise ConfigError(f"longer than {MAX_CONFIG} bytes")
        try:
            document = tomllib.loads(raw.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ConfigError(f"not TOML: {exc}") from exc
        values: dict[str, dict[str, Any]] = {table: {} for table in ("", *_TABLES)}
        for name, value in _flattened(document):
            table, _, key = name.rpartition(".")
            values[table][key] = _converted(name, value)
        return cls(
            **values[""],
            limits=ConnectionLimits(**values["limits"]),
            rotation=RotationPolicy(**values["rotation"]),
            retention=RetentionPolicy(**values["retention"]),
            health=HealthBounds(**values["health"]),
        )


def check_listen_address(address: str) -> str:
    """Return `address` if it is ``HOST:PORT`` (0: any free port). Raises `ConfigError`."""
    try:
        parse_address(address)
    except MessageError as exc:
        raise ConfigError(str(exc)) from exc
    return address


def check_public_address(address: str) -> str:
    """Return `address` if it is ``HOST:PORT`` with a port that is not 0. Raises `ConfigError`."""
    if parse_address(check_listen_address(address))[1] == 0:
        raise ConfigError("no client can connect to port 0")
    return address


def initial_text(public: str) -> str:
    """Return the file that `init` writes: the public address, if given, and a pointer to docs."""
    stated = f'public = "{public}"\n' if public else '# public = "HOST:PORT"\n'
    return f"# Settings of this sfsd root; docs/format.md lists them all.\n{stated}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError("not text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError("not a whole number")
    return value


def _size(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MAX_SIZE else parse_size(_text(value))


_SETTINGS: dict[str, Callable[[object], str | int]] = {
    "listen": _text,
    "public": _text,
    "quota": _size,
    **{f"limits.{name}": _number for name in ConnectionLimits.__struct_fields__},
    "limits.user_bytes_per_second": _size,
    "rotation.max_age": lambda value: parse_duration(_text(value)),
    "rotation.grace": lambda value: parse_duration(_text(value)),
    "rotation.jitter": _number,
    "retention.trash_days": _number,
    "retention.versions": _number,
    "health.checkpoint_age": lambda value: parse_duration(_text(value)),
    "health.free_space": _size,
    "health.free_files": _number,
}
"""Parser of the TOML value of each setting, by its full name."""
_TABLES = ("limits", "rotation", "retention", "health")


def _flattened(document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the settings of a document by full name; an unknown table is yielded whole."""
    for name, value in document.items():
        if isinstance(value, dict) and name in _TABLES:
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _converted(name: str, value: object) -> str | int:
    convert = _SETTINGS.get(name)
    if convert is None and name in _TABLES:
        raise ConfigError(f"{name}: not a table", f"write it as a line [{name}] above its settings")
    if convert is None:
        raise ConfigError(f"unknown setting {name[:60]!r}", "docs/format.md lists them all")
    return _with_name(name, lambda: convert(value))


def _with_name(name: str, read: Callable[[], _T]) -> _T:
    """Return `read()`. Prefixes the setting's `name` to the cause of a `ConfigError`."""
    try:
        return read()
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc.cause}", exc.hint) from exc
