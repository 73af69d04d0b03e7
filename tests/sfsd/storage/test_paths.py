"""Every path is valid, and its name can be parsed."""

from __future__ import annotations

import pytest

from sfsd.storage.change import check_path
from sfsd.storage.paths import (
    VersionPaths,
    account_path,
    bundle_path,
    files_folder,
    inbox_folder,
    inbox_path,
    kept_bundle_path,
    parse_inbox_name,
    parse_kept_bundle,
    parse_version_name,
    statements_path,
)
from tests.sfsd.builders import file_id

F = file_id(0xAB << 120)


def test_all_paths_are_valid() -> None:
    paths = VersionPaths.for_version("ada", F, 12)
    assert paths.sidecar == f"ada/files/ab/{F}.12.json"
    assert (paths.ciphertext, paths.leaves) == (
        f"ada/files/ab/{F}.12.ct",
        f"ada/files/ab/{F}.12.leaves",
    )
    assert parse_version_name(paths.sidecar.rsplit("/", 1)[1]) == (F, 12, "json")
    for path in (
        paths.sidecar,
        statements_path("a_b-c"),
        account_path("ada"),
        bundle_path("ada"),
        files_folder("ada"),
        inbox_path("bob", "ada", F),
    ):
        check_path(path)


@pytest.mark.parametrize("name", ["", f"{F}.ct", f"{F}.0.json", f"{F}.01.json", f"x{F}.1.json"])
def test_other_names_are_not_sidecars(name: str) -> None:
    assert parse_version_name(name) is None


@pytest.mark.parametrize("n", [1, 10, 2**31])
def test_a_kept_bundle_is_found_by_its_name(n: int) -> None:
    check_path(kept_bundle_path("ada", n))
    assert parse_kept_bundle(kept_bundle_path("ada", n).partition("/")[2]) == n


@pytest.mark.parametrize("name", ["bundle", "bundle.", "bundle.0", "bundle.01", "bundle.1.json"])
def test_other_names_are_not_kept_bundles(name: str) -> None:
    assert parse_kept_bundle(name) is None


def test_a_note_is_found_by_its_name() -> None:
    folder, _, name = inbox_path("ada", "bob-1", F).rpartition("/")
    assert (folder, parse_inbox_name(name)) == (inbox_folder("ada"), ("bob-1", F))
    for other in ("", F, f"bob.{F}x", f"Bob.{F}", f".{F}", f"bob.{F[:-1]}"):
        assert parse_inbox_name(other) is None
