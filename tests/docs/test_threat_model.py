"""Each attack in the threat model's table has a rule and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "threat-model.md"
TITLE = "## Attacks that were tried, and their tests"
PATH = re.compile(r"tests/[\w/]+\.py")


def rows() -> list[list[str]]:
    """Return (attack, rule, tests) of each row."""
    section = PAGE.read_text("utf-8").split(TITLE)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_attack_has_a_rule_and_tests_that_exist() -> None:
    found = rows()
    assert len(found) > 40
    for row in found:
        assert len(row) == 3, row
        attack, rule, tests = row
        assert attack.endswith("."), row
        assert rule.endswith("."), row
        text, names = "", re.findall(r"`([^`]+)`", tests)
        assert PATH.fullmatch(names[0]), row
        for name in names:
            if PATH.fullmatch(name):
                text = (REPOSITORY / name).read_text("utf-8")
                assert "\ndef test_" in text, name
            else:
                assert f"\ndef {name}(" in text, name


def test_each_file_of_attacks_is_in_the_table() -> None:
    table = " ".join(tests for _, _, tests in rows())
    files = sorted((REPOSITORY / "tests/e2e/attacks").glob("test_*.py"))
    missing = [file.name for file in files if f"tests/e2e/attacks/{file.name}`" not in table]
    assert missing == []
