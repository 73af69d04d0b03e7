"""Where things lie below ROOT/store/users.

::

    <user>/account.json     invitation, quota, disabled, tag key Account
    <user>/tag.key          the tag key once more, 32 bytes
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

_VERSION_NAME = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,9})\.(json|ct|leaves)")
_VERSION_PATH = re.compile(
    rf"([a-z0-9][a-z0-9_-]{{0,31}})/files/[0-9a-f]{{2}}/{_VERSION_NAME.pattern}"
)
_KEPT_BUNDLE = re.compile(r"bundle\.([1-9][0-9]{0,9})")
_INBOX_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,31})\.([0-9a-f]{32})")


def statements_path(user: str) -> str:
    return f"{user}/statements.json"


def account_path(user: str) -> str:
    return f"{user}/account.json"


def tag_key_path(user: str) -> str:
    return f"{user}/tag.key"


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


def parse_version_name(name: str) -> tuple[str, int, str] | None:
    """Return (file_id, version, kind) of the bare name of a version's file, whose `kind` is json,
    ct or leaves; None for any other file."""
    matched = _VERSION_NAME.fullmatch(name)
    return (matched[1], int(matched[2]), matched[3]) if matched else None


def parse_version_path(path: str) -> tuple[str, str, int] | None:
    """Return (owner, file_id, version) of the path of a version's file; None for any other path."""
    matched = _VERSION_PATH.fullmatch(path)
    return (matched[1], matched[2], int(matched[3])) if matched else None
