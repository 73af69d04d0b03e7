"""Look for wording that CONTRIBUTING.md rules out, in docs, docstrings, comments and messages.

Run as ``python -m contrib.plain_english [PATH...]``. Each finding is printed as ``file:line: rule``
and the words found; the exit code is 1 if there is any. Without paths it reads the pages and
packages of this repository. Code in backticks, code blocks and tables are not checked.
"""

from __future__ import annotations

import ast
import bisect
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
SOURCES = ("protocol/**/*.py", "sfsd/**/*.py", "sfsc/**/*.py")
MAX_COLUMNS = 100

RULES = {
    "a person is `they` or a role (the user, the owner)": r"s?he|his|him(?:self)?|her(?:s|self)?",
    "name the person or the thing": r"whoever|whomever|whosoever",
    "say `again`": r"anew",
    "say what it is, not what it is not": r"(?:that|which|who) (?:is|are) (?-i:none)",
    "say `permanently`, or leave it out": r"for good",
    "say `idempotent`, or what happens": r"do(?:es)? no harm|twice is fine",
    "say `drops` or `closes`": r"lets? go of|letting go of",
    "say `in the background`": r"behind (?:every|any)(?:one|body)'s back",
    "no metaphors": r"rooms|floor plan|floors?|houses?|doors?|guests?|vouchers?|strangers?",
}
_RULES = {
    rule: re.compile(r"\b(?:" + words.replace(" ", r"\s+") + r")\b", re.IGNORECASE)
    for rule, words in RULES.items()
}
_RULES["cite a page of this repository"] = re.compile(r"\bDESIGN\b")
_OPENING = re.compile(r"(?:What|Who|Whose|Whom|Those|That|Of|As)\b")
_INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK_TARGET = re.compile(r"(?<=\])\([^()\s]*\)")
_LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s")


@dataclass(frozen=True)
class Finding:
    """One piece of wording to change: where it is, the rule it breaks, the words found."""

    path: str
    line: int
    rule: str
    words: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.words}"


@dataclass(frozen=True)
class Passage:
    """Lines that are read as one text, so that a phrase may run over a line break."""

    first: int
    lines: tuple[str, ...]
    is_docstring: bool = False


def check_page(path: str, text: str) -> list[Finding]:
    """Return the findings of a Markdown page, in the order of its lines."""
    found = [finding for passage in _paragraphs(text) for finding in _check(path, passage)]
    for passage in _paragraphs(text):
        for place, line in enumerate(passage.lines):
            if len(line) > MAX_COLUMNS and " " in line.strip()[:MAX_COLUMNS]:
                wide = f"{len(line)} columns"
                found.append(Finding(path, passage.first + place, "wrap at 100 columns", wide))
    return sorted(found, key=lambda finding: finding.line)


def check_source(path: str, text: str) -> list[Finding]:
    """Return the findings of a Python file: its docstrings, comments and other strings."""
    found: list[Finding] = []
    for passage in (*_strings(text), *_comments(text)):
        found += _check(path, passage)
        opening = passage.lines[0].lstrip("rRbBuUfF\"' ")
        if passage.is_docstring and (matched := _OPENING.match(opening)):
            rule = "a docstring starts with a verb, or says what the thing is"
            found.append(Finding(path, passage.first, rule, matched[0]))
    return sorted(set(found), key=lambda finding: finding.line)


def check_file(path: Path) -> list[Finding]:
    """Return the findings of a file, which is Markdown or Python."""
    try:
        name = path.resolve().relative_to(REPOSITORY).as_posix()
    except ValueError:
        name = str(path)
    check = check_source if path.suffix == ".py" else check_page
    return check(name, path.read_text("utf-8"))


def files() -> Iterator[Path]:
    """Yield the pages and sources of this repository that are checked."""
    for pattern in (*PAGES, *SOURCES):
        yield from sorted(REPOSITORY.glob(pattern))


def _check(path: str, passage: Passage) -> Iterator[Finding]:
    starts, length = [0], 0
    for line in passage.lines:
        length += len(line) + 1
        starts.append(length)
    text = "\n".join(passage.lines)
    for code in (_INLINE_CODE, _LINK_TARGET):
        text = code.sub(lambda matched: re.sub(r"[^\n]", "`", matched[0]), text)
    text = re.sub(r"\n[ #]*", lambda matched: " " * len(matched[0]), text)
    for rule, words in _RULES.items():
        for matched in words.finditer(text):
            place = bisect.bisect_right(starts, matched.start()) - 1
            yield Finding(path, passage.first + place, rule, " ".join(matched[0].split()))


def _paragraphs(text: str) -> Iterator[Passage]:
    """Yield the prose of a Markdown page: no fenced or indented code, no table rows."""
    fence = ""
    in_list = False
    first, lines = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        bare = line.strip()
        marker = bare[:3] if bare[:3] in ("```", "~~~") else ""
        is_prose = bool(bare) and not fence and not marker and not bare.startswith("|")
        if marker and fence in ("", marker):
            fence = "" if fence else marker
        if is_prose:
            in_list = bool(_LIST_ITEM.match(line)) or (in_list and line[:1] in (" ", ""))
            is_prose = bool(lines) or in_list or not line.startswith("    ")
        if is_prose:
            if not lines:
                first = number
            lines.append(line)
        elif lines:
            yield Passage(first, tuple(lines))
            lines = []


def _strings(text: str) -> Iterator[Passage]:
    """Yield every string of two words or more, docstrings without their literal blocks."""
    tree, source = ast.parse(text), text.split("\n")
    bare = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if " " not in node.value.strip():
            continue
        lines = source[node.lineno - 1 : node.end_lineno]
        if len(lines) == 1:
            lines = [node.value]
        docstring = id(node) in bare
        if docstring:
            lines = list(_without_blocks(lines))
        yield Passage(node.lineno, tuple(lines), docstring)


def _without_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, those of a block after ``::`` and of a table blanked."""
    block = -1
    table = False
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and block >= 0 and depth <= block:
            block = -1
        border = bool(re.fullmatch(r"\s*=+(?: +=+)+\s*", line))
        table = border or (table and bool(line.strip()))
        yield "" if block >= 0 or table else line
        if line.rstrip().endswith("::") and block < 0:
            block = depth


def _comments(text: str) -> Iterator[Passage]:
    """Yield comments, those on consecutive lines together."""
    first, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        number = token.start[0]
        if lines and number != first + len(lines):
            yield Passage(first, tuple(lines))
            lines = []
        if not lines:
            first = number
        lines.append(token.string)
    if lines:
        yield Passage(first, tuple(lines))


def main(arguments: list[str]) -> int:
    """Check the named files, or all; print the findings and return the exit code."""
    paths = [Path(argument) for argument in arguments] or list(files())
    found = [finding for path in paths for finding in check_file(path)]
    for finding in found:
        print(finding)
    if found:
        noun = "place" if len(found) == 1 else "places"
        print(f"{len(found)} {noun} to reword; CONTRIBUTING.md has the rules", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
