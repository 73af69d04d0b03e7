"""Client of an end-to-end encrypted file store. Files are encrypted on this machine, and the server
cannot read them.

::

    import sfsc

    with sfsc.connect() as store:
        store.put("report.pdf", name="docs/report.pdf")
        store.get("docs/report.pdf", "copy.pdf")

Every error raised on purpose is an `SfscError` with a `cause`, a `hint` and an `exit_code`;
`sfsc.errors` shows the class tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfsc.errors import (
    ConflictError,
    Denied,
    IntegrityError,
    KeyringError,
    LocalError,
    NetworkError,
    NotFound,
    SfscError,
    UsageError,
)

if TYPE_CHECKING:
    from sfsc.account.addresses import set_addresses
    from sfsc.account.lifecycle import (
        change_passphrase,
        enrol,
        export_pem,
        import_pem,
        new_recovery_code,
        recover,
        restore,
        take_back,
        take_back_plan,
    )
    from sfsc.api import accept, check_proof, connect, people, watch, whoami
    from sfsc.diagnosis import Finding, doctor
    from sfsc.files.contacts import Person
    from sfsc.files.inbox import Shared
    from sfsc.files.known_names import KnownNames, known_names
    from sfsc.files.purge import Purged
    from sfsc.files.rename import Renamed
    from sfsc.files.restore import Restored
    from sfsc.files.sharing import Grant
    from sfsc.files.sync import Synced
    from sfsc.files.transaction import Changed, Transaction
    from sfsc.files.versions import DeletedFile, Space
    from sfsc.keys.account_info import Whoami
    from sfsc.keys.unlocked import (
        agent_status,
        forget_passphrase,
        lock_agent,
        remember_passphrase,
        start_agent,
        stop_agent,
    )
    from sfsc.store import Status, Store
    from sfsc.transfer.download import Got
    from sfsc.transfer.upload import Put
    from sfsc.trust.file_records import Entry

__all__ = [
    "Changed",
    "ConflictError",
    "DeletedFile",
    "Denied",
    "Entry",
    "Finding",
    "Got",
    "Grant",
    "IntegrityError",
    "KeyringError",
    "KnownNames",
    "LocalError",
    "NetworkError",
    "NotFound",
    "Person",
    "Purged",
    "Put",
    "Renamed",
    "Restored",
    "SfscError",
    "Shared",
    "Space",
    "Status",
    "Store",
    "Synced",
    "Transaction",
    "UsageError",
    "Whoami",
    "accept",
    "agent_status",
    "change_passphrase",
    "check_proof",
    "connect",
    "doctor",
    "enrol",
    "export_pem",
    "forget_passphrase",
    "import_pem",
    "known_names",
    "lock_agent",
    "new_recovery_code",
    "people",
    "recover",
    "remember_passphrase",
    "restore",
    "set_addresses",
    "start_agent",
    "stop_agent",
    "take_back",
    "take_back_plan",
    "watch",
    "whoami",
]


if not TYPE_CHECKING:  # type checkers would assume that the module has every name

    def __getattr__(name: str) -> object:
        """Import a public name at its first use: --help and usage errors need no cryptography."""
        if name not in __all__:
            raise AttributeError(f"module 'sfsc' has no attribute {name!r}")
        from sfsc.api import public

        return public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
