"""Confirmation of a key that nobody has compared yet."""

from __future__ import annotations

import pytest

from sfsc.cli import terminal
from sfsc.cli.commands.sharing import confirm_trust
from sfsc.errors import Untrusted


def need_trust(first_use: bool) -> str:
    if not first_use:
        raise Untrusted("bob was never verified")
    return "shared"


@pytest.mark.parametrize(
    ("said", "trusted"),
    [("y", True), ("yes", True), (" YES ", True), ("", False), ("no", False), ("yesterday", False)],
)
def test_the_user_confirms_with_yes(
    monkeypatch: pytest.MonkeyPatch, said: str, *, trusted: bool
) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: True)
    monkeypatch.setattr(terminal, "ask_user", lambda _prompt: said)
    if trusted:
        assert confirm_trust(need_trust, first_use=False) == "shared"
    else:
        with pytest.raises(Untrusted):
            confirm_trust(need_trust, first_use=False)


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: False)
    with pytest.raises(Untrusted):
        confirm_trust(need_trust, first_use=False)
    assert confirm_trust(need_trust, first_use=True) == "shared"
