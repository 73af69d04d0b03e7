"""Base class of contexts that close themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager whose `close` runs when the ``with`` block ends, for whatever reason."""

    @abstractmethod
    def close(self) -> None:
        """Release the resources held. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
