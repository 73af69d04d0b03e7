"""The account's settings: how often they are looked up while many files are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sfsc
from sfsc.files.settings import FRESH_SECONDS, AccountSettings
from tests.lying_server import LyingServer


def test_an_account_without_settings_costs_one_look_at_the_log_for_many_files(
    lying_server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    home: Path = lying_server.enrol("ada", key_type="x25519")
    now, looked = 100.0, 0
    with (
        sfsc.connect(home) as store,
        sfsc.connect(lying_server.copied(home, "other")) as other,
    ):
        session = store._session
        settings, look = AccountSettings(session, lambda: now), session.head_at

        def head_at(file_id: str, at: int, *saved: Any) -> tuple[int, bytes] | None:
            nonlocal looked
            looked += not saved
            return look(file_id, at, *saved)

        monkeypatch.setattr(session, "head_at", head_at)
        assert [settings.pads() for _ in range(5)] == [False] * 5
        assert looked == 1
        other.set_padding(True)
        session.refresh_log()
        now += FRESH_SECONDS - 1.0
        assert not settings.pads()
        now += 1.0
        assert settings.pads()
        assert settings.pads()
        assert looked == 2
