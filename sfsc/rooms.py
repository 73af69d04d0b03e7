"""What a store offers that most programs never ask for: each room is loaded when first entered.

So a start pays for putting, getting and listing, which `store` itself has, and for nothing that a
user does once a month. A room that is added belongs here unless every program enters it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.records.records import ReaderEntry
    from sfsc.account.devices import Devices
    from sfsc.account.rotate import Rotation
    from sfsc.files.contacts import People
    from sfsc.files.history import Versions
    from sfsc.files.inbox import Received
    from sfsc.files.rename import Moves
    from sfsc.files.shared_folders import Folders
    from sfsc.files.sharing import Sharing
    from sfsc.files.tree import Trees
    from sfsc.keys.keyring import KeyringFile
    from sfsc.log.audit import Audit
    from sfsc.session.session import Session


class Rooms:
    """Of one store, over its session. For one thread at a time, as that is."""

    def __init__(self, session: Session, file: KeyringFile, min_wrap_alg: str) -> None:
        self._session = session
        self._file = file
        self._weakest = min_wrap_alg

    # --- what the session asks for, seldom ----------------------------------------------------

    def renew(self) -> None:
        """Go on with the newer keys that the account has."""
        self.devices.catch_up()

    def readers(self) -> People:
        """Those whom files are wrapped for beside ourselves."""
        return self.people

    def new_readers(self, name: str) -> tuple[ReaderEntry, ...]:
        """Who may read a new file `name`, since its folder is shared."""
        return self.folders.readers_of(name)

    # --- the rooms ----------------------------------------------------------------------------

    @cached_property
    def audit(self) -> Audit:
        from sfsc.log.audit import Audit

        return Audit(self._session)

    @cached_property
    def devices(self) -> Devices:
        from sfsc.account.devices import Devices

        return Devices(self._session, self._file)

    @cached_property
    def folders(self) -> Folders:
        from sfsc.files.shared_folders import Folders

        return Folders(self._session)

    @cached_property
    def moves(self) -> Moves:
        from sfsc.files.rename import Moves

        return Moves(self._session)

    @cached_property
    def people(self) -> People:
        from sfsc.files.contacts import People

        return People(self._session, self._file, self._weakest)

    @cached_property
    def received(self) -> Received:
        from sfsc.files.inbox import Received

        return Received(self._session, self.people)

    @cached_property
    def rotation(self) -> Rotation:
        from sfsc.account.rotate import Rotation

        return Rotation(self._session, self._file, self.devices, self.people)

    @cached_property
    def sharing(self) -> Sharing:
        from sfsc.files.sharing import Sharing

        return Sharing(self._session, self.people, self.folders)

    @cached_property
    def trees(self) -> Trees:
        from sfsc.files.tree import Trees

        return Trees(self._session)

    @cached_property
    def versions(self) -> Versions:
        from sfsc.files.history import Versions

        return Versions(self._session)
