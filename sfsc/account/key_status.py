"""Decides at login whether work on the account's keys is pending, and whether to rotate them.

It is separate from `devices` and `rotate`, so that a login loads those only when they are needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from protocol.codec.terminal_text import printable
from protocol.records.records import MACHINE, Device, Statement
from protocol.records.signatures import SigningKey
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile
from sfsc.session.handshake import DAY
from sfsc.session.session import Session

MAX_LABEL: Final = 64
"""Most bytes of a device's label in UTF-8."""
RETRY_SECONDS: Final = 600
"""Seconds after a failed automatic rotation in which no other is tried. It may take long, and most
causes do not go away by themselves."""


class KeyStatus:
    """Tells what work is due on one account's keys."""

    def __init__(
        self, session: Session, file: KeyringFile, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives unix seconds."""
        self._session = session
        self._file = file
        self._clock = clock

    @property
    def has_pending_work(self) -> bool:
        """True if `Devices.finish_pending` has work: a pending statement, old keys that no longer
        count, or this device not yet listed."""
        keyring = self._file.contents
        head, pending = Statement.parse(keyring.statements[-1]), keyring.pending
        waits = pending is not None and pending.keys is None  # `Rotation` finishes a rotation
        renewed = self._session.is_restricted
        ended = not is_rotating(head) and has_old_keys(keyring)
        return waits or renewed or ended or not is_listed(head, keyring.device)

    def is_due(self) -> bool:
        """Return whether the keys are past `due`, the server asks for new ones, or a rotation is
        unfinished."""
        notice = self._session.notice
        return self._is_due_here() or (notice is not None and notice.state != "rotated")

    def should_rotate(self) -> bool:
        """Return whether to rotate automatically: never while the server is distrusted, and at most
        once a day because of the server's notice alone, so that it cannot keep the client busy.
        Returning True for such a notice counts as that day's rotation. After a failure it is not
        tried again within `RETRY_SECONDS`."""
        state, now = self._session.state, int(self._clock())
        if not self.is_due() or state.distrust_evidence() is not None:
            return False
        failed = state.last_failed_rotation()
        if failed and 0 <= now - failed < RETRY_SECONDS:
            return False
        if not self._is_due_here():
            if 0 <= now - state.last_server_rotation() < DAY:
                return False
            state.remember_server_rotation(now)
        return True

    def remember_failure(self) -> None:
        """Record that an automatic rotation has just failed."""
        self._session.state.remember_failed_rotation(int(self._clock()))

    @property
    def reason(self) -> str:
        """Why `is_due` is true, for a person."""
        notice = self._session.notice
        if is_rotating(Statement.parse(self._file.contents.statements[-1])):
            return "a rotation is unfinished"
        if notice is not None and notice.reason:
            return notice.reason
        return "they are due"

    def _is_due_here(self) -> bool:
        """Return whether the local keyring alone is reason enough."""
        keyring = self._file.contents
        head = Statement.parse(keyring.statements[-1])
        return is_rotating(head) or keyring.pending is not None or self._clock() >= head.due


def is_rotating(head: Statement) -> bool:
    """Return whether a rotation is unfinished: generations older than the newest still count."""
    return head.oldest != head.generation


def has_old_keys(keyring: Keyring) -> bool:
    """Return whether the keyring holds keys of older generations."""
    return len(keyring.generations) > 1


def new_device(device_id: bytes | None = None) -> DeviceKey:
    """Generate the keys of a device. `device_id` has 16 bytes; by default it is random."""
    name = os.urandom(16) if device_id is None else device_id
    return DeviceKey(name, SigningKey.generate().seed, PrivateKey.generate(XWING).encoded)


def default_label() -> str:
    """Return the label of this machine if the user states none: its host name, at most 64 bytes."""
    import socket  # a login that publishes no device needs none yet

    name = printable(socket.gethostname()).encode()[:MAX_LABEL].decode(errors="ignore")
    return name or "machine"


def public_device(device: DeviceKey, kind: str = MACHINE) -> Device:
    """Return a device as statements name it."""
    signing = SigningKey.from_seed(device.sign_seed)
    wrapping = PrivateKey(XWING, device.xwing_private)
    return Device(device.device_id, signing.public, wrapping.public.encoded, kind)


def is_listed(head: Statement, device: DeviceKey) -> bool:
    """Return whether the statement names this device with its present keys: a replacement may have
    been lost on its way here."""
    return public_device(device).keys in (one.keys for one in head.devices)
