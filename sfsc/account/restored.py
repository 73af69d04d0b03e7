"""Continue on a server that was restored from a backup made before this account's last statements.

The server then knows older keys, of which this device has destroyed the private ones. But it knows
the device, whose own key logs in, and its bundle of that time is sealed to the device. So the
device takes the older keys from the bundle, and begins a new generation on the restored chain.

The user has accepted the server's log as it is (`sfsc audit accept`). What the user decided since
the backup still counts: the new statement lists the devices of the last statement known here, so a
device that was dropped since the backup does not get the new keys.
"""

from __future__ import annotations

import time

from protocol.codec.values import Value, changed
from protocol.records.records import COMPROMISED, RECOVERY, ROTATE, Statement
from protocol.records.signatures import SigningKey
from protocol.wire.messages.rotation import GetBundle, SealedBundle
from sfsc.account.devices import Devices
from sfsc.account.rotate import Rotation
from sfsc.crypto.wrap import XWING, PrivateKey
from sfsc.errors import BadRecord, Denied
from sfsc.files.contacts import Contacts, follow_user_chain
from sfsc.keys.bundle import open_bundle
from sfsc.keys.keyring import MAX_PINS, Keyring, KeyringFile
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.trust.identity_chain import fetch_newest_bundle


class RestoredAccount(Value):
    """The server had `statements` of this account, and not the last `forgotten` ones of this
    device. `unknown` counts the account's devices that this device had never seen. `stolen` tells
    whether a rotation after a theft was forgotten: contents are encrypted under stolen keys
    again. `other_code` tells whether the account's present recovery code was forgotten: it has the
    former one, or none."""

    statements: int
    forgotten: int
    unknown: int
    stolen: bool
    other_code: bool


def connect_accepting(session: Session) -> None:
    """Connect to a server that may know older keys of the account only: it must know the device.
    Raises as `Session.connect`."""
    try:
        session.connect()
    except Denied as exc:
        raise Denied(
            "the server does not know this machine",
            "run `sfsc audit accept` on a machine that joined the account before the backup, "
            "or join again by `sfsc init --recovery` in an empty --home",
        ) from exc


def continue_restored(
    session: Session, file: KeyringFile, skip: Skip | None
) -> RestoredAccount | None:
    """Adopt the keys that the server knows, and replace them by new ones. `skip` is as in
    `Rotation.rotate`. Return None if the server has all statements of this device.

    The session is connected, and the log's past is forgotten. If this is interrupted, the next
    command continues it.
    """
    known = file.contents.statements
    chain = _follow(session, ())
    if chain[: len(known)] == known:
        return None
    keyring = _adopt(session, file.contents, chain)
    chain = keyring.statements
    common = sum(1 for ours, theirs in zip(known, chain, strict=False) if ours == theirs)
    forgotten = [Statement.parse(body) for body in known[common:]]
    devices, contacts = Devices(session, file), Contacts(session, file)
    before, head = Statement.parse(known[-1]), Statement.parse(chain[-1])
    kept, unknown = before.devices, 0
    if common < len(chain):
        # Another device was first, and has listed what it knew. A device that was dropped before
        # stays dropped. One that was never seen here is counted, for the user to look at: somebody
        # with keys that were stolen before the backup could have added it.
        seen = {one for body in known for one in Statement.parse(body).devices}
        kept = tuple(one for one in head.devices if one in before.devices or one not in seen)
        unknown = sum(one not in seen for one in kept)
        own = [one for one in before.devices if one.device_id == keyring.device.device_id]
        kept = (*(one for one in kept if one not in own), *own)
    pending = devices.build_generation(
        keyring,
        ROTATE,
        before.wrap_alg,
        SigningKey.from_seed(keyring.generations[-1].sign_seed),
        int(time.time()),
        devices=kept,
    )
    # Saved together: after an interruption, the next command sends the statement.
    file.save(changed(keyring, pending=pending))
    session.use_keyring(file.contents)
    session.reconnect()
    session.renewer = devices.catch_up
    session.readers = lambda: contacts
    Rotation(session, file, devices, contacts).rotate(skip=skip)
    stolen = any(one.reason in (COMPROMISED, RECOVERY) for one in forgotten)
    other_code = before.recovery not in (None, head.recovery)
    return RestoredAccount(len(chain), len(forgotten), unknown, stolen, other_code)


def _follow(session: Session, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
    keyring = session.keyring
    return follow_user_chain(session, keyring.user, keyring.first, known)


def _adopt(session: Session, keyring: Keyring, chain: tuple[bytes, ...]) -> Keyring:
    """Return the keyring with the server's chain, and with the keys of its newest bundle. Raises
    `KeyringError` if that is not sealed to a key of this device."""
    chain, sealed = fetch_newest_bundle(
        chain,
        lambda known: _follow(session, known),
        lambda: session.call(GetBundle(0), SealedBundle).bundle,
    )
    keys = [PrivateKey(XWING, keyring.device.xwing_private)]
    keys += [PrivateKey(one.wrap_alg, one.wrap_private) for one in keyring.generations]
    bundle = open_bundle(sealed, Statement.parse(chain[-1]), keys)
    if bundle.name_keys != keyring.name_keys:
        raise BadRecord("the account's bundle holds another name key than this device's keyring")
    pins = tuple(sorted({**dict(bundle.pins), **dict(keyring.pins)}.items()))[:MAX_PINS]
    generations = bundle.generations
    if keyring.statements[: len(chain)] == chain:
        # A server whose log was cut may still have wraps for the keys that it does not know.
        forgotten = (one for one in keyring.generations if one not in generations)
        generations = (*forgotten, *generations)
    return changed(keyring, statements=chain, generations=generations, pins=pins, pending=None)
