"""Progress of long steps, as a session reports it: how much there is to do, how much is done, and
whether it waits for the server."""

from __future__ import annotations

from typing import ClassVar


class Progress:
    """Receives the progress of long steps. The methods do nothing: override those you want.

    They are called on the thread that works, up to thousands of times a second, and must return at
    once. Numbers are approximate: those of bytes are of plaintext, but with what encryption adds to
    a large file, and an upload that begins again counts again.
    """

    wanted: ClassVar[bool] = True
    """Whether anybody wants to know, so that totals are worth finding out."""

    def expect(self, size: int) -> None:
        """Announce that `size` more bytes will be transferred; fewer, if it is negative."""

    def advance(self, size: int) -> None:
        """Report that `size` more bytes were transferred."""

    def expect_items(self, count: int, *, more: bool = False) -> None:
        """Announce that `count` more files, versions or entries of the log will be processed. With
        `more`, there are others that are not counted yet: no total is known."""

    def advance_items(self, count: int = 1) -> None:
        """Report that `count` more of them were processed."""

    def begin_file(self, name: str, size: int | None) -> None:
        """Report that the transfer of a large file of `size` bytes begins (None: not known). What
        `advance` reports from now on is of this file, until the next one begins. `name` may be
        another user's: escape it before you show it."""

    def reconnecting(self, cause: str, seconds: float) -> None:
        """Report that the connection was lost, or the last attempt failed, because of `cause`: the
        next attempt is made in `seconds`."""

    def reconnected(self) -> None:
        """Report that the server has answered again, or that no more attempts are made."""


class NoProgress(Progress):
    """Ignores all progress."""

    wanted = False
