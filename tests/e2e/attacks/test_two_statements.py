"""A server signs two statements of its keys with one number, to serve two groups of users."""

from __future__ import annotations

import io
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


def test_both_statements_are_kept_and_nothing_more_is_signed(lying_server: LyingServer) -> None:
    home = lying_server.enrol("ada")
    key = SigningKey.from_seed(
        bytes.fromhex((lying_server.root / "keys" / "server.key").read_text().strip())
    )
    shown: list[Welcome] = []

    def another(welcome: Welcome) -> Welcome:
        statement = ServerStatement.parse(welcome.statement)
        body = changed(statement, created=statement.created + 1).encode()
        lie = changed(welcome, statement=body, signature=key.sign(Label.SERVER_STATEMENT, body))
        shown.extend([welcome, lie])
        return lie

    lying_server.welcome = another
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
