"""`sfsd serve`: errors at start. tests/e2e tests that it serves."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfsd.datadir import lock_root

Sfsd = Callable[..., Any]


def test_no_root(tmp_path: Path, sfsd: Sfsd) -> None:
    assert "sfsd init" in sfsd("serve", "--root", tmp_path, code=1).err


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "127.0.0.1:99999"])
def test_invalid_address(root: Path, sfsd: Sfsd, address: str) -> None:
    assert "--listen" in sfsd("serve", "--listen", address, code=2).err


def test_locked_root(root: Path, sfsd: Sfsd) -> None:
    with lock_root(root):
        assert "hint: " in sfsd("serve", "--listen", "127.0.0.1:0", code=1).err


def test_port_in_use(root: Path, sfsd: Sfsd, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = sfsd("serve", "--listen", address, "--ready-file", ready, code=1)
    assert address in answer.err
    assert "hint: " in answer.err
    assert not ready.exists()
    assert not (root / "run" / "address").exists()


def test_invalid_settings(root: Path, sfsd: Sfsd) -> None:
    (root / "sfsd.toml").write_text("[limits]\nconnection = 5\n")
    assert "limits.connection" in sfsd("serve", code=1).err


def test_missing_keys(root: Path, sfsd: Sfsd) -> None:
    (root / "keys" / "log.key").unlink()
    answer = sfsd("serve", code=1)
    assert "log.key" in answer.err
    assert "hint: " in answer.err


def test_metrics_without_their_library(
    root: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "sfsd.toml").write_text('[metrics]\nlisten = "127.0.0.1:0"\n')
    for name in [name for name in sys.modules if name.startswith("sfsd.net.metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = sfsd("serve", "--listen", "127.0.0.1:0", code=1)
    assert "metrics.listen needs a library" in answer.err
    assert "pip install 'sealed-file-store[metrics]'" in answer.err


def test_port_of_the_metrics_in_use(root: Path, sfsd: Sfsd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (root / "sfsd.toml").write_text(f'[metrics]\nlisten = "{address}"\n')
        answer = sfsd("serve", "--listen", "127.0.0.1:0", code=1)
    assert f"cannot listen on {address}, the address of the metrics" in answer.err
