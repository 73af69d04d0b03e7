"""Sizes of the files of each user, read from the store itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from protocol.codec.values import Mutable
from sfsd.errors import ConfigError
from sfsd.storage.paths import files_folder, parse_version_name


class UserStorage(Mutable, eq=True):
    """Versions of a user and the bytes of their files: ciphertexts, sidecars and leaf hashes. A
    ciphertext with several names counts once, as for the quota. `unreadable` counts folders and
    files that could not be read."""

    user: str
    versions: int = 0
    size: int = 0
    unreadable: int = 0


def storage_by_user(root: Path) -> Iterator[UserStorage]:
    """Yield what each folder of a user in the store has; a daemon may change it meanwhile. Raises
    `ConfigError` if there is no store, or it cannot be read."""
    users = root / "store" / "users"
    try:
        with os.scandir(users) as found:
            # The others, such as .staging and .spare, are of the server.
            names = sorted(
                one.name for one in found if not one.name.startswith(".") and one.is_dir()
            )
    except OSError as exc:
        raise ConfigError(f"{users.absolute()} cannot be read: {exc.strerror}") from exc
    for name in names:
        yield _storage_of(users, name)


def _storage_of(users: Path, user: str) -> UserStorage:
    storage, seen = UserStorage(user), set[int]()
    for folder in _entries(users / files_folder(user), storage):
        if not folder.is_dir():
            continue
        for file in _entries(Path(folder.path), storage):
            parsed = parse_version_name(file.name)
            if parsed is None:
                continue
            try:
                status = file.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                storage.unreadable += 1
                continue
            storage.versions += parsed[2] == "json"
            if status.st_nlink > 1:
                if status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
            storage.size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return storage


def _entries(folder: Path, storage: UserStorage) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except FileNotFoundError:
        return  # a user without files, or removed meanwhile
    except OSError:
        storage.unreadable += 1
