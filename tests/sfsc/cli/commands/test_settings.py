"""`sfsc settings`, and what `put --pad` stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsc.crypto.segments import ciphertext_size
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("settings") / "lying") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada", key_type="x25519")


def test_the_setting_is_shown_changed_and_overridden(shell: Shell) -> None:
    Path("file").write_bytes(bytes(1001))

    def stored(*options: str) -> int:
        shell.run("put", "file", *options)
        size: int = json.loads(shell.run("stat", "--json", "file")[0])["ciphertext_size"]
        return size

    assert shell.run("settings")[0] == "pad off\n"
    assert (stored(), stored("--pad")) == (ciphertext_size(1001), ciphertext_size(1024))
    assert shell.run("settings", "pad", "on")[0] == "pad on\n"
    assert json.loads(shell.run("settings", "--json")[0]) == {"pad": True}
    assert (stored(), stored("--no-pad")) == (ciphertext_size(1024), ciphertext_size(1001))
    shell.run("put", "--pad", "--command", "head -c 1001 /dev/zero", "--name", "piped")
    assert json.loads(shell.run("stat", "--json", "piped")[0])["ciphertext_size"] == 1024 + 56
    assert shell.run("settings", "pad", "off")[0] == "pad off\n"
