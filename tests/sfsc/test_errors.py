"""The tree in the docstring matches the code, exit codes included."""

from __future__ import annotations

import re

import pytest

from sfsc import errors


def _subclasses(root: type[errors.SfscError]) -> set[type[errors.SfscError]]:
    found = {root}
    for child in root.__subclasses__():
        found |= _subclasses(child)
    return found


def _public() -> dict[str, type[errors.SfscError]]:
    return {c.__name__: c for c in _subclasses(errors.SfscError) if not c.__name__.startswith("_")}


def test_docstring_draws_every_class_and_no_other() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn | {"SfscError"} == set(_public())


@pytest.mark.parametrize(
    ("root", "code"),
    [
        (errors.LocalError, 1),
        (errors.UsageError, 2),
        (errors.NotFound, 3),
        (errors.Denied, 4),
        (errors.IntegrityError, 5),
        (errors.ConflictError, 6),
        (errors.NetworkError, 7),
        (errors.KeyringError, 8),
    ],
)
def test_a_branch_has_one_exit_code(root: type[errors.SfscError], code: int) -> None:
    assert {c.exit_code for c in _subclasses(root)} == {code}


@pytest.mark.parametrize("name", sorted(_public()))
def test_cause_and_hint_are_attributes(name: str) -> None:
    error = _public()[name]("it broke", "mend it")
    assert (error.cause, error.hint, str(error)) == ("it broke", "mend it", "it broke")
    assert _public()[name]("it broke").hint, "nobody is left without knowing what to do"


def test_facts_are_attributes() -> None:
    assert errors.ConflictError("late", head=b"record").head == b"record"
    wrong = errors.WrongServer("not the pinned server", pinned="aa", shown="bb")
    assert (wrong.pinned, wrong.shown) == ("aa", "bb")
