from __future__ import annotations

import pytest

from sfsc.closing import Closing


class Resource(Closing):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_block_closes_and_exceptions_propagate() -> None:
    door = Resource()
    with door as entered:
        assert entered is door
        assert door.closed == 0
    assert door.closed == 1
    with pytest.raises(KeyError), door:
        raise KeyError
    assert door.closed == 2
