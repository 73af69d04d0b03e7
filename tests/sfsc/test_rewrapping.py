"""What a sweep looks at, before a server is told of it. The rest is in tests/e2e/test_rotation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from protocol.messages.rotation import WrapItem
from protocol.signatures import Label
from sfsc import rewrapping
from sfsc.home import unlock
from sfsc.people import People
from sfsc.rewrapping import Rewrapping, Sweep
from sfsc.session import Session
from sfsc.verified import Signed
from tests.sfsc.lying import Simulator
from tests.sfsc.test_wraps import listed, listing


@pytest.mark.parametrize("workers", [0, 1])
def test_signatures_are_verified_beside_where_no_process_does_it(
    server: Simulator,
    home: Path,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    asked: list[Sequence[Signed]] = []

    @contextlib.contextmanager
    def verifying(signed: Sequence[Signed]) -> Iterator[None]:
        asked.append(signed)
        yield
        asked.append(())

    monkeypatch.setattr(rewrapping, "spare", lambda: workers)
    monkeypatch.setattr(rewrapping, "verifying", verifying)
    items: list[WrapItem] = listed(20)
    listing(server, items)
    sweep = Sweep()
    versions = Rewrapping(session, People(session, unlock(home, None)), None)._versions(sweep)
    assert list(versions) == [(None, item) for item in items]
    own = items[0].content
    public = session.account.signers[1]
    signature = (Label.RECORD, own.record, own.signatures[0].signature, public)
    assert asked == ([] if workers else [[signature] * 20, ()])
    assert not sweep.left
