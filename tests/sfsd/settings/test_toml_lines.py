"""Statements of a TOML document and their lines."""

from __future__ import annotations

import tomllib

from sfsd.settings.toml_lines import Statement, SyntaxProblem, read_statements

DOCUMENT = '''\
a = 1  # comment
b.c = 2

limits = {x = 1, y = 2}
d = [1,
  2]
e =
f = """x
y"""
# [ limits ]  # of users
z = 5
[limits]
"q" = 1
[[u]]
v = 2
[broken
hidden = 1
[after.it]
k = tru
'''


def test_each_statement_has_its_line_and_its_full_name() -> None:
    found = list(read_statements(DOCUMENT))
    settings = [one for one in found if isinstance(one, Statement) and not one.is_header]
    assert [(one.line, ".".join(one.path), one.value) for one in settings] == [
        (1, "a", 1),
        (2, "b.c", 2),
        (4, "limits.x", 1),
        (4, "limits.y", 2),
        (5, "d", [1, 2]),
        (8, "f", "x\ny"),
        (11, "z", 5),
        (13, "limits.q", 1),
        (15, "u.v", 2),
    ]
    headers = [one for one in found if isinstance(one, Statement) and one.is_header]
    assert [(one.line, one.path, one.is_list) for one in headers] == [
        (12, ("limits",), False),
        (14, ("u",), True),
        (18, ("after", "it"), False),
    ]
    assert [one.commented_table for one in settings] == [""] * 6 + ["limits", "", ""]


def test_every_syntax_error_is_found() -> None:
    problems = [one for one in read_statements(DOCUMENT) if isinstance(one, SyntaxProblem)]
    assert [one.line for one in problems] == [7, 16, 19]
    assert all(one.cause and "line 1" not in one.cause for one in problems)


def test_what_is_never_closed_costs_one_error_and_bounded_time() -> None:
    found = list(read_statements("x = [\n" + "# filler\n" * 1000 + "y = 1"))
    assert found == [
        SyntaxProblem(1, "a string or an array that is not closed"),
        Statement(1002, ("y",), 1),
    ]
    deep = list(read_statements("x = " + "[" * 5000 + "\ny = 1"))
    assert [one.line for one in deep] == [1, 2]


def test_other_line_breaks_are_part_of_a_line() -> None:
    text = 'a = "\\u2028"  # \u2028\r\nb = 2'
    assert tomllib.loads(text) == {"a": "\u2028", "b": 2}
    assert [one.line for one in read_statements(text)] == [1, 2]
