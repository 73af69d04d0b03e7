"""Files match the log, or are damaged."""

from __future__ import annotations

import hashlib

import pytest

from protocol.wire.messages.accounts import UserAccess
from sfsd.errors import Absent, DamagedError
from sfsd.state import documents
from sfsd.state.documents import Documents, SidecarWrite
from sfsd.storage.json_files import parse_account
from sfsd.storage.paths import VersionPaths, account_path
from tests.sfsd.builders import Daemon, Person, done, file_id

F = file_id(1)
FIRST, SECOND = (VersionPaths.for_version("ada", F, version).sidecar for version in (1, 2))


def fresh(served: Daemon) -> Documents:
    return Documents(served.context.store, served.context.journal)


def test_a_missing_document_is_absent(served: Daemon) -> None:
    with pytest.raises(Absent):
        fresh(served).sidecar(FIRST)
    assert fresh(served).account("ada") is None
    assert fresh(served).statements("ada") is None


def test_a_document_comes_with_its_digest(served: Daemon, ada: Person) -> None:
    ada.put(F)
    found = fresh(served).sidecar(FIRST)
    assert found.digest == served.context.store.stored_digest(FIRST)
    account = served.context.users.account("ada")
    assert account is not None
    assert account.digest == served.context.store.stored_digest(account_path("ada"))


def test_a_written_sidecar_is_hashed_once(served: Daemon, ada: Person) -> None:
    ada.put(F)
    written = SidecarWrite(FIRST, fresh(served).sidecar(FIRST).value)
    effect = written.effect
    assert callable(effect.data)
    assert callable(effect.digest)
    with pytest.raises(ValueError, match="not encoded"):
        effect.digest()
    raw = effect.data(9)
    assert effect.digest() == hashlib.sha256(raw).digest()
    assert written.value.seq == 9


def test_a_cached_sidecar_is_not_read_again(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.put(F)
    store, found = served.context.store, fresh(served)
    store._digests.clear()
    first = found.cached_sidecar(FIRST)  # neither the digest nor the content is cached
    assert first == found.sidecar(FIRST)
    reads: list[str] = []
    read = store.read_with_digest

    def counted(path: str) -> tuple[bytes, bytes]:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(store, "read_with_digest", counted)
    assert found.cached_sidecar(FIRST) == first
    assert not reads
    # A reader gets the bytes that are on the disk.
    assert found.sidecar(FIRST) == first
    assert reads == [FIRST]
    ada.put(F)
    with pytest.raises(Absent):
        found.cached_sidecar(VersionPaths.for_version("ada", F, 3).sidecar)
    assert found.cached_sidecar(SECOND) == found.sidecar(SECOND)


def test_a_changed_user_is_read_again(served: Daemon, ada: Person) -> None:
    before = served.context.documents.account("ada")
    assert before is not None
    assert served.context.documents.account("ada") == before
    off = UserAccess("ada", disabled=True, reason="")
    done(served.ask(served.operator(), off))
    after = served.context.documents.account("ada")
    assert after is not None
    assert (before.value.disabled, after.value.disabled) == (False, True)
    assert before.digest != after.digest == served.context.store.stored_digest(account_path("ada"))


def test_bytes_that_another_entry_wrote_are_damaged(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.put(F)
    users = served.context.store.users
    # A well-formed sidecar of ours under the wrong path.
    (users / SECOND).write_bytes((users / FIRST).read_bytes())
    with pytest.raises(DamagedError):
        fresh(served).sidecar(SECOND)


def test_a_batch_equals_single_reads(served: Daemon, ada: Person) -> None:
    paths = [VersionPaths.for_version("ada", file_id(n), 1).sidecar for n in range(5)]
    for number in range(5):
        ada.put(file_id(number))
    found = fresh(served)
    one = found.sidecar(paths[3])
    many = found.sidecars([*paths, paths[0]])
    assert [document.path for document in many] == [*paths, paths[0]]
    assert many == [fresh(served).sidecar(path) for path in (*paths, paths[0])]
    assert many[3].value is one.value  # it was cached
    assert found.sidecar(paths[4]).value is many[4].value
    assert found.sidecars([]) == []
    with pytest.raises(Absent):
        found.sidecars([paths[0], VersionPaths.for_version("ada", file_id(9), 1).sidecar])


def test_a_damaged_file_in_a_batch_is_reported_and_not_cached(served: Daemon, ada: Person) -> None:
    ada.put(F)
    ada.put(F)
    target = served.context.store.users / SECOND
    sound = target.read_bytes()
    for wrong in (sound[:-1], sound.replace(b'"head":null', b'"head": null'), b"{}", b"\xff"):
        target.write_bytes(wrong)
        found = fresh(served)
        with pytest.raises(DamagedError) as caught:
            found.sidecars([FIRST, SECOND])
        assert caught.value.path == SECOND
        target.write_bytes(sound)
        assert found.sidecars([FIRST, SECOND])[1].digest == hashlib.sha256(sound).digest()


def test_a_well_formed_file_that_the_log_does_not_know_is_damaged(
    served: Daemon, ada: Person
) -> None:
    path = served.context.store.users / account_path("ada")
    account = parse_account("p", path.read_bytes())
    for seq in (account.seq, account.seq - 1, 10**6):
        richer = path.read_bytes().replace(b'"quota":0', b'"quota":9')
        path.write_bytes(richer.replace(f'"seq":{account.seq}'.encode(), f'"seq":{seq}'.encode()))
        served.context.store._digests.clear()  # as after a restart: only the log is known
        with pytest.raises(DamagedError):
            fresh(served).account("ada")


def test_the_cache_is_bounded(served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    found, paths = (
        fresh(served),
        [VersionPaths.for_version("ada", file_id(n), 1).sidecar for n in range(4)],
    )
    for number in range(4):
        ada.put(file_id(number))
    sizes = [(served.context.store.users / path).stat().st_size for path in paths]
    monkeypatch.setattr(documents, "CACHED_BYTES", sizes[2] + sizes[3] + 1)
    for path in (*paths, paths[2]):
        found.sidecar(path)
    assert list(found._cache) == [paths[3], paths[2]]
    assert found._held == sizes[2] + sizes[3]
    # It replaces the older one in the cache.
    ada.put(file_id(2))
    found.sidecar(paths[2])
    assert list(found._cache) == [paths[3], paths[2]]
