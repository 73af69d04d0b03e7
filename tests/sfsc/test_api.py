"""The public API: names, modules that are imported late, and a session with a simulated server."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import sfsc
import sfsc.aio
from sfsc import api
from sfsc.errors import SfscError
from sfsc.files.sharing import Grant
from sfsc.session.limits import Timeouts
from sfsc.store import Store
from tests.harness import REPOSITORY
from tests.sfsc.simulator import Simulator

KNOWN = {"Iterable", "Iterator", "Sequence", "Path", "None", "BufferedReader", "Passphrase"}
KNOWN |= {"PathLike", "BaseException", "Self"}
"""Types of the standard library in signatures, and of passphrases."""
QUICK = Timeouts(connect=30.0, opening=30.0, idle=30.0)

IMPORT_SFSC = """
import sys
sys.modules["typing_extensions"] = None  # msgspec imports it where a development tool needs it
before = set(sys.modules)
import sfsc
sfsc.connect  # imports what unlocks a keyring; the rest is imported while Argon2id runs
early = "sfsc.store" in sys.modules
sfsc.Store
names = {name.partition(".")[0] for name in set(sys.modules) - before}
# The runtimes of Cython and CFFI, which those two use.
built = {name for name in names if name.startswith(("_cffi", "_cython", "cython", "_openssl"))}
foreign = names - set(sys.stdlib_module_names) - built
print(" ".join(sorted(foreign)))
print(" ".join(name for name in ("cryptography.x509", "asyncio") if name in sys.modules))
print(early)
"""

WHOAMI = """
import sys, sfsc
sfsc.whoami
print("sfsc.store" in sys.modules, "sqlite3" in sys.modules)
"""


def test_whoami_imports_no_store() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHOAMI], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["False", "False"]


IMPORT_STORE = """
import sys
sys.modules["typing_extensions"] = None  # msgspec imports it where a development tool needs it
import sfsc.store
print(*(name for name, module in sys.modules.items() if module))
"""
COSTLY = {"asyncio", "concurrent", "dataclasses", "email", "inspect", "logging", "pickle"}
COSTLY |= {"random", "secrets", "selectors", "socket", "ssl", "subprocess", "tempfile", "traceback"}
"""Standard modules that take milliseconds to import and that few programs need before a login."""
LAZY = {
    *("account.devices", "account.enrol", "account.join", "account.lifecycle"),
    *("account.recover", "account.rotate", "account.compromise", "account.rewrap"),
    *("account.undo_attacker", "files.contacts", "files.history", "files.inbox", "files.rename"),
    *("files.shared_folders", "files.sharing", "files.tree", "keys.pem", "keys.pgp_words"),
    *("keys.recovery_code", "log.account_log", "log.audit", "log.receipts"),
    *("session.transport", "transfer.reader", "transfer.reencrypt", "trust.identity_chain"),
}
"""Modules of `sfsc` that are imported when they are first used."""


def test_a_store_imports_only_what_every_program_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_STORE],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(sfsc.__file__).parent.parent,
    )
    loaded = set(done.stdout.split())
    assert not loaded & (COSTLY | {f"sfsc.{name}" for name in LAZY})
    assert loaded >= {"sfsc.transfer.upload", "sfsc.transfer.download", "sfsc.files.listing"}
    for name in LAZY:  # a module that was renamed must be renamed here too
        assert find_spec(f"sfsc.{name}") is not None


def test_each_lazy_part_of_a_store_is_created_once(home: Path) -> None:
    parts = {name: part for name, part in vars(Store).items() if isinstance(part, cached_property)}
    assert "_rotation" in parts
    with sfsc.connect(home, timeouts=QUICK) as store:
        for name, declared in parts.items():
            part = getattr(store, name)
            assert getattr(store, name) is part
            assert type(part).__name__ == declared.func.__annotations__["return"]


IMPORT_NEEDED = """
import sys
from sfsc.api import _import_needed
_import_needed()
before = set(sys.modules)
from protocol.records.signatures import Label, SigningKey, verify_signature
key = SigningKey.from_seed(bytes(range(32)))
verify_signature(Label.LOGIN, b"", key.sign(Label.LOGIN, b""), key.public)
assert before == set(sys.modules)  # cryptography has loaded its backend too
print(*sys.modules)
"""


def test_the_modules_of_a_login_are_imported_while_argon2id_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_NEEDED], capture_output=True, check=True, text=True
    )
    assert set(done.stdout.split()) >= {"sfsc.store", "sfsc.session.transport", "sqlite3", "ssl"}


def test_import_sfsc_imports_few_modules() -> None:
    """Only cryptography and msgspec besides the standard library; no X.509 parser (64 ms)."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_SFSC],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(sfsc.__file__).parent.parent,
    )
    foreign, unwanted, early = done.stdout.split("\n")[:3]
    assert set(foreign.split()) == {"sfsc", "protocol", "cryptography", "msgspec"}
    assert unwanted == ""
    assert early == "False"


def test_every_public_name_exists() -> None:
    for name in sfsc.__all__:
        assert getattr(sfsc, name) is not None
        assert name in dir(sfsc)
    assert issubclass(sfsc.NotFound, sfsc.SfscError)


def test_the_table_of_public_names() -> None:
    """The table has every name of `__all__` except errors, with the module that defines it."""
    errors = {
        name
        for name, kind in vars(sfsc.errors).items()
        if isinstance(kind, type) and issubclass(kind, SfscError) and not name.startswith("_")
    }
    assert set(sfsc.__all__) == set(api.PUBLIC) | errors | {"__version__"}
    unions = {"Source", "Target", "Time", "Skip"}
    for name, module in api.PUBLIC.items():
        assert getattr(sfsc, name) is getattr(import_module(f"sfsc.{module}"), name)
        assert name in unions or getattr(sfsc, name).__module__ == f"sfsc.{module}"
    with pytest.raises(AttributeError):
        sfsc.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from sfsc import no_such_name  # type: ignore[attr-defined]  # noqa: F401


def test_the_documented_names_are_the_public_ones() -> None:
    page = (REPOSITORY / "docs" / "library.md").read_text("utf-8")
    errors, names = page.partition("## Errors")[2], page.partition("## Names")[2]
    table = errors.partition("## ")[0].partition("|---")[2]
    ours, _, aio = names.partition("In `sfsc.aio`:")
    listed = re.findall(r"`(\w+)`", table) + re.findall(r"`(\w+)`", ours)
    assert sorted({*listed}) == sorted(sfsc.__all__)
    assert len(set(listed)) >= len(listed) - 1, "only Store is named again"
    assert sorted(re.findall(r"`(\w+)`", aio)) == sorted(sfsc.aio.__all__)
    codes = dict(re.findall(r"\| `(\w+)` \| (\d) \|", table))
    for name, code in codes.items():
        assert getattr(sfsc, name).exit_code == int(code)
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
        for below in re.findall(r"`(\w+)`", row.split("|")[3]):
            assert issubclass(getattr(sfsc, below), getattr(sfsc, name))


def test_all_that_the_methods_return_is_public() -> None:
    public = {kind for name in sfsc.__all__ if isinstance(kind := getattr(sfsc, name), type)}
    for kind in (Store, sfsc.Transaction):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                hints = inspect.get_annotations(method)
                for word in re.findall(r"[A-Z]\w+", " ".join(map(str, hints.values()))):
                    assert word in KNOWN or getattr(sfsc, word) is not None, (name, word)
    assert sfsc.Put in public


def test_times_are_given_in_seconds_and_as_datetimes(home: Path) -> None:
    with sfsc.connect(home, timeouts=QUICK) as store:
        store.write_bytes("a", b"one")
        entry = store.stat("a")
        assert entry.created_at is not None
        assert entry.created_at.timestamp() == entry.created
        assert store.status().due_at == datetime.fromtimestamp(store.status().due, UTC)
        store.rm("a")
        (deleted,) = store.trash()
        assert deleted.deleted_at == datetime.fromtimestamp(deleted.deleted, UTC)
        early, late = (datetime.fromtimestamp(deleted.deleted + off, UTC) for off in (-9, 9))
        assert list(store.purge_trash(before=early)) == []
        assert [one.name for one in store.purge_trash(before=late)] == ["a"]
        with pytest.raises(sfsc.UsageError, match="time zone"):
            store.purge_trash(before=datetime(2027, 1, 1))  # noqa: DTZ001
    assert Grant("a", "bob", 0).expires_at is None


def test_contents_as_bytes_and_names_that_exist(home: Path) -> None:
    with sfsc.connect(home, timeouts=QUICK) as store:
        assert not store.exists("d/a")
        assert store.write_bytes("d/a", b"one").version == 1
        with pytest.raises(sfsc.ConflictError):
            store.write_bytes("d/a", b"two", expected=0)
        assert store.write_bytes("d/a", b"two").version == 2
        assert store.exists("d/a")
        assert (store.read_bytes("d/a"), store.read_bytes("d/a", version=1)) == (b"two", b"one")
        assert [one.entry.name for one in store.mv_tree("d", "e")] == ["e/a"]
        assert [one.entry.name for one in store.mv_tree("e/", "f/")] == ["f/a"]
        assert not store.exists("d/a")
        with pytest.raises(sfsc.UsageError):
            store.exists("")


def test_a_whole_session(server: Simulator, tmp_path: Path) -> None:
    home = tmp_path / "home"
    me = sfsc.enrol(server.invitation("ada"), home=home, key_type="x25519", passphrase="secret")
    assert (me.user, me.address, me.server_id) == ("ada", server.address, server.log.server_id)
    assert (me.generation, me.key_type, len(me.fingerprint)) == (1, "x25519", 32)
    assert sfsc.whoami(home, passphrase="secret") == me
    with sfsc.connect(home, passphrase=lambda: "secret", timeouts=QUICK) as store:
        assert store.whoami() == me
        assert store.put(io.BytesIO(b"one"), name="a").version == 1
        assert [done.name for done in store.put_many([(io.BytesIO(b""), "b")])] == ["b"]
        target = io.BytesIO()
        assert store.get("a", target).size == 3
        assert target.getvalue() == b"one"
        assert [entry.name for entry in store.ls()] == ["a", "b"]
        assert store.stat("a").size == 3
        assert store.rm("a").name == "a"
        with pytest.raises(sfsc.NotFound):
            store.stat("a")
        status = store.status()
        assert (status.user, status.server_id) == ("ada", server.log.server_id)
        assert status.log_size == server.log.size
        assert status.due <= status.expires
    store.close()


def test_a_closed_store(home: Path) -> None:
    with sfsc.connect(home, timeouts=QUICK) as store:
        pass
    with pytest.raises(sfsc.SfscError):
        store.stat("a")


def test_an_empty_passphrase_is_refused(server: Simulator, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(sfsc.UsageError):
        sfsc.enrol(server.invitation("ada"), home=home, passphrase="")
    assert not (home / "keyring").exists()


def test_a_missing_keyring(tmp_path: Path) -> None:
    for use in (sfsc.whoami, sfsc.connect):
        with pytest.raises(sfsc.KeyringError):
            use(tmp_path)


def test_a_store_that_cannot_connect_closes_its_state(server: Simulator, home: Path) -> None:
    real = server.welcome
    server.welcome = lambda _welcome: server.log.welcome(spki=bytes(32))
    with pytest.raises(sfsc.IntegrityError):
        sfsc.connect(home, timeouts=QUICK)
    server.welcome = real
    with sfsc.connect(home, timeouts=QUICK) as store:
        assert isinstance(store, Store)
