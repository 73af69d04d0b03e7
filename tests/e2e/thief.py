"""A thief with a copied keyring and a modified client, which joins as a device of its own, seals
bundles for the thief alone and drops all other devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import sfsc
from protocol.codec.values import changed
from protocol.records.records import ROTATE, Statement
from protocol.records.signatures import SigningKey
from sfsc.account import devices
from sfsc.account.key_status import new_device, public_device
from sfsc.account.rewrap import Rewrapper, wrap_items
from sfsc.crypto.wrap import PublicKey
from sfsc.files.endorse import rewrap_request
from sfsc.keys.keyring import GenerationKeys, KeyringFile, PendingStatement
from tests.harness import Client


def copied(owner: Client, home: Path) -> Client:
    """Return a client with a copy of the owner's keyring."""
    home.mkdir()
    (home / "keyring").write_bytes((owner.home / "keyring").read_bytes())
    return Client(home)


def _only_thief(statement: Statement) -> list[PublicKey]:
    return [PublicKey(statement.wrap_alg, statement.wrap_pub)]


_build_statement = devices.Devices.build_statement


def _alone(
    self: devices.Devices,
    draft: Statement,
    generations: tuple[GenerationKeys, ...],
    signers: tuple[SigningKey, ...],
    keys: GenerationKeys | None = None,
    **labels: Any,
) -> PendingStatement:
    alone = changed(draft, devices=(public_device(self._keyring.device),))
    return _build_statement(self, alone, generations, signers, keys, **labels)


class Thief:
    """A thief's session, which has joined; `begin` and `finish` rotate the keys."""

    def __init__(self, home: Path) -> None:
        self.store = sfsc.connect(home, auto_rotate=False)
        self.rotation = self.store._rotation

    def begin(self) -> None:
        self.rotation._begin("x25519", None, ROTATE)

    def rewrap(self, *names: str) -> None:
        """Rewrap these files for the thief's key."""
        ids = {self.store._session.account.file_id(name) for name in names}
        rewrapper = Rewrapper(self.store._session, self.store._contacts)
        items = [one for one in wrap_items(self.store._session) if one.file_id in ids]
        rewraps = [one for one, _, _ in rewrapper.builder()([(None, one, None) for one in items])]
        renewed = [one for one in rewraps if one is not None]
        session = self.store._session
        session.ask(rewrap_request(session.record_signer(), renewed))

    def finish(self) -> None:
        assert self.rotation._finish(self.rotation._rewrap().leaves, {}) is not None


@contextmanager
def thief(home: Path) -> Iterator[Thief]:
    file = KeyringFile.unlock(home / "keyring", None)
    file.save(changed(file.contents, device=new_device()))
    with (
        mock.patch.object(devices, "bundle_recipients", _only_thief),
        mock.patch.object(devices.Devices, "build_statement", _alone),
    ):
        one = Thief(home)
        try:
            yield one
        finally:
            one.store.close()
