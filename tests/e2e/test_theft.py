"""After a theft: new keys for all, and new contents for the files that are named."""

from __future__ import annotations

import dataclasses
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sfsc
from protocol.messages.base import SignedRecord
from protocol.records import FileRecord
from sfsc.envelope import private_keys
from sfsc.errors import BadRecord
from sfsc.identity import Account
from sfsc.theft import Theft
from tests.e2e.accounts import enrolled
from tests.e2e.test_main_job import objects
from tests.e2e.test_rotation import NAMES, blobs, check_all, deks, fill, keyring, tried
from tests.harness import Client, Daemon, environment


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    user = enrolled(daemon, "alice", tmp_path / "alice")
    fill(user)
    return user


def of(daemon: Daemon, owner: Client, *names: str) -> set[str]:
    """The names of the sidecars of these files."""
    account = Account.of(keyring(owner))
    ids = {account.file_id(name) for name in names}
    folder = daemon.root / "store" / "users" / "alice" / "files"
    return {path.name for path in folder.rglob("*.json") if path.name[:32] in ids}


def changed(before: set[bytes], after: set[bytes]) -> set[str]:
    """The sidecars (names, then 32 bytes of DEK) whose file key is another."""
    return {one[:-32].decode() for one in before - after}


def test_only_the_named_files_get_new_contents(daemon: Daemon, alice: Client) -> None:
    """Every version, in trash too, and what a rename has left; all others are wrapped anew."""
    before, old = deks(daemon, keyring(alice)), keyring(alice)
    kept = {path.name: path.read_bytes() for path in blobs(daemon)}
    named = (NAMES[3], NAMES[0], "renamed")
    (done,) = objects(alice.run("--json", "rotate", "--compromised", *named))
    assert (done["generation"], done["files"]) == (2, 16)
    expected = of(daemon, alice, *named, NAMES[2])
    assert len(expected) == 7
    assert changed(before, deks(daemon, keyring(alice))) == expected
    for path in blobs(daemon):
        assert (path.read_bytes() != kept[path.name]) is (f"{path.stem}.json" in expected)
    assert tried(daemon, old, private_keys(old.generations)) == (16, 0)
    check_all(alice)
    alice.run("audit", "verify")
    alice.run("rotate", "--compromised", "never was", code=3)
    alice.run("rotate", NAMES[3], code=2)
    (done,) = objects(alice.run("--json", "rotate", "--plan"))
    assert (done["generation"], done["begun"]) == (2, False)


KILLED = """
import os, signal, sys
import sfsc
from sfsc.reencryption import Reencryption

count, version = 0, Reencryption.version

def versions(self, file_id, number):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    version(self, file_id, number)

Reencryption.version = versions
sfsc.connect(sys.argv[1], auto_rotate=False).rotate(compromised=True, names=sys.argv[2:])
"""


@pytest.mark.parametrize("rerun", ["the same", "any other", "one more"])
def test_it_is_killed(daemon: Daemon, alice: Client, rerun: str) -> None:
    """Run again, or by any other command, it goes on with the files that were named."""
    before, named = deks(daemon, keyring(alice)), [NAMES[3], "renamed"]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(alice.home), *named],
        capture_output=True,
        env=environment({}),
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    if rerun == "any other":
        alice.run("ls")
    else:
        named += [NAMES[5]] if rerun == "one more" else []
        alice.run("rotate", "--compromised", *named)
    found = changed(before, deks(daemon, keyring(alice)))
    assert found == of(daemon, alice, *named, NAMES[2])
    check_all(alice)


def test_a_record_that_came_later(alice: Client) -> None:
    """Of two in the log, the one from before the rotation is taken over, the other is not."""
    with sfsc.connect(alice.home) as store:
        session = store._session

        def head(name: str) -> SignedRecord:
            return SignedRecord(session.newest(session.account.file_id(name)).head_body, ())

        early = head(NAMES[7])
        store.rotate(compromised=True, names=[NAMES[3]])
        theft = Theft(session, keyring(alice).statements)
        store.put(io.BytesIO(b"later"), name="later")
        for known in (theft, Theft(session, keyring(alice).statements)):
            known.check(early)
            with pytest.raises(BadRecord):
                known.check(signed_with_the_old_key(head("later")))


def signed_with_the_old_key(signed: SignedRecord) -> SignedRecord:
    record = FileRecord.parse(signed.record)
    return SignedRecord(dataclasses.replace(record, generation=1).encode(), ())
