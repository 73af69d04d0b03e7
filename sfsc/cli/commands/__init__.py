"""One file a command, loaded when it is called: start-up pays for nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.values import Value

if TYPE_CHECKING:
    from sfsc.store import Store

_OWNER: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,31}):(.+)", re.DOTALL)


class Context(Value):
    """What every command is given: where the keys are, and whether to answer in JSON."""

    home: Path | None
    json: bool


def split_owner(store: Store, text: str) -> tuple[str | None, str]:
    """(owner, name) of what is called ``OWNER:NAME``; no owner for a file of one's own, which is
    called so too where its name has a colon."""
    matched = _OWNER.fullmatch(text)
    if matched is None:
        return None, text
    owner, name = matched[1], matched[2]
    return (None if owner == store.whoami().user else owner), name
