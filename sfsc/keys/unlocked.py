"""Keep the keyring unlocked: for a while in the agent, or always by the system's store of
secrets."""

from __future__ import annotations

from pathlib import Path

from sfsc.agent import client
from sfsc.agent.client import AgentStatus
from sfsc.agent.place import require_support
from sfsc.errors import KeyringMissing, UsageError
from sfsc.keys.home import Home, Passphrase, home_folder, keyring_path, unlock_home
from sfsc.keys.keyring import read_lock_id
from sfsc.keys.system_keyring import forget_key, remember_key


def start_agent(
    *, home: Home = None, passphrase: Passphrase = None, timeout: int | None = None
) -> AgentStatus:
    """Start the agent of `home` unless it runs, and give it the key of the keyring for `timeout`
    seconds after its last use (None: SFSC_AGENT_TIMEOUT, else 15 minutes). Return its state.

    Raises `UsageError` if the keyring has no passphrase, `AgentUnavailable`, also on a system
    without Unix sockets, and as `connect`."""
    where = home_folder(home)
    _require_passphrase(where)
    require_support()
    seconds = client.default_timeout() if timeout is None else timeout
    file = unlock_home(where, passphrase)
    client.start(where)
    client.keep_key(where, file.lock_id, file.unlock_key, seconds)
    return client.status(where, file.lock_id)


def lock_agent(*, home: Home = None) -> bool:
    """Have the agent of `home` forget its key; return whether one runs. Raises
    `AgentUnavailable`."""
    require_support()
    return client.lock(home_folder(home))


def stop_agent(*, home: Home = None) -> bool:
    """End the agent of `home`; return whether one ran. Raises `AgentUnavailable`."""
    require_support()
    return client.stop(home_folder(home))


def agent_status(*, home: Home = None) -> AgentStatus:
    """Return the state of the agent of `home`. Raises `AgentUnavailable`, `KeyringDamaged` and
    `LocalError`."""
    require_support()
    where = home_folder(home)
    try:
        lock_id = read_lock_id(keyring_path(where))
    except KeyringMissing:
        lock_id = None
    return client.status(where, lock_id)


def remember_passphrase(*, home: Home = None, passphrase: Passphrase = None) -> None:
    """Store the key that unlocks the keyring in the system's store of secrets, so that no command
    of this user asks for the passphrase. The passphrase itself is not stored. Raises `UsageError`
    if the keyring has none or the package `keyring` is missing, `LocalError` if there is no store,
    and as `connect`."""
    where = home_folder(home)
    _require_passphrase(where)
    file = unlock_home(where, passphrase)
    remember_key(where, file.lock_id, file.unlock_key)


def forget_passphrase(*, home: Home = None) -> bool:
    """Undo `remember_passphrase`; return whether there was something to undo. Raises as it."""
    return forget_key(home_folder(home))


def _require_passphrase(home: Path) -> None:
    if read_lock_id(keyring_path(home)) is None:
        raise UsageError(
            "the keyring has no passphrase", "nothing asks for one; `sfsc key passphrase` sets one"
        )
