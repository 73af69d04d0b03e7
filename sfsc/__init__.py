"""Files encrypted here, kept by a server that cannot read them.

::

    import sfsc

    with sfsc.connect() as store:
        store.put("report.pdf", name="docs/report.pdf")
        store.get("docs/report.pdf", "copy.pdf")

Everything raised on purpose is an `SfscError` with a `cause`, a `hint` and an `exit_code`; the tree
is drawn in `sfsc.errors`.
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
    from sfsc.api import (
        Entry,
        Got,
        Grant,
        Person,
        Put,
        Shared,
        Status,
        Store,
        Whoami,
        accept,
        check_proof,
        connect,
        enrol,
        export_pem,
        import_pem,
        new_recovery_code,
        recover,
        restore,
        take_back,
        take_back_plan,
        whoami,
    )

__all__ = [
    "ConflictError",
    "Denied",
    "Entry",
    "Got",
    "Grant",
    "IntegrityError",
    "KeyringError",
    "LocalError",
    "NetworkError",
    "NotFound",
    "Person",
    "Put",
    "SfscError",
    "Shared",
    "Status",
    "Store",
    "UsageError",
    "Whoami",
    "accept",
    "check_proof",
    "connect",
    "enrol",
    "export_pem",
    "import_pem",
    "new_recovery_code",
    "recover",
    "restore",
    "take_back",
    "take_back_plan",
    "whoami",
]

_ERRORS = frozenset(name for name in __all__ if name in globals())


if not TYPE_CHECKING:  # to type checkers it would say that there is every name

    def __getattr__(name: str) -> object:
        """What needs the cryptography is loaded when first used: help and mistakes do without."""
        if name in ("connect", "whoami"):  # which load by themselves what they need
            from sfsc import entrance

            return getattr(entrance, name)
        if name in __all__ and name not in _ERRORS:
            from sfsc import api

            return getattr(api, name)
        raise AttributeError(f"module 'sfsc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
