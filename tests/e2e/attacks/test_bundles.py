"""A thief with a copy of a keyring seals bundles that mislead the machines that join later."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from unittest import mock

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.records.records import ServerStatement, Statement
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Message
from protocol.wire.messages.rotation import GetBundle
from protocol.wire.messages.session import Login
from sfsc.account import devices
from sfsc.errors import BadRecord, Fork, NetworkError, Rollback, TakenOver
from sfsc.keys.bundle import Bundle, SeenCheckpoint, seal_bundle
from sfsc.session import retry
from sfsc.store import Store
from sfsd import server_keys
from sfsd.rules.context import Principal
from tests.lying_server import DropConnection, LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


class Account:
    """An account with a file, a recovery code and a backup, whose keyring a thief has copied."""

    def __init__(self, server: LyingServer) -> None:
        self.server = server
        self.home = server.enrol("ada")
        self.backup = self.home.with_name("backup")
        self.code = sfsc.new_recovery_code()
        with connect(self.home) as store:
            store.set_recovery(self.code)
            self.link = store.link
            store.put(io.BytesIO(b"1"), name="a")
            store.backup(self.backup, no_passphrase=True)
        self.thief = server.copied(self.home, "thief")

    def poison(self, **false: object) -> None:
        """Publish a statement that changes only these fields of the bundle."""

        def seal(bundle: Bundle, **others: object) -> bytes:
            return seal_bundle(changed(bundle, **false), **others)  # type: ignore[arg-type]

        published: list[int] = []

        def once(head: Statement) -> dict[str, object] | None:
            published.append(head.n)
            return {} if len(published) == 1 else None

        with connect(self.thief) as store, mock.patch.object(devices, "seal_bundle", seal):
            store._devices._publish("device", once)

    def rotate(self, seen: SeenCheckpoint) -> None:
        """Rotate the keys on another machine that has seen this checkpoint."""

        def seal(bundle: Bundle, **others: object) -> bytes:
            return seal_bundle(changed(bundle, checkpoint=seen), **others)  # type: ignore[arg-type]

        with connect(self.thief) as store, mock.patch.object(devices, "seal_bundle", seal):
            store.rotate()

    def seen(self) -> SeenCheckpoint:
        """Return what an honest device would put into the bundle now."""
        with connect(self.home) as store:
            seen = store._session.trust.seen_checkpoint()
        assert seen is not None
        return seen

    def join(self, name: str) -> list[str]:
        """Join with the backup and with the recovery code, and list the files."""
        names = []
        for index, joining in enumerate((self._restore, self._recover)):
            home = self.home.with_name(f"{name}-{index}")
            joining(home)
            with connect(home) as store:
                names += [entry.name for entry in store.ls()]
        return names

    def _restore(self, home: Path) -> None:
        sfsc.restore(self.backup, home=home, no_passphrase=True)

    def _recover(self, home: Path) -> None:
        sfsc.recover(self.link, self.code, home=home, no_passphrase=True)


@pytest.fixture
def account(lying_server: LyingServer) -> Account:
    return Account(lying_server)


def forged(account: Account, how: str) -> SeenCheckpoint:
    """Return a checkpoint of 2^53 - 1 entries that the log never signed."""
    honest, server = account.seen(), account.server
    bogus = server.sign_note(2**53 - 1, os.urandom(32))
    lines = bogus.split(b"\n")
    thiefs = SigningKey.generate()
    if how == "no signature":
        return changed(honest, note=b"\n".join([*lines[:4], b"\xe2\x80\x94 x AAAAAAAA", b""]))
    if how == "another note's signature":
        return changed(honest, note=b"\n".join([*lines[:4], *honest.note.split(b"\n")[4:]]))
    if how == "the thief's log key":
        # The thief cannot sign a statement of the server that names the key.
        # (The last byte of one signature in 17 is zero, so change the first.)
        first, rest = honest.signature[0], honest.signature[1:]
        return SeenCheckpoint(bogus, honest.statement, bytes([first ^ 1]) + rest)
    if how == "the thief's server":
        body = changed(ServerStatement.parse(honest.statement), server_pub=thiefs.public).encode()
        return SeenCheckpoint(bogus, body, thiefs.sign(Label.SERVER_STATEMENT, body))
    assert how == "no statement"
    return SeenCheckpoint(bogus, b"", bytes(64))


@pytest.mark.parametrize(
    "how",
    [
        "no signature",
        "another note's signature",
        "the thief's log key",
        "the thief's server",
        "no statement",
    ],
)
def test_a_checkpoint_that_the_log_never_signed_stops_no_machine(
    account: Account, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    account.poison(checkpoint=forged(account, how))
    with caplog.at_level(logging.WARNING):
        assert account.join("joined") == ["a", "a"]
    # The first machine that joined has sealed an honest bundle for the second.
    assert caplog.text.count("the account's bundle has a false checkpoint") == 1


def test_a_bundle_with_another_tag_key_is_refused(account: Account) -> None:
    """With it, the machine that joins would not find the account's entries in the log."""
    account.poison(tag_key=os.urandom(32))
    home = account.home.with_name("joining")
    with pytest.raises(BadRecord, match="another tag key"):
        account._restore(home)
    with pytest.raises(TakenOver):  # a holder of the keys has made it
        account._recover(home)
    assert not (home / "keyring").exists()


def test_taking_the_account_back_works_in_spite_of_a_false_checkpoint(account: Account) -> None:
    account.poison(checkpoint=forged(account, "no signature"))
    home = account.home.with_name("taken back")
    sfsc.recover(account.link, account.code, home=home, no_passphrase=True, take_back=True)
    with connect(home) as store:
        assert [entry.name for entry in store.ls()] == ["a"]


def test_a_checkpoint_that_the_log_signed_still_counts(account: Account) -> None:
    """Another device has proven more of the log than the server shows to the new one."""
    server, honest = account.server, account.seen()
    ahead = changed(honest, note=server.sign_note(2**40, os.urandom(32)))
    account.poison(checkpoint=ahead)
    with pytest.raises(Rollback, match="fewer than") as caught:
        account.join("behind")
    assert_kept(caught.value, account.home.with_name("behind-0"), ahead.note)
    other = changed(honest, note=server.sign_note(server.journal.size - 1, os.urandom(32)))
    account.poison(checkpoint=other)
    with pytest.raises(Fork, match="not those that the server signed") as forked:
        account.join("forked")
    assert_kept(forked.value, account.home.with_name("forked-0"), other.note)


def drop_logins(who: Principal | None, request: Message, reply: Message) -> Message:
    if isinstance(request, Login):
        raise DropConnection
    return reply


@pytest.mark.parametrize("drops", [False, True])
def test_a_machine_that_adopts_new_keys_must_pass_what_their_maker_has_seen(
    account: Account, monkeypatch: pytest.MonkeyPatch, *, drops: bool
) -> None:
    """The server shows this machine another log than the one that has rotated the keys."""
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * len(retry.PAUSES))
    server, honest = account.server, account.seen()
    other = changed(honest, note=server.sign_note(server.journal.size - 1, os.urandom(32)))
    account.rotate(other)
    if drops:  # so that the machine has the new keys and cannot check

        def drop_later_logins(who: Principal | None, request: Message, reply: Message) -> Message:
            if isinstance(request, GetBundle):
                server.tamper = drop_logins
            return reply

        server.tamper = drop_later_logins
        with pytest.raises(NetworkError):
            connect(account.home)
        server.honest()
    with pytest.raises(Fork) as caught:
        connect(account.home)
    assert_kept(caught.value, account.home, other.note)


def test_a_machine_that_adopts_new_keys_passes_an_honest_checkpoint(account: Account) -> None:
    account.rotate(account.seen())
    with connect(account.home) as store:
        assert [entry.name for entry in store.ls()] == ["a"]


def assert_kept(error: Rollback | Fork, home: Path, note: bytes) -> None:
    """Check that the note is kept as evidence in `home`, which the machine that joined cannot
    use."""
    assert error.exit_code == 5
    assert error.evidence is not None
    assert Path(error.evidence).parent == home / "evidence"
    assert note.decode() in Path(error.evidence).read_text()
    assert str(error.evidence) in error.hint


def test_an_older_log_key_is_accepted_with_the_servers_statement_of_its_time(
    account: Account,
) -> None:
    account.poison(checkpoint=account.seen())
    server = account.server
    server.stop()
    server_keys.renew_log_key(server.root / "keys", 1_900_000_000)
    server.start()
    assert account.join("later") == ["a", "a"]
