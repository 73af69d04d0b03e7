"""Where things lie below ROOT/store/users.

::

    <user>/account.json     invitation, quota, disabled          Account
    <user>/statements.json  the identity chain                   StoredStatement, in order
    <user>/bundle           bytes, known by the head statement's bundle_sha256
    <user>/bundle.<n>       that of an earlier statement n, for a time
    <user>/files/<ab>/<file_id>.<version>.ct|.json|.leaves       ciphertext, Sidecar, leaf hashes
    <user>/inbox/<owner>.<file_id>                               empty

What the JSON files hold is for `sfsd.storage.json_files`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from protocol.codec.values import Value

_KEPT: Final = 256
"""Versions whose paths are cached: a decision about a version needs them several times."""

_SIDECAR_NAME = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,9})\.json")
_KEPT_BUNDLE = re.compile(r"bundle\.([1-9][0-9]{0,9})")
_INBOX_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,31})\.([0-9a-f]{32})")


def statements_path(user: str) -> str:
    return f"{user}/statements.json"


def account_path(user: str) -> str:
    return f"{user}/account.json"


def bundle_path(user: str) -> str:
    return f"{user}/bundle"


def kept_bundle_path(user: str, n: int) -> str:
    """Return the path of the bundle of statement `n`, which has a successor."""
    return f"{user}/bundle.{n}"


def parse_kept_bundle(name: str) -> int | None:
    """Return the `n` of a kept bundle's bare file name; None for any other file."""
    matched = _KEPT_BUNDLE.fullmatch(name)
    return int(matched[1]) if matched else None


def files_folder(user: str) -> str:
    return f"{user}/files"


def inbox_folder(user: str) -> str:
    return f"{user}/inbox"


def parse_inbox_name(name: str) -> tuple[str, str] | None:
    """Return (owner, file_id) of a note's bare file name; None for any other file."""
    matched = _INBOX_NAME.fullmatch(name)
    return (matched[1], matched[2]) if matched else None


def inbox_path(user: str, owner: str, file_id: str) -> str:
    """Return the path of the note that `owner` shares a file with `user`."""
    return f"{inbox_folder(user)}/{owner}.{file_id}"


class VersionPaths(Value):
    """The paths of one version of a file."""

    sidecar: str
    ciphertext: str
    leaves: str

    @staticmethod
    @lru_cache(_KEPT)
    def for_version(owner: str, file_id: str, version: int) -> VersionPaths:
        stem = f"{owner}/files/{file_id[:2]}/{file_id}.{version}"
        return VersionPaths(f"{stem}.json", f"{stem}.ct", f"{stem}.leaves")


def parse_sidecar_name(name: str) -> tuple[str, int] | None:
    """Return (file_id, version) of a sidecar's bare file name; None for any other file."""
    matched = _SIDECAR_NAME.fullmatch(name)
    return (matched[1], int(matched[2])) if matched else None
