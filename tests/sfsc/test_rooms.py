"""The rooms of a store. That none is loaded before it is entered is held in `test_client`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import sfsc
from sfsc.rooms import Rooms
from tests.sfsc.test_api import QUICK


def test_each_is_built_once_and_is_what_it_is_declared_to_be(home: Path) -> None:
    rooms = {name: of for name, of in vars(Rooms).items() if isinstance(of, cached_property)}
    assert "rotation" in rooms
    with sfsc.connect(home, timeouts=QUICK) as store:
        for name, declared in rooms.items():
            room = getattr(store._rooms, name)
            assert getattr(store._rooms, name) is room
            assert type(room).__name__ == declared.func.__annotations__["return"]
