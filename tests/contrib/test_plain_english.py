"""The wording check finds phrases over line breaks, and leaves code and tables alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrib.plain_english import Finding, check_page, check_source, files, main

PERSON = "a person is `they` or a role (the user, the owner)"
OPENING = "a docstring starts with a verb, or says what the thing is"


def found(findings: list[Finding]) -> list[tuple[int, str]]:
    return [(finding.line, finding.words) for finding in findings]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The server tells him.", "him"),
        ("His key is replaced.", "His"),
        ("Whoever has the key reads it.", "Whoever"),
        ("Each wrap is made anew.", "anew"),
        ("An entry that is none is refused.", "that is none"),
        ("It removes the file for good.", "for good"),
        ("A second call does no harm.", "does no harm"),
        ("The floor plan is in setup.cfg.", "floor plan"),
        ("See DESIGN section 4.", "DESIGN"),
    ],
)
def test_a_phrase_is_found(text: str, words: str) -> None:
    assert found(check_page("page.md", f"# Title\n\n{text}\n")) == [(3, words)]


def test_words_that_only_contain_one_are_not_found() -> None:
    text = "The sheet, this hero, housekeeping, a value that is None, docs/design.md, for them.\n"
    assert check_page("page.md", text) == []


def test_a_phrase_is_found_over_a_line_break() -> None:
    assert found(check_page("page.md", "One line.\n\n- It is gone for\n  good.\n")) == [
        (3, "for good")
    ]


def test_code_and_tables_are_not_checked() -> None:
    text = (
        "Write `he` or ``his``, and [a link](he).\n\n```\nhe\n```\n\n~~~\n```\nhe\n~~~\n\n"
        "| he | his |\n|---|---|\n| him | anew |\n\n    he, indented\n\nThe end.\n"
    )
    assert check_page("page.md", text) == []


def test_an_indented_paragraph_of_a_list_is_checked() -> None:
    assert found(check_page("page.md", "- an item\n\n    he, in the item\n")) == [(3, "he")]


def test_long_lines_of_prose_are_found_and_long_code_is_not() -> None:
    long = "word " * 21
    page = f"{long}\n\n```\n{long}\n```\n\n| {long} |\n|---|\n"
    assert found(check_page("page.md", page)) == [(1, "105 columns")]


def test_a_long_line_without_a_break_is_not_found() -> None:
    assert check_page("page.md", f"<https://example.org/{'a' * 120}>\n") == []


def test_a_source_is_checked_in_docstrings_comments_and_messages() -> None:
    source = '''"""Return what he stored."""

LIMIT = 3
"""Bytes that he may store."""


def stored(his: int) -> str:  # what he stored
    """Return the size.

    Raises what his file raises.
    """
    # One comment over two lines: it
    # is made anew.
    name = "he"
    return f"{name} has {his} files, for good"
'''
    findings = check_source("source.py", source)
    assert found(findings) == [
        (1, "he"),
        (4, "he"),
        (7, "he"),
        (10, "his"),
        (13, "anew"),
        (15, "for good"),
    ]
    assert findings[0] == Finding("source.py", 1, PERSON, "he")


def test_a_literal_block_and_a_table_of_a_docstring_are_not_checked() -> None:
    source = '''"""Return it::

    he = 3

It is anew.

====  ====
he    his
====  ====
"""
'''
    assert found(check_source("source.py", source)) == [(5, "anew")]


@pytest.mark.parametrize("opening", ["What it is.", "Those of it.", "As `other`.", "Of many."])
def test_a_docstring_says_what_it_does(opening: str) -> None:
    source = f'def name() -> None:\n    """{opening}"""\n'
    (finding,) = check_source("source.py", source)
    assert (finding.line, finding.rule) == (2, OPENING)


def test_the_repository_is_read() -> None:
    names = {path.name for path in files()}
    assert {"README.md", "protocol.md", "0001-fields-module.md", "merkle.py", "keyring.py"} <= names


def test_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("They read it.\n", "utf-8")
    assert main([str(page)]) == 0
    page.write_text("He reads it.\n", "utf-8")
    assert main([str(page)]) == 1
    assert capsys.readouterr().out == f"{page}:1: {PERSON}: He\n"
