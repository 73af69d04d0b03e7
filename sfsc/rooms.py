"""What a store offers that most programs never ask for: each room is loaded when first entered.

So a start pays for putting, getting and listing, which `store` itself has, and for nothing that a
user does once a month. A room that is added belongs here unless every login goes through it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfsc.audit import Audit
    from sfsc.devices import Devices
    from sfsc.folders import Folders
    from sfsc.inbox import Received
    from sfsc.keyring import KeyringFile
    from sfsc.moves import Moves
    from sfsc.people import People
    from sfsc.rotation import Rotation
    from sfsc.session import Session
    from sfsc.sharing import Sharing
    from sfsc.trees import Trees
    from sfsc.versions import Versions


class Rooms:
    """Of one store, over its session. For one thread at a time, as that is."""

    def __init__(
        self,
        session: Session,
        file: KeyringFile,
        devices: Devices,
        people: People,
        folders: Folders,
    ) -> None:
        self._session = session
        self._file = file
        self._devices = devices
        self._people = people
        self._folders = folders

    @cached_property
    def audit(self) -> Audit:
        from sfsc.audit import Audit

        return Audit(self._session)

    @cached_property
    def moves(self) -> Moves:
        from sfsc.moves import Moves

        return Moves(self._session)

    @cached_property
    def received(self) -> Received:
        from sfsc.inbox import Received

        return Received(self._session, self._people)

    @cached_property
    def rotation(self) -> Rotation:
        from sfsc.rotation import Rotation

        return Rotation(self._session, self._file, self._devices, self._people)

    @cached_property
    def sharing(self) -> Sharing:
        from sfsc.sharing import Sharing

        return Sharing(self._session, self._people, self._folders)

    @cached_property
    def trees(self) -> Trees:
        from sfsc.trees import Trees

        return Trees(self._session)

    @cached_property
    def versions(self) -> Versions:
        from sfsc.versions import Versions

        return Versions(self._session)
