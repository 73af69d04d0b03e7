"""Changes single lines at random, and tells which changes no test notices.

::

    python -m contrib.mutants [--seed S] [--count N] [--only NUMBER]… [--stages 1|2|3]
        [--more TESTS]… [--list] PATH…

Each change is one edit in a copy of this tree: another comparison, a check or an exception left
out, a number that is one too large or too small, two arguments swapped, a condition turned around.
Lines are chosen by the seed among all lines of the PATHs (files or folders) that can be changed.
The tests of a change are those of its module, then those of its package, then `--more`; they end
with the first failure, or after `--stages`. A change that is not noticed needs a test, unless it
changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 600
"""Limit of the tests of one change; a test that hangs has noticed it."""
SWAPPED = "arguments swapped"
_CHECKS = frozenset({"_need", "require"})
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}


@dataclass(frozen=True)
class Change:
    """`text` in place of the bytes `start` to `end` of the file `path`; `line` counts from 1."""

    path: str
    line: int
    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def changes_of(path: str, source: bytes) -> Iterator[Change]:
    """Yield every possible change of the function bodies in a module."""
    module = _Module(path, source)
    for function in _functions(ast.parse(source)):
        for statement in function.body:
            for node in _inner(statement):
                yield from module.changes_of_node(node)


class _Module:
    def __init__(self, path: str, source: bytes) -> None:
        self._path = path
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def changes_of_node(self, node: ast.AST) -> Iterator[Change]:
        if isinstance(node, ast.stmt):
            yield from self._of_statement(node)
        elif isinstance(node, ast.expr):
            yield from self._of_expression(node)

    def _of_statement(self, node: ast.stmt) -> Iterator[Change]:
        match node:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in _CHECKS:
                yield self._edit(node, "check left out", "pass")
            case ast.Raise(exc=ast.expr()):
                yield self._edit(node, "raise left out", "pass")
            case ast.If(test=test):
                yield self._edit(test, "check left out", "False")

    def _of_expression(self, node: ast.expr) -> Iterator[Change]:
        text = self._text
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                other = f"{text(left)} {_COMPARISONS[type(operator)]} {text(right)}"
                yield self._edit(node, "comparison", other)
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                yield self._edit(node, "off by one", f"({number + 1})")
            case ast.BoolOp(op=operator, values=values):
                word = " or " if isinstance(operator, ast.And) else " and "
                yield self._edit(node, "and for or", f"({word.join(map(text, values))})")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._edit(node, "not left out", f"({text(operand)})")
            case ast.Call(args=[first, second, *_]) if ast.dump(first) != ast.dump(second):
                start, end = self._edit(first, "", ""), self._edit(second, "", "")
                between = self._source[start.end : end.start].decode()
                swapped = text(second) + between + text(first)
                place = first.lineno, SWAPPED, start.start, end.end
                yield Change(self._path, *place, swapped)

    def _edit(self, node: ast.stmt | ast.expr, kind: str, text: str) -> Change:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        return Change(self._path, node.lineno, kind, start, end, text)

    def _text(self, node: ast.expr) -> str:
        edit = self._edit(node, "", "")
        return self._source[edit.start : edit.end].decode()


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the outermost functions, but those that only show a value."""
    queue: list[ast.stmt] = list(tree.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.ClassDef):
            queue += node.body
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__repr__":
            yield node


def _inner(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and what is below it, but no annotation and no text of an f-string."""
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _inner(child)


def choose(paths: Sequence[Path], seed: int, count: int) -> list[Change]:
    """Choose that many lines, and one change of each. Lines where only arguments could be swapped
    are left out: these mostly differ in type, so that any call fails."""
    by_line: dict[tuple[str, int], list[Change]] = {}
    for path in paths:
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            name = file.resolve().relative_to(REPOSITORY).as_posix()
            for change in changes_of(name, file.read_bytes()):
                by_line.setdefault((change.path, change.line), []).append(change)
    lines = sorted(
        line
        for line, changes in by_line.items()
        if any(change.kind != SWAPPED for change in changes)
    )
    generator = random.Random(seed)
    chosen = generator.sample(lines, min(count, len(lines)))
    return [generator.choice(by_line[line]) for line in chosen]


def stages_of(path: str, more: Sequence[str]) -> Iterator[list[str]]:
    """Yield the tests of a module: its own, the others of its package, and `more`."""
    module = Path(path)
    folder = REPOSITORY / "tests" / module.parent
    files = sorted(folder.glob("test_*.py"))
    own = [one for one in files if one.stem.startswith(f"test_{module.stem}")]
    others = [one for one in files if one not in own]
    for found in (own, others):
        if found:
            yield [one.relative_to(REPOSITORY).as_posix() for one in found]
    if more:
        yield list(more)


def copy_tree(target: Path) -> None:
    """Copy all files that git knows, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],  # noqa: S607
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listed.splitlines():
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def notices(copy: Path, tests: Sequence[str]) -> str | None:
    """Return the first test that fails in `copy`, None if none does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "a test hangs"
    if done.returncode == 0:
        return None
    lines = done.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR tests"))]
    return failed[0] if failed else f"pytest ended with {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m contrib.mutants", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--only", type=int, action="append", metavar="NUMBER")
    parser.add_argument("--more", action="append", default=[], metavar="TESTS")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="show the changes only")
    stated = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        for number, change in enumerate(choose(stated.paths, stated.seed, stated.count), 1):
            if stated.only and number not in stated.only:
                continue
            target = copy / change.path
            source = target.read_bytes()
            old = " ".join(source[change.start : change.end].decode().split())
            shown = f"{number:3} {change.path}:{change.line} {change.kind}: {old} -> {change.text}"
            if stated.list:
                print(shown)
                continue
            target.write_bytes(change.apply(source))
            found = None
            for tests in list(stages_of(change.path, stated.more))[: stated.stages]:
                if (found := notices(copy, tests)) is not None:
                    break
            target.write_bytes(source)
            survivors += found is None
            print(f"{shown}\n    {found or 'NOT NOTICED'}", flush=True)
    if not stated.list:
        print(f"{survivors} changes were not noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
