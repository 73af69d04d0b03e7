"""`sfsd user` without a running daemon; tests/e2e/test_operator.py has one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.records.invitation import parse_invitation
from protocol.wire.messages.accounts import UserAdd
from sfsd import server_keys
from sfsd.commands.operator_client import send_requests
from sfsd.datadir import lock_root
from sfsd.settings.kinds import DAY

Sfsd = Callable[..., Any]


def account(root: Path, user: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(
        (root / "store" / "users" / user / "account.json").read_bytes()
    )
    return read


def test_add_prints_only_the_invitation(root: Path, sfsd: Sfsd) -> None:
    answer = sfsd("user", "add", "ada")
    assert (len(answer.lines), answer.err) == (1, "")
    invitation = parse_invitation(answer.out)
    assert (invitation.host, invitation.port, invitation.user) == ("files.example", 7373, "ada")
    assert invitation.pin == server_keys.load(root / "keys").server_id
    assert len(invitation.token) == 32


def test_token_is_neither_stored_nor_logged(root: Path, sfsd: Sfsd) -> None:
    invitation = parse_invitation(sfsd("user", "add", "ada").out)
    text = invitation.to_text().rpartition("=")[2]
    kept = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    assert not [data for data in kept if text.encode() in data or invitation.token in data]
    assert invitation.token_sha256 == hashlib.sha256(invitation.token).digest()


def test_adding_again_replaces_the_token(root: Path, sfsd: Sfsd) -> None:
    first, second = sfsd("user", "add", "ada").out, sfsd("user", "add", "ada").out
    assert first != second
    assert [line.split()[:2] for line in sfsd("user", "list").lines] == [["ada", "invited"]]


def test_adding_again_keeps_the_quota(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada", "--quota", "1GiB")
    sfsd("user", "add", "ada")
    assert account(root, "ada")["quota"] == 1024**3
    sfsd("user", "add", "ada", "--quota", "0")
    assert account(root, "ada")["quota"] == 0


def test_quota_is_changed(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada")
    for size, quota in (("3GiB", 3 * 1024**3), ("10", 10), ("0", 0)):
        sfsd("user", "quota", "ada", size)
        assert account(root, "ada")["quota"] == quota
    sfsd("user", "quota", "eve", "1", code=3)
    sfsd("user", "quota", "ada", "much", code=2)


def test_quota_and_expiry(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada", "--quota", "2 MiB", "--expires", "12h")
    shown = json.loads(sfsd("user", "show", "ada", "--json").out)
    assert shown["quota"] == 2 * 1024**2
    assert abs(shown["invited_until"] - time.time() - DAY / 2) < 60
    (root / "sfsd.toml").write_text('public = "files.example:1"\nquota = "1G"\n')
    sfsd("user", "add", "bob")
    assert json.loads(sfsd("user", "show", "bob", "--json").out)["quota"] == 1024**3


@pytest.mark.parametrize("option", [("--quota", "much"), ("--expires", "-1d")])
def test_invalid_options(root: Path, sfsd: Sfsd, option: tuple[str, str]) -> None:
    answer = sfsd("user", "add", "ada", *option, code=2)
    assert answer.out == ""
    assert "write it like" in answer.err
    assert sfsd("user", "list").lines == []


@pytest.mark.parametrize("text", ["", 'listen = "0.0.0.0:7373"\n'])
def test_add_without_an_address(root: Path, sfsd: Sfsd, text: str) -> None:
    (root / "sfsd.toml").write_text(text)
    answer = sfsd("user", "add", "ada", code=1)
    assert answer.out == ""
    assert "public" in answer.err
    assert sfsd("user", "list").lines == []


def test_list_and_show(root: Path, sfsd: Sfsd) -> None:
    assert sfsd("user", "list").out == ""
    for name in ("bob", "ada", "carol"):
        sfsd("user", "add", name)
    assert [line.split()[0] for line in sfsd("user", "list").lines] == ["ada", "bob", "carol"]
    listed = [json.loads(line) for line in sfsd("user", "list", "--json").lines]
    assert [entry["user"] for entry in listed] == ["ada", "bob", "carol"]
    assert listed[0] == json.loads(sfsd("user", "show", "ada", "--json").out)
    sfsd("user", "quota", "bob", "1500000")
    assert sfsd("user", "list").lines[:2] == [
        "ada\tinvited\t0\t0 B\tnone\t-\t-\t-\t-",
        "bob\tinvited\t0\t0 B\t1.4 MiB\t-\t-\t-\t-",
    ]
    shown = dict(line.split(maxsplit=1) for line in sfsd("user", "show", "ada").lines[:2])
    assert shown == {"user": "ada", "state": "invited"}


def test_list_of_several_pages(root: Path, sfsd: Sfsd) -> None:
    names = [f"user{number:03}" for number in range(260)]
    send_requests(root, [UserAdd(name, bytes(32), 2_000_000_000, 0) for name in names])
    assert [line.split()[0] for line in sfsd("user", "list").lines] == names


def test_unknown_users(root: Path, sfsd: Sfsd) -> None:
    for verb in ("show", "disable", "enable"):
        answer = sfsd("user", verb, "nobody", code=3)
        assert answer.out == ""
        assert answer.err.startswith("sfsd: ")


def test_disable_and_enable(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada")
    sfsd("user", "disable", "ada", "--reason", "left")
    assert account(root, "ada")["disabled"] is True
    assert sfsd("user", "list").lines[0].split()[1] == "disabled"
    sfsd("user", "enable", "ada")
    assert account(root, "ada")["disabled"] is False
    ops = [json.loads(line)["op"] for line in sfsd("audit", "log", "--json").lines]
    assert ops.count("user-add") == 1
    assert len(ops) >= 4


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0", b"\xff\xfe", b"nowhere\n"])
def test_truncated_address_file(root: Path, sfsd: Sfsd, left: bytes) -> None:
    """It is never synced, so a power loss may truncate it."""
    (root / "sfsd.toml").write_text("")
    (root / "run").mkdir(exist_ok=True)
    (root / "run" / "address").write_bytes(left)
    with lock_root(root):
        answer = sfsd("user", "add", "ada", code=7)
    assert "hint: " in answer.err


@pytest.mark.parametrize("port", ["0", "00"])
def test_add_refuses_port_0(root: Path, sfsd: Sfsd, port: str) -> None:
    (root / "sfsd.toml").write_text(f'public = "files.example:{port}"\n')
    assert "port 0" in sfsd("user", "add", "ada", code=1).err


def test_remove_withdraws_an_invitation(root: Path, sfsd: Sfsd) -> None:
    sfsd("user", "add", "ada")
    assert sfsd("user", "remove", "ada").out == "removed ada\n"
    shown = json.loads(sfsd("user", "show", "ada", "--json").out)
    assert shown["state"] == "removed"
    assert not {"disabled", "revoked", "removed"} & shown.keys()
    sfsd("user", "remove", "ada", code=6)
    sfsd("user", "remove", "nobody", code=3)
    sfsd("user", "revoke", "ada", code=3)
    sfsd("user", "add", "ada")
    told = sfsd("user", "remove", "ada", "--keep-days", "3").out
    assert told.startswith("ada is disabled, and the files are removed after ")
    assert json.loads(sfsd("user", "show", "ada", "--json").out)["state"] == "removing"
    sfsd("user", "enable", "ada")
    assert json.loads(sfsd("user", "show", "ada", "--json").out)["state"] == "invited"


def test_rename_is_refused_with_the_reason(sfsd: Sfsd) -> None:
    told = sfsd("user", "rename", "ada", "eve", code=4).err
    assert "the name is in every record that the user has signed" in told
    assert "`sfsd user remove ada`" in told
