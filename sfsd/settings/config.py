"""Settings of the operator: ``ROOT/sfsd.toml``.

Each setting is one annotated field below: its default, what it accepts and what it means. The file
that ``sfsd init`` writes and the JSON schema for editors are made of these (`sfsd.settings.text`),
and a test compares docs/operating.md with them. An unknown name is an error: a mistyped limit would
silently not apply.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Self, get_args, get_origin, get_type_hints

from protocol.codec.terminal_text import counted
from protocol.codec.values import Value, field
from sfsd.errors import ConfigError
from sfsd.settings.kinds import (
    DAY,
    Choice,
    Count,
    Duration,
    ListenAddress,
    Percent,
    PublicAddress,
    Rate,
    Setting,
    Size,
)
from sfsd.settings.toml_lines import Statement, SyntaxProblem, read_statements

FILE_NAME: Final = "sfsd.toml"
MAX_CONFIG: Final = 64 * 1024
LEAST_BYTES: Final = 64 * 1024
"""Least limit on a user's bytes a second. With a lower one, clients would time out."""
_LONGEST_LIFE: Final = 730 * DAY
"""Clients limit the lifetime of a key to 2 years."""
_PARTS: Final = (
    ("limits.unauthenticated_per_address", "limits.unauthenticated"),
    ("limits.connections_per_address", "limits.connections"),
    ("limits.user_connections", "limits.connections"),
)
"""Limits on a part of something, and the limit on all of it."""


class ConnectionLimits(Value):
    """Table ``[limits]``: seconds, numbers of connections, and `rotations` per account in 30 days.

    Statements that keep the keys may be twice as many as `rotations`. `user_shared_files` are those
    that one user can share with one other user. `user_requests_per_second`,
    `user_bytes_per_second` and `user_log_lines_per_day` are 0 for no limit.
    """

    login_seconds: Annotated[
        int,
        Duration("Time for the TLS handshake and the login together.", least=1, plain=True),
    ] = 10
    unauthenticated: Annotated[
        int,
        Count(
            "Connections that have not logged in, in total: half of them before the TLS handshake "
            "is done, half after it. One more closes the oldest one of the address that has the "
            "most.",
            least=1,
        ),
    ] = 256
    unauthenticated_per_address: Annotated[
        int,
        Count(
            "The same, from one address (IPv6: one /64 network). One more closes the oldest one of "
            "that address.",
            least=1,
        ),
    ] = 64
    connections: Annotated[
        int,
        Count(
            "Connections that have logged in. Users cannot take the last 4, so that the operator "
            "can log in. Together with unauthenticated at most a quarter of the file descriptors "
            "that the system allows the daemon, whatever is set.",
            least=1,
        ),
    ] = 512
    connections_per_address: Annotated[
        int,
        Count(
            "Connections of users that have logged in, from one address. A login beyond it is "
            "answered with busy.",
            least=1,
        ),
    ] = 64
    idle_seconds: Annotated[
        int,
        Duration("A connection without a request is closed after this time.", least=1, plain=True),
    ] = 600
    write_seconds: Annotated[
        int,
        Duration(
            "A client that accepts no bytes of a reply is disconnected after this time.",
            least=1,
            plain=True,
        ),
    ] = 60
    rotations: Annotated[
        int,
        Count(
            "Key rotations that one account may begin within 30 days. Twice as many statements may "
            "keep its keys (new devices, recovery keys); a fifth as many may be recoveries.",
            least=1,
        ),
    ] = 40
    user_shared_files: Annotated[
        int,
        Count(
            "Files that one user can share with one other user. So nobody can fill somebody else's "
            "inbox, or the disk's inode table with its entries.",
            least=1,
        ),
    ] = 10_000
    user_connections: Annotated[
        int,
        Count(
            "Connections of one user that have logged in. A login beyond it is answered with busy.",
            least=1,
        ),
    ] = 32
    user_requests_per_second: Annotated[
        int,
        Count(
            "Requests of one user, over all connections of the user. Further ones wait, and "
            "nothing more is read from their connection. A user who was idle may send those of one "
            "second at once.",
            zero="no limit",
        ),
    ] = 0
    user_bytes_per_second: Annotated[
        int,
        Rate(
            "Bytes that one user sends and receives, over all connections; as above. Use at least "
            "1 MiB for users with many connections, whose clients would wait longer than their 120 "
            "seconds.",
            least=LEAST_BYTES,
            zero="no limit",
        ),
    ] = 0
    user_log_lines_per_day: Annotated[
        int,
        Count(
            "Lines that the changes of one user add to the log, and as many that the user's logins "
            "add: about 9 GB each, for the log is never cut. A user who was idle may add those of "
            "one day at once. Beyond it, changes and logins are answered with busy and the time to "
            "wait. Key statements and rotations are not counted here but in rotations, and the "
            "operator has no limit.",
            most=10**9,
            zero="no limit",
        ),
    ] = 10_000_000


class RotationPolicy(Value):
    """Table ``[rotation]``: `max_age` and `grace` in seconds, `jitter` in percent of max_age."""

    max_age: Annotated[
        int,
        Duration(
            "Age at which a user's keys are due for rotation. 1 to 730 days.",
            least=DAY,
            most=_LONGEST_LIFE,
        ),
    ] = 90 * DAY
    grace: Annotated[
        int,
        Duration(
            "Time after that in which the user may still write. Then only reads, a rotation, rm, "
            "rm --purge and unshare are allowed. At most 730 days.",
            most=_LONGEST_LIFE,
        ),
    ] = 30 * DAY
    jitter: Annotated[
        int,
        Percent(
            "Random part of max_age by which keys are due earlier, so that not all users rotate on "
            "one day."
        ),
    ] = 10


class RetentionPolicy(Value):
    """Table ``[retention]``: what is removed automatically; 0 keeps everything.

    Content is removed of files deleted `trash_days` days ago, and of all but the newest `versions`.
    """

    trash_days: Annotated[
        int,
        Duration(
            "The content of files deleted this long ago is removed. At most 36,500 days.",
            most=36_500,
            zero="nothing is removed",
            unit=DAY,
            plain=True,
        ),
    ] = 0
    versions: Annotated[
        int,
        Count(
            "The content of all but this many newest versions of a file is removed.",
            zero="nothing is removed",
        ),
    ] = 0


class HealthBounds(Value):
    """Table ``[health]``: `checkpoint_age` in seconds, `free_space` in bytes, `free_files`."""

    checkpoint_age: Annotated[
        int,
        Duration(
            "sfsd status --check fails if the log has had entries for longer than this that no "
            "stored checkpoint signs for. An idle log is healthy. 1 second to 30 days.",
            least=1,
            most=30 * DAY,
        ),
    ] = 60
    free_space: Annotated[int, Size("It fails if a disk of the root has less room.")] = 1024**3
    free_files: Annotated[
        int,
        Count(
            "It fails if fewer files can be created on a disk of the root. Does not apply to a "
            "file system without such a limit.",
            most=10**12,
        ),
    ] = 10_000


class MetricsSettings(Value):
    """Table ``[metrics]``: `listen` is the address of the metrics, "" to serve none."""

    listen: Annotated[
        str,
        ListenAddress(
            "Address at which /metrics and /healthz are served over HTTP, such as 127.0.0.1:9373. "
            "If it is empty, nothing is served. Needs the extra metrics.",
            optional=True,
            reload=False,
        ),
    ] = ""


class LogSettings(Value):
    """Table ``[log]``: the daemon's messages on stderr, which are not the audit log."""

    format: Annotated[
        str,
        Choice(
            "Form of the daemon's messages: text, or json for one JSON object a line. The option "
            "--log-format and SFSD_LOG_FORMAT override it.",
            choices=("text", "json"),
            reload=False,
        ),
    ] = "text"
    level: Annotated[
        str,
        Choice(
            "Least level of the messages that are written: debug, info, warning or error. The "
            "option --log-level and SFSD_LOG_LEVEL override it.",
            choices=("debug", "info", "warning", "error"),
        ),
    ] = "info"


class ScrubPolicy(Value):
    """Table ``[scrub]``: `every` in seconds, 0 for never; `rate` in bytes a second."""

    every: Annotated[
        int,
        Duration(
            "How often every file of the store is compared with the log. A pass that takes longer "
            "is followed by the next. The word never is the same as 0.",
            least=3600,
            most=_LONGEST_LIFE,
            zero="only if sfsd scrub --now asks for it",
            never=True,
        ),
    ] = 7 * DAY
    rate: Annotated[
        int,
        Rate(
            "The most bytes that it reads in one second. Each file counts as 128 KiB more than it "
            "has.",
            least=LEAST_BYTES,
        ),
    ] = 20 * 1024**2


class Config(Value):
    """Settings of one root. `quota` is the bytes of a user added without --quota; 0: no limit."""

    listen: Annotated[
        str,
        ListenAddress(
            "Address that serve listens on. The option --listen overrides it. Port 0 takes a free "
            "port, and [::] is every address of the machine, IPv4 and IPv6.",
            reload=False,
        ),
    ] = "127.0.0.1:7373"
    public: Annotated[
        str,
        PublicAddress(
            "Address that invitations name. If it is empty, invitations name the address that the "
            "daemon listens on, which is refused if that is 0.0.0.0 or [::].",
            optional=True,
        ),
    ] = ""
    quota: Annotated[
        int,
        Size(
            "Quota of users who are invited from now on without --quota.",
            zero="no limit",
        ),
    ] = 0
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    rotation: RotationPolicy = field(default_factory=RotationPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    health: HealthBounds = field(default_factory=HealthBounds)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    scrub: ScrubPolicy = field(default_factory=ScrubPolicy)

    def get(self, name: str) -> int | str:
        """Return the value of the setting with a full name, such as ``limits.connections``."""
        table, _, key = name.rpartition(".")
        value: int | str = getattr(getattr(self, table) if table else self, key)
        return value

    def with_value(self, name: str, value: int | str) -> Self:
        """Return a copy in which the setting with a full name has that value."""
        table, _, key = name.rpartition(".")
        if not table:
            return self.__replace__(**{key: value})
        return self.__replace__(**{table: getattr(self, table).__replace__(**{key: value})})

    @classmethod
    def load(cls, root: Path) -> Self:
        """Load the settings of `root`. Raises `ConfigError`, also if there is no root."""
        return cls.read(root / FILE_NAME)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Load a file of settings. Raises `ConfigError`, for the first problem in it."""
        raw = read_file(path)
        try:
            return cls.parse(raw)
        except ConfigError as exc:
            raise ConfigError(f"{path.absolute()}, {exc.cause}", exc.hint) from exc

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a TOML document of at most 64 KiB. Raises `ConfigError` for the first problem."""
        values, problems = _examine(raw)
        if problems:
            first, *others = problems
            more = f" (and {counted(len(others), 'further error')}: see `sfsd check-config`)"
            raise ConfigError(f"{first}{more if others else ''}", first.hint)
        tables: dict[str, Any] = {
            name: made(**values[name]) for name, made in _tables().items() if name
        }
        return cls(**values[""], **tables)


class Problem(Value):
    """An error in a document. `line` counts from 1; `setting` is the full name of the setting or
    table, empty if there is none; `hint` may be None."""

    line: int
    setting: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.setting and self.setting + ': '}{self.message}"


def read_file(path: Path) -> bytes:
    """Return the bytes of a file of settings, at most `MAX_CONFIG` + 1. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONFIG + 1)
    except FileNotFoundError as exc:
        if path.name != FILE_NAME:
            raise ConfigError(f"no such file: {path.absolute()}") from exc
        hint = "make one with `sfsd init`, or name it with --root or SFSD_ROOT"
        raise ConfigError(f"no sfsd root at {path.absolute().parent}", hint) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read {path.absolute()}: {exc.strerror}") from exc


def problems_in(raw: bytes) -> list[Problem]:
    """Return all errors of a document, by line."""
    return _examine(raw)[1]


@cache
def settings() -> Mapping[str, Setting]:
    """Return every setting by its full name, such as ``limits.connections``, in order."""
    found: dict[str, Setting] = {}
    for table, made in _tables().items():
        for name, hint in get_type_hints(made, include_extras=True).items():
            if get_origin(hint) is Annotated:
                found[f"{table}.{name}" if table else name] = get_args(hint)[1]
    return found


def default(name: str) -> int | str:
    """Return the default of the setting with a full name."""
    return Config().get(name)


@cache
def _tables() -> Mapping[str, type[Value]]:
    """Return the class of each table by its name; that of the top level is empty."""
    made = get_type_hints(Config)
    tables = {name: made[name] for name in Config.__struct_fields__ if name in made}
    return {"": Config} | {
        name: hint
        for name, hint in tables.items()
        if isinstance(hint, type) and issubclass(hint, Value)
    }


def _examine(raw: bytes) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return the values that a document states, by table, and all of its errors, by line."""
    examined = _Examination()
    if len(raw) > MAX_CONFIG:
        return {}, [Problem(1, "", f"longer than {MAX_CONFIG} bytes")]
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        return {}, [Problem(line, "", "not TOML: not UTF-8", "save the file as UTF-8")]
    for one in read_statements(text):
        if isinstance(one, SyntaxProblem):
            examined.problems.append(Problem(one.line, "", f"not TOML: {one.cause}"))
        elif one.is_header:
            examined.take_header(one)
        else:
            examined.take_setting(one)
    examined.compare()
    if not examined.problems:
        try:
            tomllib.loads(text)  # the last word: what is left are names that are used twice
        except (tomllib.TOMLDecodeError, RecursionError) as exc:
            examined.problems.append(Problem(1, "", f"not TOML: {exc}"))
    return examined.values, sorted(examined.problems, key=lambda one: one.line)


class _Examination:
    """Values and errors of a document, statement by statement."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {table: {} for table in _tables()}
        self.problems: list[Problem] = []
        self._lines: dict[str, int] = {}
        self._unknown_tables: set[str] = set()

    def take_header(self, one: Statement) -> None:
        """Note a table, or that there is no such table."""
        name = ".".join(one.path)
        header = f"[{name}]"
        known = [table for table in _tables() if table]
        if name not in known:
            self._unknown_tables.add(name)
            near = _nearest(name, known)
            tables = ", ".join(f"[{table}]" for table in known)
            hint = f"did you mean [{near}]?" if near else f"the tables are {tables}"
            self._add(one.line, header[:60], "unknown table", hint)
        elif one.is_list:
            self._add(one.line, name, "not a table", f"write it as {header}")
        elif header in self._lines:
            hint = "put all settings of the table below one line"
            self._add(one.line, header, f"is in line {self._lines[header]} too", hint)
        else:
            self._lines[header] = one.line

    def take_setting(self, one: Statement) -> None:
        """Note the value of a setting, or what is wrong with it."""
        name, table, key = ".".join(one.path), ".".join(one.path[:-1]), one.path[-1]
        if table in self._unknown_tables:
            return  # was reported
        if not table and one.commented_table and f"{one.commented_table}.{key}" in settings():
            hint = f"remove the # before [{one.commented_table}] too, or put the line further up"
            self._add(one.line, name, "the line above that names its table is a comment", hint)
        elif name in _tables():
            if one.value != {}:
                hint = f"write it as a line [{name}] above its settings"
                self._add(one.line, name, "not a table", hint)
        elif name not in settings():
            self._add(one.line, name[:60], "unknown setting", _suggestion(table, key))
        elif name in self._lines:
            self._add(one.line, name, f"is set in line {self._lines[name]} too", "remove one")
        else:
            self._lines[name] = one.line
            try:
                self.values[table][key] = settings()[name].read(one.value)
            except ConfigError as exc:
                self._add(one.line, name, exc.cause, exc.hint)

    def compare(self) -> None:
        """Note settings that cannot have the effect that they state, because of another."""
        for part, total in _PARTS:
            if (stated := self._stated(part)) is not None and stated > (most := self._value(total)):
                hint = f"{total} is {most:,}, and counts these too: raise it, or lower this"
                self._add(self._lines[part], part, f"more than {total}", hint)
        lives = self._value("rotation.max_age") + self._value("rotation.grace")
        if self._stated("rotation.grace") is not None and lives > _LONGEST_LIFE:
            cause = "more than 730 days together with rotation.max_age"
            hint = "clients let no key live longer: lower one of them"
            self._add(self._lines["rotation.grace"], "rotation.grace", cause, hint)

    def _stated(self, name: str) -> int | None:
        table, _, key = name.rpartition(".")
        value: int | None = self.values[table].get(key)
        return value

    def _value(self, name: str) -> int:
        stated = self._stated(name)
        return int(default(name)) if stated is None else stated

    def _add(self, line: int, name: str, cause: str, hint: str | None) -> None:
        self.problems.append(Problem(line, name, cause, hint))


def _suggestion(table: str, key: str) -> str:
    """Return what the operator may have meant by an unknown setting."""
    names = list(settings())
    places = [name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == key]
    if places:
        below = f"below a line [{places[0]}]" if places[0] else "above the first [table]"
        return f"it belongs {below}"
    near = _nearest(f"{table}.{key}" if table else key, names) or _nearest(
        key, [name.rpartition(".")[2] for name in names]
    )
    return f"did you mean {near}?" if near else "docs/operating.md lists all settings"


def _nearest(name: str, names: list[str]) -> str | None:
    from difflib import get_close_matches  # takes a few ms, and only a mistake needs it

    return next(iter(get_close_matches(name[:100], names, 1)), None)
