"""What `sfsc share` asks before it trusts a key that nobody has compared yet."""

from __future__ import annotations

import pytest

from sfsc.cli import terminal
from sfsc.cli.commands.share import trusting
from sfsc.errors import Untrusted


def need_trust(first_use: bool) -> str:
    if not first_use:
        raise Untrusted("bob was never verified")
    return "shared"


@pytest.mark.parametrize(
    ("said", "trusted"),
    [("y", True), ("yes", True), (" YES ", True), ("", False), ("no", False), ("yesterday", False)],
)
def test_who_has_compared_says_yes(
    monkeypatch: pytest.MonkeyPatch, said: str, *, trusted: bool
) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: True)
    monkeypatch.setattr(terminal, "ask", lambda _prompt: said)
    if trusted:
        assert trusting(need_trust, first_use=False) == "shared"
    else:
        with pytest.raises(Untrusted):
            trusting(need_trust, first_use=False)


def test_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: False)
    with pytest.raises(Untrusted):
        trusting(need_trust, first_use=False)
    assert trusting(need_trust, first_use=True) == "shared"
