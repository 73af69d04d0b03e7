"""Changes of single lines: each is one edit that Python accepts, chosen by the seed alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from contrib.mutants import REPOSITORY, SWAPPED, changes_of, choose, notices, stages_of

SOURCE = b'''"""\xc3\xa9: bytes and characters differ."""
LIMIT = 5

def judge(size: int = 3, *, name: str = "\xc3\xa9") -> bool:
    if size < LIMIT and name:
        raise ValueError(f"{size + 1}")
    require(not size, "rule")
    return call(name, size)

def __repr__() -> str:
    return "x" if 1 else "y"
'''


def test_every_kind_of_change() -> None:
    found = {}
    for change in changes_of("m.py", SOURCE):
        changed = change.apply(SOURCE).decode()
        ast.parse(changed)
        lines = zip(SOURCE.decode().splitlines(), changed.splitlines(), strict=True)
        ((old, new),) = [(old, new) for old, new in lines if old != new]
        assert SOURCE.decode().splitlines()[change.line - 1] == old
        found[new.strip()] = change.kind
    assert found == {
        "if False:": "check left out",
        "if (size < LIMIT or name):": "and for or",
        "if size <= LIMIT and name:": "comparison",
        "pass": "check left out",
        'require((size), "rule")': "not left out",
        'require("rule", not size)': SWAPPED,
        "return call(size, name)": SWAPPED,
    }


def test_the_choice_follows_from_the_seed() -> None:
    folder = [REPOSITORY / "protocol" / "records"]
    chosen = choose(folder, 1, 30)
    assert chosen == choose(folder, 1, 30)
    assert chosen != choose(folder, 2, 30)
    assert len({(one.path, one.line) for one in chosen}) == 30
    for change in chosen:
        ast.parse(change.apply((REPOSITORY / change.path).read_bytes()))


def test_the_tests_of_a_module_come_before_those_of_its_package() -> None:
    own, others, more = stages_of("protocol/records/chain.py", ["tests/docs"])
    assert own == [
        "tests/protocol/records/test_chain.py",
        "tests/protocol/records/test_chain_recovery.py",
    ]
    assert "tests/protocol/records/test_records.py" in others
    assert not {*own} & {*others}
    assert more == ["tests/docs"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_test_has_noticed_a_change(tmp_path: Path, *, fails: bool) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it() -> None:\n    assert {not fails}\n")
    found = notices(tmp_path, ["test_it.py"])
    assert found == ("test_it.py::test_it" if fails else None)
