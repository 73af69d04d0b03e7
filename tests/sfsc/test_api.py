"""The library's face: what a script sees, and what it costs to import."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import sfsc
from sfsc import api
from sfsc.api import Store
from sfsc.session.limits import Timeouts
from tests.sfsc.lying import Simulator

QUICK = Timeouts(connect=30.0, opening=30.0, idle=30.0)

LOADED = """
import sys
before = set(sys.modules)
import sfsc
sfsc.connect  # what unlocks is loaded when it is first touched, and the rest beside Argon2id
early = "sfsc.store" in sys.modules
sfsc.Store
names = {name.partition(".")[0] for name in set(sys.modules) - before}
# What those two are built of: Cython's and CFFI's runtime.
built = {name for name in names if name.startswith(("_cffi", "_cython", "cython", "_openssl"))}
foreign = names - set(sys.stdlib_module_names) - built
print(" ".join(sorted(foreign)))
print(" ".join(name for name in ("cryptography.x509", "asyncio") if name in sys.modules))
print(early)
"""

WHO = """
import sys, sfsc
sfsc.whoami
print("sfsc.store" in sys.modules, "sqlite3" in sys.modules)
"""


def test_who_one_is_needs_no_store() -> None:
    done = subprocess.run([sys.executable, "-c", WHO], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]


RARE = """
import sys, sfsc.api
print(*sys.modules)
"""
COSTLY = {"asyncio", "concurrent", "dataclasses", "email", "inspect", "logging", "pickle"}
COSTLY |= {"random", "secrets", "selectors", "socket", "ssl", "subprocess", "tempfile", "traceback"}
"""What the standard library takes milliseconds to load, and few programs need or who connects."""
ROOMS = {"accounts", "adoption", "audit", "codes", "devices", "enrolment", "folders"}
ROOMS |= {"identities", "inbox", "moves", "own_log", "pem", "people", "proofs", "reading"}
ROOMS |= {"recovery", "reencryption", "renaming", "repair", "rewrapping", "rotation", "sharing"}
ROOMS |= {"theft", "transport", "trees", "versions", "words", "wraps"}
"""Of `sfsc`, what is loaded when somebody asks for it."""


def test_what_few_need_is_not_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RARE],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(sfsc.__file__).parent.parent,
    )
    loaded = set(done.stdout.split())
    assert not loaded & (COSTLY | {f"sfsc.{name}" for name in ROOMS})
    # What every program needs that opens a store; beside Argon2id, where it has a passphrase.
    assert loaded >= {
        "sfsc.store",
        "sfsc.transfer.upload",
        "sfsc.transfer.download",
        "sfsc.files.listing",
    }
    for name in ROOMS:  # a room that was renamed is still one
        assert find_spec(f"sfsc.{name}") is not None


BESIDE = """
import sys
from sfsc.entrance import _load
_load()
before = set(sys.modules)
from protocol.records.signatures import Label, SigningKey, verify
key = SigningKey.from_seed(bytes(range(32)))
verify(Label.LOGIN, b"", key.sign(Label.LOGIN, b""), key.public)
assert before == set(sys.modules)  # cryptography has loaded its backend too
print(*sys.modules)
"""


def test_what_a_login_needs_is_loaded_beside_argon2id() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], capture_output=True, check=True, text=True
    )
    assert set(done.stdout.split()) >= {"sfsc.store", "sfsc.session.transport", "sqlite3", "ssl"}


def test_importing_it_loads_little() -> None:
    """Nothing beside the standard library but cryptography and msgpack; no X.509 parser (64 ms)."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(sfsc.__file__).parent.parent,
    )
    foreign, unwanted, early = done.stdout.split("\n")[:3]
    assert set(foreign.split()) == {"sfsc", "protocol", "cryptography", "msgpack"}
    assert unwanted == ""
    assert early == "False"


def test_what_is_public_is_there() -> None:
    for name in sfsc.__all__:
        assert getattr(sfsc, name) is not None
        assert name in dir(sfsc)
    assert issubclass(sfsc.NotFound, sfsc.SfscError)


def test_what_is_public_of_the_client_is_there() -> None:
    """Also what is loaded when it is first used; each is the one of the module that has it."""
    assert set(api.__all__) <= set(dir(api))
    for name in api.__all__:
        assert getattr(api, name) is getattr(api, name)
    for name, module in api._LATER.items():
        assert getattr(api, name) is getattr(import_module(f"sfsc.{module}"), name)
        assert name in api.__all__
    with pytest.raises(AttributeError):
        api.nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from sfsc.api import nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: F401


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


def test_a_store_that_was_closed(home: Path) -> None:
    with sfsc.connect(home, timeouts=QUICK) as store:
        pass
    with pytest.raises(sfsc.SfscError):
        store.stat("a")


def test_an_empty_passphrase_locks_nothing(server: Simulator, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(sfsc.UsageError):
        sfsc.enrol(server.invitation("ada"), home=home, passphrase="")
    assert not (home / "keyring").exists()


def test_no_keyring(tmp_path: Path) -> None:
    for use in (sfsc.whoami, sfsc.connect):
        with pytest.raises(sfsc.KeyringError):
            use(tmp_path)


def test_a_store_that_cannot_connect_lets_go_of_its_state(server: Simulator, home: Path) -> None:
    real = server.welcome
    server.welcome = lambda _welcome: server.log.welcome(spki=bytes(32))
    with pytest.raises(sfsc.IntegrityError):
        sfsc.connect(home, timeouts=QUICK)
    server.welcome = real
    with sfsc.connect(home, timeouts=QUICK) as store:
        assert isinstance(store, Store)
