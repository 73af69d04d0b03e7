"""One file a command, loaded when it is called: start-up pays for nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Context:
    """What every command is given: where the keys are, and whether to answer in JSON."""

    home: Path | None
    json: bool
