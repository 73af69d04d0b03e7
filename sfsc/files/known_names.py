"""Names that this machine remembers: for the completion of a command line, without the server.

The state holds names encrypted under a key from the keyring, and nothing else on this machine has
them. So a keyring that is locked gives none, unless the agent holds its key: asking for a
passphrase, or deriving the key, has no place in a completion.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.codec.values import Value
from sfsc.keys.home import Home, home_folder, unlock_without_asking
from sfsc.trust.file_records import OwnAccount
from sfsc.trust.peer_state import PeerState, SharedEntry
from sfsc.trust.state import ClientState, open_state_for_reading, unpack_entry


class KnownNames(Value):
    """Names that are remembered: of the files of `user` that exist (`own`), of `deleted` ones, and
    of files of others as ``OWNER:NAME`` (`shared`), each in no order."""

    user: str
    own: tuple[str, ...]
    deleted: tuple[str, ...]
    shared: tuple[str, ...]


def known_names(prefix: str = "", *, home: Home = None, deleted: bool = False) -> KnownNames | None:
    """Return the names that start with `prefix`, as this machine knows them since it last listed or
    changed files, with those of deleted files if `deleted`; None if the keyring in `home` is locked
    and no agent holds its key. The server is not asked. Raises `KeyringError` and `LocalError`."""
    where = home_folder(home)
    file = unlock_without_asking(where)
    if file is None:
        return None
    keyring = file.contents
    account = OwnAccount.from_keyring(keyring)
    with open_state_for_reading(where, file) as state:
        own, former = set[str](), set[str]()
        for file_id, packed in state.entries():
            own.update(_names(file_id, packed, prefix, account))
        for file_id, packed in state.last_entries() if deleted else ():
            former.update(_names(file_id, packed, prefix, account))
        shared = set(_shared_names(state, prefix))
    return KnownNames(keyring.user, tuple(own), tuple(former - own), tuple(shared))


def known_people(home: Home = None) -> tuple[str, ...]:
    """Return the trusted users; none if the keyring in `home` is locked and no agent holds its key.
    Raises as `known_names`."""
    file = unlock_without_asking(home_folder(home))
    return () if file is None else tuple(user for user, _ in file.contents.pins)


def _names(file_id: str, packed: bytes, prefix: str, account: OwnAccount) -> Iterator[str]:
    """Yield the name of a listing entry if it starts with `prefix`. An entry without these bytes
    is not unpacked."""
    if prefix.encode(errors="surrogatepass") in packed and not account.is_settings(file_id):
        name = unpack_entry(file_id, packed).name
        if name.startswith(prefix):
            yield name


def _shared_names(state: ClientState, prefix: str) -> Iterator[str]:
    for one in PeerState(state).shared_files():
        if one.entry is not None:
            name = f"{one.owner}:{SharedEntry.unpack(one.entry).entry.name}"
            if name.startswith(prefix):
                yield name
