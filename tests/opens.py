"""What tests ask of downloads: requests for one version, and the result of one."""

from __future__ import annotations

from collections.abc import Callable

from protocol.codec.values import changed
from protocol.wire.messages import Error, Message, Reply
from protocol.wire.messages.downloads import (
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
)


def open_one(owner: str, file_id: str, version: int = 0) -> Open:
    """Return the request to open one version."""
    return Open(owner, (OpenTarget(file_id, version),))


def only_result(reply: Message) -> OpenedVersion | Error:
    """Return the only result of a reply."""
    assert isinstance(reply, Opened), reply
    [result] = reply.results
    found = result.opened or result.error
    assert found is not None
    return found


def result_of(one: OpenedVersion | Error) -> OpenResult:
    """Return the result that shows a version, or why it was not opened."""
    return OpenResult(None, one) if isinstance(one, Error) else OpenResult(one, None)


def opened_as(*shown: OpenedVersion | Error) -> Opened:
    """Return the reply with these results."""
    return Opened(tuple(map(result_of, shown)))


def with_each(reply: Opened, change: Callable[[OpenedVersion], OpenedVersion]) -> Reply:
    """Return the reply with each version that was opened changed."""
    results = [
        one if one.opened is None else changed(one, opened=change(one.opened))
        for one in reply.results
    ]
    return changed(reply, results=tuple(results))


def opens(request: Message, file_id: str, version: int | None = None) -> bool:
    """Whether the request opens this file (None: any version of it)."""
    return isinstance(request, Open) and any(
        one.file_id == file_id and version in (None, one.version) for one in request.targets
    )
