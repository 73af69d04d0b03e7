"""All targets by kind, and how they share the inputs of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sfsd.rules.context import Access
from tests.fuzz.client_targets import keyring_targets, segment_targets
from tests.fuzz.record_targets import line_targets, note_targets, record_targets
from tests.fuzz.replies import OWNER, READER, Replies
from tests.fuzz.requests import Requests
from tests.fuzz.storage_targets import sidecar_targets
from tests.fuzz.target import Target
from tests.fuzz.wire_targets import frame_targets, message_targets
from tests.fuzz.world import World


def reply_targets(_world: World) -> list[Target]:
    """Return targets for the replies to an owner and to a reader, who have daemons of their own."""
    return [
        Replies("replies to an owner", "ada", OWNER),
        Replies("replies to a reader", "bob", READER),
    ]


def request_targets(_world: World) -> list[Target]:
    """Return targets for the requests of a user and of an operator, who have daemons of their
    own."""
    return [
        Requests("requests of a user", Access.FULL),
        Requests("requests of an operator", Access.OPERATOR),
    ]


KINDS: dict[str, tuple[float, Callable[[World], Sequence[Target]]]] = {
    "frames": (0.12, frame_targets),
    "messages": (0.24, message_targets),
    "requests": (0.02, request_targets),
    "records": (0.18, record_targets),
    "lines": (0.10, line_targets),
    "notes": (0.09, note_targets),
    "sidecars": (0.09, sidecar_targets),
    "keyring": (0.06, keyring_targets),
    "segments": (0.07, segment_targets),
    "replies": (0.03, reply_targets),
}
"""The share of all inputs, and the targets, of each kind."""
