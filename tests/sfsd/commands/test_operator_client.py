"""Requests of the operator's commands: which exit code an error reply leads to."""

from __future__ import annotations

import pytest

from protocol.wire.messages import Error
from sfsd.commands.operator_client import accepted_reply
from sfsd.errors import CommandError


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("not-found", 3),
        ("not-allowed", 4),
        ("refused", 4),
        ("denied", 4),
        ("damaged", 5),
        ("conflict", 6),
        ("unavailable", 7),
        ("busy", 7),
        ("shutting-down", 7),
        ("bad-request", 1),
    ],
)
def test_error_reply_sets_the_exit_code(code: str, exit_code: int) -> None:
    with pytest.raises(CommandError) as caught:
        accepted_reply(Error(code, "cause"))
    assert (caught.value.exit_code, caught.value.cause) == (exit_code, "cause")
    assert caught.value.hint
