"""Somebody who can write the home folder, but knows no passphrase, changes what lies there."""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness import PASSPHRASE, run
from tests.lying_server import LyingServer


def test_an_unlocked_keyring_in_the_place_of_a_locked_one_is_refused(tmp_path: Path) -> None:
    """The attacker's account, on the attacker's server, would receive what the user stores."""
    with LyingServer(tmp_path / "ours") as ours, LyingServer(tmp_path / "theirs") as theirs:
        home = ours.enrol("ada", tmp_path / "home", passphrase=PASSPHRASE)
        variables = {"SFSC_HOME": str(home), "SFSC_PASSPHRASE": PASSPHRASE}
        run("sfsc", ("put", "-", "--name", "a"), variables, stdin=b"1").expect(0)
        theirs_home = theirs.enrol("ada", tmp_path / "their home")
        os.replace(theirs_home / "keyring", home / "keyring")
        for path in home.glob("state.sqlite3*"):
            path.unlink()
        size = theirs.journal.size
        refused = run("sfsc", ("put", "-", "--name", "secret"), variables, stdin=b"new secret")
        refused.expect(8)
        assert "has no passphrase, but one is given" in refused.stderr
        assert "replaced the file" in refused.stderr
        assert theirs.journal.size == size  # not even a login
        assert not list((theirs.root / "store").rglob("*.ct"))
