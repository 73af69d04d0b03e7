"""The files and names that the documents mention exist, and so does every link's target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    page.relative_to(REPOSITORY).as_posix()
    for folder in (".", "docs", "docs/decisions")
    for page in sorted((REPOSITORY / folder).glob("*.md"))
]
"""Every document."""
PRESENT = [page for page in PAGES if "decisions/" not in page and page != "CHANGELOG.md"]
"""Documents that describe what stands; the others may name files that were removed since."""
PATH = re.compile(r"(?:protocol|sfsd|sfsc|tests|contrib|benchmarks|docs)/[\w./-]*")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def mentioned(page: str) -> Iterator[tuple[int, str, str]]:
    """(line, path, name) of what is in backticks: each path with name "", and each name that
    follows a path in a row of a table. "(`Name` in `path`)" counts as one that follows."""
    in_code = False
    for number, line in enumerate((REPOSITORY / page).read_text("utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        if in_code:
            continue
        line = re.sub(r"`([^`]+)` (?:in|of) (`[^`]+`)", r"\2 `\1`", line)
        path = ""
        for token in re.findall(r"`([^`]+)`", line):
            if PATH.fullmatch(token):
                path = token
                yield number, path, ""
            elif path.endswith(".py") and line.startswith("|") and NAME.fullmatch(token):
                yield number, path, token


@pytest.mark.parametrize("page", PRESENT)
def test_each_path_and_name_exists(page: str) -> None:
    missing = []
    for number, path, name in mentioned(page):
        target = REPOSITORY / path
        if not target.exists():
            missing.append(f"{page}:{number}: {path}")
        elif name:
            text = target.read_text("utf-8")
            parts = name.split(".")
            if not all(re.search(rf"\b{re.escape(part)}\b", text) for part in parts):
                missing.append(f"{page}:{number}: {name} in {path}")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file(page: str) -> None:
    folder = (REPOSITORY / page).parent
    text = (REPOSITORY / page).read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert [target for target in targets if not (folder / target).exists()] == []


def test_every_make_target_that_is_mentioned_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"\bmake\s([a-z-]+)`", (REPOSITORY / page).read_text("utf-8")):
            assert target in targets, page
