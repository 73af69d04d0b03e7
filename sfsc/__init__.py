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

from protocol import VERSION
from sfsc.errors import (
    AgentUnavailable,
    BadDestination,
    BadReceipt,
    BadRecord,
    BrokenChain,
    CommandFailed,
    ConflictError,
    Damaged,
    Denied,
    Destroyed,
    Distrusted,
    Fork,
    IntegrityError,
    KeyringDamaged,
    KeyringError,
    KeyringMissing,
    LocalError,
    Mistyped,
    NetworkError,
    NotFound,
    NotRegularFile,
    PartialSet,
    ProtocolFailure,
    QuotaExceeded,
    Rollback,
    SfscError,
    ShareRefused,
    StaleGeneration,
    SyncRunning,
    TakenOver,
    Tampered,
    TimedOut,
    TokenRefused,
    Unreachable,
    UnreadableSource,
    UnsupportedKey,
    UnsupportedKind,
    Untrusted,
    UsageError,
    WeakRecipient,
    WrongPassphrase,
    WrongServer,
)

if TYPE_CHECKING:
    from sfsc.account.addresses import set_addresses
    from sfsc.account.devices import DeviceInfo
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
    from sfsc.account.restored import RestoredAccount
    from sfsc.account.rotate import RotationPlan, RotationResult
    from sfsc.api import accept, check_proof, connect, people, watch, whoami
    from sfsc.diagnosis import Finding, doctor
    from sfsc.files.contacts import Person
    from sfsc.files.history import ExportedKey, Revision
    from sfsc.files.inbox import Shared
    from sfsc.files.known_names import KnownNames, known_names
    from sfsc.files.purge import Purged
    from sfsc.files.rename import Renamed
    from sfsc.files.restore import Restored
    from sfsc.files.settings import Folder
    from sfsc.files.sharing import Grant
    from sfsc.files.sync import Synced
    from sfsc.files.transaction import Changed, Transaction
    from sfsc.files.versions import DeletedFile, Space
    from sfsc.keys.account_info import Whoami
    from sfsc.keys.recovery_sheet import read_recovery_sheet, recovery_sheet
    from sfsc.keys.unlocked import (
        agent_status,
        forget_passphrase,
        lock_agent,
        remember_passphrase,
        start_agent,
        stop_agent,
    )
    from sfsc.log.audit import LogEvent, VerifiedHistory
    from sfsc.log.receipts import VerifiedProof
    from sfsc.session.limits import Timeouts
    from sfsc.session.pipeline import Skip
    from sfsc.session.progress import Progress
    from sfsc.store import Status, Store
    from sfsc.times import Time
    from sfsc.transfer.download import Got, Target
    from sfsc.transfer.source import Source
    from sfsc.transfer.upload import Put
    from sfsc.trust.file_records import Entry

__version__ = VERSION

__all__ = [
    "AgentUnavailable",
    "BadDestination",
    "BadReceipt",
    "BadRecord",
    "BrokenChain",
    "Changed",
    "CommandFailed",
    "ConflictError",
    "Damaged",
    "DeletedFile",
    "Denied",
    "Destroyed",
    "DeviceInfo",
    "Distrusted",
    "Entry",
    "ExportedKey",
    "Finding",
    "Folder",
    "Fork",
    "Got",
    "Grant",
    "IntegrityError",
    "KeyringDamaged",
    "KeyringError",
    "KeyringMissing",
    "KnownNames",
    "LocalError",
    "LogEvent",
    "Mistyped",
    "NetworkError",
    "NotFound",
    "NotRegularFile",
    "PartialSet",
    "Person",
    "Progress",
    "ProtocolFailure",
    "Purged",
    "Put",
    "QuotaExceeded",
    "Renamed",
    "Restored",
    "RestoredAccount",
    "Revision",
    "Rollback",
    "RotationPlan",
    "RotationResult",
    "SfscError",
    "ShareRefused",
    "Shared",
    "Skip",
    "Source",
    "Space",
    "StaleGeneration",
    "Status",
    "Store",
    "SyncRunning",
    "Synced",
    "TakenOver",
    "Tampered",
    "Target",
    "Time",
    "TimedOut",
    "Timeouts",
    "TokenRefused",
    "Transaction",
    "Unreachable",
    "UnreadableSource",
    "UnsupportedKey",
    "UnsupportedKind",
    "Untrusted",
    "UsageError",
    "VerifiedHistory",
    "VerifiedProof",
    "WeakRecipient",
    "Whoami",
    "WrongPassphrase",
    "WrongServer",
    "__version__",
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
    "read_recovery_sheet",
    "recover",
    "recovery_sheet",
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
