"""Uploads, and the reasons to refuse them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.records.records import DELETE
from protocol.records.signatures import SigningKey
from protocol.wire.messages import Error
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.uploads import Aborted, Data, PutAbort, PutOpen, PutResume, UploadState
from sfsd.settings.kinds import DAY
from sfsd.state.uploads import LIFETIME, PER_USER
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, check_receipt, daemon, done, file_id, refused
from tests.sfsd.operations.test_rotation import begun

F = file_id(1)
LARGE = os.urandom(2 * PIECE + 12345)


def fetched(person: Person, wanted: str = F, version: int = 0) -> bytes:
    opened = person.ask(open_one(person.name, wanted, version))
    assert isinstance(opened, OpenedVersion), opened
    return bytes(opened.data)


def test_a_small_file_can_be_stored_and_read(served: Daemon, ada: Person) -> None:
    ada.put(F, b"x" * 1000)
    assert fetched(ada) == b"x" * 1000
    (entry,) = served.entries("upload")
    assert (entry.actor, entry.owner, entry.file, entry.version) == ("ada", "ada", F, 1)
    assert entry.session == ada.who.session
    assert set(entry.accounts) == {"ada"}
    stem = f"ada/files/00/{F}.1"
    assert set(entry.paths) == {f"{stem}.ct", f"{stem}.json"}


def test_a_new_version_follows_the_last_record(ada: Person) -> None:
    for number in range(1, 4):
        ada.put(F, bytes([number]) * 100)
    assert [fetched(ada, version=v)[:1] for v in (1, 2, 3, 0)] == [b"\1", b"\2", b"\3", b"\3"]


def test_the_same_record_again_gets_the_same_receipt(served: Daemon, ada: Person) -> None:
    version = ada.put(F)
    size = served.context.journal.size
    again = check_receipt(done(ada.ask(version.small())), version.body)
    assert served.context.journal.size == size
    assert again.seq == served.entries("upload")[0].seq


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "another server": ("bad-request", {"server": bytes(32)}),
    "an actor who is not the owner": ("bad-request", {"actor": "server"}),
    "a generation that is not there yet": ("bad-request", {"generation": 2}),
    "a first record that says it is the second": (
        "conflict",
        {"rev": 2, "prev": bytes(32)},
    ),
    "a log longer than ours": ("bad-request", {"seen": (10**6, bytes(32))}),
    "another log than ours": ("bad-request", {"seen": (1, bytes(32))}),
    "a version too high": ("bad-request", {"version": 2, "current": 2}),
    "another version current": ("bad-request", {"current": 0}),
    "another size": ("bad-request", {"ciphertext_size": 57}),
    "another root": ("bad-request", {"segments_root": bytes(32)}),
    "another metadata hash": ("bad-request", {"metadata_sha256": bytes(32)}),
    "no metadata": ("bad-request", {"metadata": b""}),
    "a reader who does not exist": ("bad-request", {"readers": (("eve", bytes(32), 0),)}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_breaks_a_rule_is_refused(served: Daemon, ada: Person, wrong: str) -> None:
    code, changes = WRONG[wrong]
    size = served.context.journal.size
    refused(ada.ask(ada.version(F, b"c" * 56, **changes).small()), code)
    assert served.context.journal.size == size
    ada.put(F)  # and the valid one is accepted


def test_a_put_to_another_owner_gives_not_found(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    put = ada.version(F, b"c" * 56)
    foreign = refused(bob.ask(put.small()), "not-found")
    unknown = refused(bob.ask(PutOpen("nobody", F, 0)), "not-found")
    assert foreign == unknown == refused(bob.ask(PutOpen("ada", F, 0)), "not-found")


def test_a_malformed_record_is_refused(ada: Person) -> None:
    put = ada.version(F, b"c" * 56).small()
    wrong = changed(put, changes=(changed(put.changes[0], record=b"\x80"),))
    refused(ada.ask(wrong), "bad-request")


def test_only_put_records_store_content(ada: Person) -> None:
    ada.put(F)
    delete = ada.signed(ada.record(F, DELETE, current=0))
    refused(ada.ask(changed(delete, ciphertext=b"c" * 56).small()), "bad-request")
    upload = ada.upload(F, b"c" * 56)
    refused(ada.ask(delete.commit(upload)), "bad-request")


def test_a_signature_by_another_key_is_refused(served: Daemon, ada: Person) -> None:
    mine, ada.key = ada.key, SigningKey.generate()
    refused(ada.ask(ada.version(F, b"c" * 56).small()), "refused")
    ada.key = mine
    ada.put(F)


def test_the_second_of_two_writers_gets_a_conflict_and_the_head(ada: Person) -> None:
    late = ada.version(F, b"late")
    early = ada.put(F, b"early")
    error = refused(ada.ask(late.small()), "conflict")
    assert error.head is not None
    assert error.head.content.record == early.body
    assert error.head.wraps == early.wraps
    ada.put(F, b"late again")


def test_a_record_with_a_wrong_prev_gives_conflict(ada: Person) -> None:
    ada.put(F)
    refused(ada.ask(ada.version(F, b"c" * 56, prev=bytes(32)).small()), "conflict")


def test_a_put_cannot_change_the_readers(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    ada.put(F)
    wraps = (ada.wrap(), bob.wrap())
    readers = (("bob", bob.first_hash, 0),)
    refused(ada.ask(ada.version(F, b"2", readers=readers, wraps=wraps).small()), "bad-request")


def test_a_repeated_content_id_is_refused(ada: Person) -> None:
    first = ada.put(F)
    ada.put(F)
    reused = ada.version(F, b"c" * 56, content_id=first.record.content_id)
    refused(ada.ask(reused.small()), "bad-request")


def test_a_new_file_with_readers_appears_in_their_inboxes(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    readers = (("bob", bob.first_hash, 0),)
    put = ada.put(F, b"shared", readers=readers, wraps=(ada.wrap(), bob.wrap()))
    opened = bob.ask(open_one("ada", F, 0))
    assert isinstance(opened, OpenedVersion)
    assert opened.view.wraps == put.wraps[1:]
    assert served.context.store.read(f"bob/inbox/ada.{F}") == b""
    assert set(served.entries("upload")[0].accounts) == {"ada", "bob"}
    # The next version needs a wrap for bob; without it, the put is refused.
    refused(ada.ask(ada.version(F, b"2").small()), "stale-recipient")
    ada.put(F, b"2", wraps=(bob.wrap(), ada.wrap()))


def test_an_expired_reader_needs_no_wrap(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    until = int(served.clock.now) + DAY
    readers = (("bob", bob.first_hash, until),)
    ada.put(F, readers=readers, wraps=(ada.wrap(), bob.wrap()))
    refused(ada.ask(ada.version(F, b"2").small()), "stale-recipient")
    served.clock.now = until
    ada.put(F, b"2")
    assert isinstance(bob.ask(open_one("ada", F, 0)), Error)


def test_a_reader_who_expires_within_ten_minutes_needs_no_wrap(served: Daemon, ada: Person) -> None:
    """The client's clock may be ahead, so that it makes no wrap for the reader any more."""
    bob = served.person("bob")
    until = int(served.clock.now) + DAY
    ada.put(F, readers=(("bob", bob.first_hash, until),), wraps=(ada.wrap(), bob.wrap()))
    served.clock.now = until - 601
    refused(ada.ask(ada.version(F, b"2").small()), "stale-recipient")
    served.clock.now = until - 600
    ada.put(F, b"2")


def test_a_reader_whose_key_expires_within_ten_minutes_needs_no_wrap(
    served: Daemon, ada: Person
) -> None:
    bob = served.person("bob")
    served.clock.now += DAY  # ada's key, which has to sign, is as old as bob's
    begun(ada)
    ada.put(F, readers=(("bob", bob.first_hash, 0),), wraps=(ada.wrap(), bob.wrap()))
    served.clock.now = bob.first.expires - 601
    refused(ada.ask(ada.version(F, b"2").small()), "stale-recipient")
    served.clock.now = bob.first.expires - 600
    ada.put(F, b"2")


def test_wraps_must_match_the_owner_and_readers(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")

    def code(*wraps: Any) -> str:
        reply = ada.ask(ada.version(F, b"c" * 56, wraps=wraps).small())
        assert isinstance(reply, Error), reply
        return reply.code

    assert code() == "stale-recipient"
    assert code(ada.wrap(key_id=bytes(32))) == "stale-recipient"
    assert code(ada.wrap(algorithm="xwing")) == "stale-recipient"
    for size in (80, 155, 157):
        assert code(ada.wrap(wrapped=bytes(size))) == "bad-request"
    assert code(ada.wrap(), ada.wrap()) == "bad-request"
    assert code(ada.wrap(), bob.wrap()) == "bad-request"


def test_an_expired_key_cannot_write(served: Daemon, ada: Person) -> None:
    ada.put(F)
    served.clock.now = ada.first.expires
    refused(ada.ask(ada.version(F, b"2").small()), "rotation-required")
    assert fetched(ada) == b"c" * 56


def test_a_large_file_is_uploaded_in_pieces(served: Daemon, ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    version = ada.took(ada.version(F, LARGE))
    check_receipt(done(ada.ask(version.commit(upload))), version.body)
    assert served.context.store.read(f"ada/files/00/{F}.1.ct") == LARGE
    assert ada.used() == ada.stored() > len(LARGE)
    # If the reply was lost, the same commit gets the same receipt, though the upload is gone.
    check_receipt(done(ada.ask(version.commit(upload))), version.body)
    refused(ada.ask(PutResume(upload)), "upload-lost")


def test_the_size_may_be_unknown_until_the_end(ada: Person) -> None:
    upload = ada.upload(F, LARGE, size=0)
    version = ada.took(ada.version(F, LARGE))
    done(ada.ask(version.commit(upload)))
    assert ada.used() == ada.stored()


def test_more_than_64_leaf_hashes_are_stored_in_their_own_file(served: Daemon, ada: Person) -> None:
    content = b"\x07" * (64 * PIECE + 1)
    upload = ada.upload(F, content)
    version = ada.took(ada.version(F, content))
    done(ada.ask(version.commit(upload)))
    assert len(served.context.store.read(f"ada/files/00/{F}.1.leaves")) == 65 * 32
    assert ada.used() == ada.stored() > 64 * PIECE
    opened = ada.ask(open_one("ada", F, 0))
    assert isinstance(opened, OpenedVersion)
    assert len(opened.leaves) == 65 * 32


BAD_PIECES: dict[str, tuple[int, int]] = {
    "not at a multiple of 1 MiB": (1, PIECE),
    "empty": (0, 0),
    "beyond the window": (64 * PIECE, PIECE),
    "short before the end": (0, PIECE - 1),
    "past the end": (2 * PIECE, 12346),
}


@pytest.mark.parametrize("wrong", BAD_PIECES)
def test_an_invalid_piece_is_refused(ada: Person, wrong: str) -> None:
    offset, length = BAD_PIECES[wrong]
    state = ada.ask(PutOpen("ada", F, len(LARGE)))
    assert isinstance(state, UploadState)
    refused(ada.ask(Data(state.upload, offset, bytes(length))), "bad-request")
    assert ada.ask(PutResume(state.upload)) == UploadState(state.upload, 0)


def test_no_piece_may_follow_a_short_piece(ada: Person) -> None:
    state = ada.ask(PutOpen("ada", F, 0))
    assert isinstance(state, UploadState)
    assert ada.ask(Data(state.upload, 0, b"short")) == UploadState(state.upload, 5)
    refused(ada.ask(Data(state.upload, PIECE, b"more")), "bad-request")
    assert ada.ask(Data(state.upload, 0, b"short")) == UploadState(state.upload, 5)


def test_an_incomplete_upload_cannot_be_committed(ada: Person) -> None:
    state = ada.ask(PutOpen("ada", F, len(LARGE)))
    assert isinstance(state, UploadState)
    version = ada.version(F, LARGE)
    refused(ada.ask(version.commit(state.upload)), "bad-request")
    assert ada.ask(Data(state.upload, PIECE, LARGE[PIECE : 2 * PIECE])) == UploadState(
        state.upload, 0
    )
    refused(ada.ask(version.commit(state.upload)), "bad-request")
    for at in (0, 2 * PIECE):
        ada.ask(Data(state.upload, at, LARGE[at : at + PIECE]))
    done(ada.ask(version.commit(state.upload)))


def test_an_upload_survives_its_connection(served: Daemon, ada: Person) -> None:
    state = ada.ask(PutOpen("ada", F, len(LARGE)))
    assert isinstance(state, UploadState)
    ada.ask(Data(state.upload, 0, LARGE[:PIECE]))
    served.dispatcher.close_session(ada.who)
    ada.who = ada.log_in()
    resumed = ada.ask(PutResume(state.upload))
    assert resumed == UploadState(state.upload, PIECE)
    for at in (PIECE, 2 * PIECE):
        ada.ask(Data(state.upload, at, LARGE[at : at + PIECE]))
    done(ada.ask(ada.version(F, LARGE).commit(state.upload)))


def test_a_foreign_upload_gives_not_found(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    upload = ada.upload(F, LARGE)
    for message in (PutResume(upload), PutAbort(upload), Data(upload, 0, b"x")):
        refused(bob.ask(message), "upload-lost")
    refused(bob.ask(bob.version(F, LARGE).commit(upload)), "upload-lost")


def test_the_ciphertext_is_kept_after_a_conflict(ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    late = ada.version(F, LARGE)
    ada.put(F, b"overtaken")
    refused(ada.ask(late.commit(upload)), "conflict")
    again = ada.version(F, LARGE)
    check_receipt(done(ada.ask(again.commit(upload))), again.body)


def test_the_ciphertext_is_kept_after_a_stale_recipient(ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    wrong = ada.version(F, LARGE, wraps=(ada.wrap(key_id=bytes(32)),))
    refused(ada.ask(wrong.commit(upload)), "stale-recipient")
    done(ada.ask(ada.version(F, LARGE).commit(upload)))


def test_a_commit_for_another_file_is_refused(ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    refused(ada.ask(ada.version(file_id(2), LARGE).commit(upload)), "bad-request")


def test_a_commit_waits_for_the_data_sent_before_it(served: Daemon, ada: Person) -> None:
    state = ada.ask(PutOpen("ada", F, len(LARGE)))
    assert isinstance(state, UploadState)
    version = ada.version(F, LARGE)
    pieces = [Data(state.upload, at, LARGE[at : at + PIECE]) for at in range(0, len(LARGE), PIECE)]
    *_, last = served.ask_all(ada.who, [*pieces, version.commit(state.upload)])
    check_receipt(done(last), version.body)


def test_two_commits_of_one_upload_add_one_version(served: Daemon, ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    commit = ada.version(F, LARGE).commit(upload)
    replies = served.ask_all(ada.who, [commit, commit])
    assert len(served.entries("upload")) == 1
    done(replies[0])
    if isinstance(replies[1], Error):
        assert replies[1].code in ("busy", "upload-lost")
    else:
        assert done(replies[1]).line == done(replies[0]).line


def test_an_aborted_upload_is_removed_and_frees_its_quota(served: Daemon, ada: Person) -> None:
    upload = ada.upload(F, LARGE)
    assert ada.used() == len(LARGE)
    assert ada.ask(PutAbort(upload)) == Aborted()
    assert ada.used() == 0
    refused(ada.ask(PutResume(upload)), "upload-lost")
    assert list(served.context.store.staging.glob("*.ct")) == []


def test_an_idle_upload_is_dropped_after_an_hour(served: Daemon, ada: Person) -> None:
    state = ada.ask(PutOpen("ada", F, len(LARGE)))
    assert isinstance(state, UploadState)
    served.clock.now += LIFETIME
    ada.ask(Data(state.upload, 0, LARGE[:PIECE]))
    served.clock.now += LIFETIME
    assert ada.ask(PutResume(state.upload)) == UploadState(state.upload, PIECE)
    served.clock.now += 1
    served.run(served.dispatcher.tick())
    refused(ada.ask(PutResume(state.upload)), "upload-lost")
    assert ada.used() == 0


def test_the_number_of_uploads_of_a_user_is_limited(ada: Person) -> None:
    for _ in range(PER_USER):
        assert isinstance(ada.ask(PutOpen("ada", F, 0)), UploadState)
    refused(ada.ask(PutOpen("ada", F, 0)), "busy")


def test_a_reencryption_replaces_what_it_counted(served: Daemon) -> None:
    bob = served.person("bob", quota=3 * PIECE)
    old = bytes(2 * PIECE)
    bob.took(made := bob.version(F, old))
    done(bob.ask(made.commit(bob.upload(F, old))))
    stored = bob.stored()
    for wrong in (PutOpen("bob", F, PIECE, 1), PutOpen("bob", F, 0, 1)):
        refused(bob.ask(wrong), "bad-request")
    refused(bob.ask(PutOpen("bob", F, 2 * PIECE, 2)), "not-found")
    state = bob.ask(PutOpen("bob", F, 2 * PIECE, 1))
    assert isinstance(state, UploadState)
    new = b"n" * (2 * PIECE)
    for at in (0, PIECE):
        assert isinstance(bob.ask(Data(state.upload, at, new[at : at + PIECE])), UploadState)
    refused(bob.ask(Data(state.upload, 2 * PIECE, b"more")), "bad-request")
    assert bob.used() == stored
    # It cannot be committed as a new version, which would count.
    refused(bob.ask(bob.version(F, new).commit(state.upload)), "bad-request")
    done(bob.ask(bob.reencrypted(F, 1, new).commit(state.upload)))
    assert bob.used() == bob.stored() < stored + 1000
    # Two at a time are allowed: a third drops the oldest, which a crashed client may have left.
    tries = []
    for _ in range(3):
        served.clock.now += 1
        tries.append(bob.ask(PutOpen("bob", F, 2 * PIECE, 1)))
    ids = [one.upload for one in tries if isinstance(one, UploadState)]
    refused(bob.ask(PutResume(ids[0])), "upload-lost")
    assert all(isinstance(bob.ask(PutResume(one)), UploadState) for one in ids[1:])


def test_running_uploads_count_against_the_quota(served: Daemon) -> None:
    bob = served.person("bob", quota=3 * PIECE)
    bob.put(F, bytes(190_000))
    upload = bob.upload(file_id(2), bytes(2 * PIECE))
    assert bob.used() == bob.stored() + 2 * PIECE
    refused(bob.ask(PutOpen("bob", F, PIECE)), "quota")
    state = bob.ask(PutOpen("bob", F, 0))
    assert isinstance(state, UploadState)
    refused(bob.ask(Data(state.upload, 0, bytes(PIECE))), "quota")
    bob.put(F, bytes(262_144))
    bob.put(F, bytes(262_144))
    bob.put(F, bytes(262_144))
    refused(bob.ask(bob.version(F, bytes(262_144)).small()), "quota")
    done(bob.ask(bob.version(file_id(2), bytes(2 * PIECE)).commit(upload)))
    assert bob.used() == bob.stored()
    bob.delete(F)  # a delete ignores the quota, and frees nothing
    assert bob.used() == bob.stored()


def test_two_puts_cannot_both_take_the_remaining_quota(served: Daemon) -> None:
    bob = served.person("bob", quota=150_000)
    puts = [bob.version(file_id(n), bytes(100_000)).small() for n in range(8)]
    replies = served.ask_all(bob.who, puts)
    codes = [reply.code for reply in replies if isinstance(reply, Error)]
    assert codes == ["quota"] * 7
    assert bob.used() == bob.stored()


def test_of_eight_concurrent_writers_one_adds_a_version(served: Daemon, ada: Person) -> None:
    puts = [ada.version(F, bytes([n]) * 99) for n in range(8)]
    replies = served.ask_all(ada.who, [put.small() for put in puts])
    codes = [reply.code for reply in replies if isinstance(reply, Error)]
    assert codes == ["conflict"] * 7
    assert len(served.entries("upload")) == 1


def test_files_survive_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        bob = served.person("bob", quota=PIECE)
        bob.put(F, b"one")
        again = bob.put(F, b"two2")
    with daemon(tmp_path, served.clock) as served:
        bob.served = served
        bob.who = bob.log_in()
        assert fetched(bob) == b"two2"
        assert bob.used() == bob.stored()
        check_receipt(done(bob.ask(again.small())), again.body)
        bob.put(F, b"three")


def test_an_empty_ciphertext_is_refused(ada: Person) -> None:
    """Its content would not count against the quota."""
    refused(ada.ask(ada.version(F, b"").small()), "bad-request")
