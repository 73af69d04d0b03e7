"""A server signs two statements of its keys with one number, to serve two groups of users."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

import sfsc
from protocol.codec.base64text import to_text
from protocol.codec.values import changed
from protocol.records.records import ServerStatement
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.session import Welcome
from sfsc.errors import Distrusted, Fork
from tests.lying_server import LyingServer


def sign_two_statements(server: LyingServer) -> list[Welcome]:
    """Have the server show another statement with the same number; return both, once shown."""
    key = SigningKey.from_seed(
        bytes.fromhex((server.root / "keys" / "server.key").read_text().strip())
    )
    shown: list[Welcome] = []

    def another(welcome: Welcome) -> Welcome:
        statement = ServerStatement.parse(welcome.statement)
        body = changed(statement, created=statement.created + 1).encode()
        lie = changed(welcome, statement=body, signature=key.sign(Label.SERVER_STATEMENT, body))
        shown.extend([welcome, lie])
        return lie

    server.welcome = another
    return shown


def test_both_statements_are_kept_and_nothing_more_is_signed(lying_server: LyingServer) -> None:
    home = lying_server.enrol("ada")
    shown = sign_two_statements(lying_server)
    with pytest.raises(Fork) as caught:
        sfsc.connect(home)
    assert caught.value.exit_code == 5
    assert caught.value.evidence is not None
    kept = Path(caught.value.evidence).read_text()
    assert Path(caught.value.evidence).parent == home / "evidence"
    for welcome in shown:
        assert to_text(welcome.statement) in kept
        assert to_text(welcome.signature) in kept
    lying_server.honest()
    with sfsc.connect(home, auto_rotate=False) as store, pytest.raises(Distrusted):
        store.put(io.BytesIO(b"1"), name="a")


def test_distrust_outlives_the_state(lying_server: LyingServer) -> None:
    """Somebody who can write the home folder helps the server: the state is deleted, or replaced by
    one of before. Only the user decides to trust the server again."""
    home = lying_server.enrol("ada")
    with sfsc.connect(home, auto_rotate=False) as store:
        store.put(io.BytesIO(b"1"), name="a")
    before = lying_server.copied(home, "before", state=True)
    sign_two_statements(lying_server)
    with pytest.raises(Fork):
        sfsc.connect(home)
    lying_server.honest()
    (kept,) = (home / "evidence").iterdir()
    for older in (None, before):
        for path in home.glob("state.sqlite3*"):
            path.unlink()
        for path in () if older is None else older.glob("state.sqlite3*"):
            shutil.copy2(path, home / path.name)
        with sfsc.connect(home, auto_rotate=False) as store:
            assert [one.name for one in store.ls()] == ["a"]
            with pytest.raises(Distrusted) as refused:
                store.put(io.BytesIO(b"2"), name="a")
        assert str(kept) in refused.value.hint
    assert sfsc.accept(home)[1] == str(kept)
    with sfsc.connect(home, auto_rotate=False) as store:
        assert store.put(io.BytesIO(b"2"), name="a").version == 2
