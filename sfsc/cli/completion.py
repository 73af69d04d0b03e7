"""Completion in bash, zsh and fish, on top of click's.

A script that the shell has loaded runs ``sfsc`` with the command line up to the cursor in the
variable COMP_LINE, and gets one line for each completion: its type, its value and a help text,
separated by tabs. Unlike click's scripts these keep OWNER:NAME and names with spaces or commas
whole, quote what they insert, and add no space after a folder.

Names may come from other users. What is inserted is quoted, by zsh and fish themselves, for bash
here: else a name such as ``$(command)`` would be a command once the user presses Enter.
"""

from __future__ import annotations

import os
import string
from typing import Any, ClassVar, Final

import click
from click import shell_completion
from click.shell_completion import CompletionItem, ShellComplete

VARIABLE: Final = "_SFSC_COMPLETE"
"""Set by the scripts; its value is ``bash_complete`` and the like."""

_BASH: Final = r"""
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=$'\t' read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            folder) compopt -o nospace; COMPREPLY+=("$value") ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "${1/#\~\//$HOME/}" 2>/dev/null)
}

complete -F %(complete_func)s %(prog_name)s
"""

_ZSH: Final = r"""#compdef %(prog_name)s

%(complete_func)s() {
    local kind value help
    local -a plain folders described
    while IFS=$'\t' read -r kind value help; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            folder) folders+=("$value") ;;
            plain)
                if [[ -n $help ]]; then
                    described+=("${value//:/\\:}:$help")
                else
                    plain+=("$value")
                fi ;;
        esac
    done < <(COMP_LINE="${(j: :)words[1,CURRENT]}" \
        %(complete_var)s=zsh_complete "${words[1]/#\~\//$HOME/}" 2>/dev/null)
    (( $#folders )) && compadd -S '' -a folders
    (( $#plain )) && compadd -a plain
    (( $#described )) && _describe -V values described
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = r"""
function %(complete_func)s
    set -l program (string replace -r '^~/' $HOME/ -- (commandline -opc)[1])
    for line in (COMP_LINE=(commandline -cp | string collect) %(complete_var)s=fish_complete \
            $program 2>/dev/null)
        set -l parts (string split -m 2 \t -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case folder plain
                string join \t -- $parts[2..]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Complete(ShellComplete):
    """Completion of the last word of COMP_LINE, the command line up to the cursor."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words after the program's name, and the one that is not complete."""
        self._line = CommandLine(os.environ.get("COMP_LINE", ""), self._breaks())
        return self._line.words[1:], self._line.last

    def _breaks(self) -> str:
        return ""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return a line of what the scripts read."""
        help_text = " ".join((item.help or "").split())
        return f"{item.type}\t{self.inserted(item)}\t{help_text}".rstrip("\t")

    def inserted(self, item: CompletionItem[Any]) -> str:
        """Return what the shell gets to complete the word."""
        return str(item.value)


class BashComplete(_Complete):
    """Completion in bash 4 or later, which replaces a part of the last word by what it is given,
    exactly so."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH

    def _breaks(self) -> str:
        return os.environ.get("COMP_WORDBREAKS", "")

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Leave out the help text, which bash does not show."""
        return f"{item.type}\t{self.inserted(item)}"

    def inserted(self, item: CompletionItem[Any]) -> str:
        return self._line.rest_of(str(item.value))


class ZshComplete(_Complete):
    """Completion in zsh."""

    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = _ZSH


class FishComplete(_Complete):
    """Completion in fish 3 or later."""

    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = _FISH


SHELLS: Final = {kind.name: kind for kind in (BashComplete, ZshComplete, FishComplete)}


def script(program: click.Command, shell: str) -> str:
    """Return the completion script of ``sfsc`` for a shell of `SHELLS`."""
    return SHELLS[shell](program, {}, "sfsc", VARIABLE).source().lstrip()


def register() -> None:
    """Let click use the classes of this module."""
    for kind in SHELLS.values():
        shell_completion.add_completion_class(kind)


_BARE: Final = frozenset(string.ascii_letters + string.digits + "_./-+,%@:=")
"""ASCII characters that mean nothing to bash, wherever in a word they stand."""


class CommandLine:
    """A command line of bash up to the cursor: its `words` without their quotes, and the `last`
    word, which is not complete.

    Readline replaces only a part of the last word: what comes after the last quote that was opened
    or closed, or after the last of the characters `breaks` that is not quoted.
    """

    def __init__(self, line: str, breaks: str) -> None:
        self.words: list[str] = []
        self.last: str = ""
        self.quote: str = ""
        self._fixed = 0  # characters of `last` that stay
        started = False
        at = 0
        while at < len(line):
            char = line[at]
            at += 1
            if self.quote:
                if char == self.quote:
                    self.quote, self._fixed = "", len(self.last)
                    continue
                if char == "\\" and self.quote == '"' and line[at : at + 1] in tuple('$`"\\'):
                    char, at = line[at], at + 1
                self.last += char
            elif char in " \t\n":
                if started:
                    self.words.append(self.last)
                self.last, self._fixed, started = "", 0, False
                continue
            elif char in "'\"":
                self.quote, self._fixed = char, len(self.last)
            elif char == "\\":
                self.last += line[at : at + 1]
                at += 1
            else:
                self.last += char
                if char in breaks:
                    self._fixed = len(self.last)
            started = True

    def rest_of(self, value: str) -> str:
        """Return the part of `value`, which begins with the last word, that replaces what Readline
        replaces, quoted like that."""
        rest = value[self._fixed :]
        if self.quote == "'":
            return rest.replace("'", "'\\''")
        if self.quote:
            escaped = "".join(f"\\{char}" if char in '$`"\\' else char for char in rest)
            return escaped.replace("!", '"\\!"')  # a backslash would stay within the quotes
        return "".join(
            char if char in _BARE or not char.isascii() else f"\\{char}" for char in rest
        )
