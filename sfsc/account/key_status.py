"""What a login finds to be done about an account's keys, and seldom does: finishing what was begun
with them, and replacing them.

Apart from `devices` and `rotation`, which do it, so that these are loaded then and not always.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from protocol.records.records import Statement
from sfsc.crypto.primitives import XWING, PrivateKey
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile
from sfsc.session.handshake import DAY
from sfsc.session.session import Session


class KeyStatus:
    """Of one account, over one session."""

    def __init__(
        self, session: Session, file: KeyringFile, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives unix seconds."""
        self._session = session
        self._file = file
        self._clock = clock

    @property
    def unsettled(self) -> bool:
        """Whether something that was begun here waits, old keys are still here that count no more,
        or this machine has not joined yet: what `Devices.settle` is for."""
        keyring, notice = self._file.contents, self._session.notice
        head, pending = Statement.parse(keyring.statements[-1]), keyring.pending
        waits = pending is not None and pending.keys is None  # a rotation is not ours to finish
        renewed = notice is not None and notice.state == "rotated"
        ended = not unfinished(head) and has_old_keys(keyring)
        # With this very key: one that was to replace it may have been lost on the way here.
        joined = (keyring.device.device_id, public_of(keyring.device)) in head.devices
        return waits or renewed or ended or not joined

    def is_due(self) -> bool:
        """Whether the keys are past their `due`, the server asks for new ones, or a rotation was
        begun and not finished."""
        notice = self._session.notice
        return self._is_ours() or (notice is not None and notice.state != "rotated")

    def asks(self) -> bool:
        """Whether to rotate without being told to. For a server's notice that our own statement
        does not bear out at most once a day, so that it cannot keep us at it; that counts as
        answered then. Never while the server is distrusted."""
        state = self._session.state
        if not self.is_due() or state.distrust_evidence() is not None:
            return False
        if not self._is_ours():
            now = int(self._clock())
            if 0 <= now - state.last_server_rotation() < DAY:
                return False
            state.remember_server_rotation(now)
        return True

    def _is_ours(self) -> bool:
        """Whether what we know ourselves is reason enough."""
        keyring = self._file.contents
        head = Statement.parse(keyring.statements[-1])
        return unfinished(head) or keyring.pending is not None or self._clock() >= head.due


def unfinished(head: Statement) -> bool:
    """Whether older generations than the newest still count."""
    return head.oldest != head.generation


def has_old_keys(keyring: Keyring) -> bool:
    """Return whether it holds keys of older generations."""
    return len(keyring.generations) > 1


def public_of(device: DeviceKey) -> bytes:
    """What bundles are sealed to for this machine, as a statement names it."""
    return PrivateKey(XWING, device.xwing_private).public.encoded
