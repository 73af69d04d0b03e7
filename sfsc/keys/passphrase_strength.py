"""Estimate how many guesses a passphrase resists, to warn of weak ones.

The estimate is that of zxcvbn (Wheeler, USENIX Security 2016) with a short dictionary: a passphrase
is cut into common words, sequences, repetitions, years and other characters, so that an attacker
who tries such parts first needs the fewest guesses. It is no rule: nothing is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sfsc.keys.pgp_words import all_words

WEAK: Final = 10.0**10
"""Guesses below which a passphrase is weak. Argon2id with 64 MiB lets a large machine try thousands
in a second, which are 10^10 in a month."""
_LONGEST: Final = 100
"""Characters that are looked at; more only make a passphrase stronger."""
_PER_CHARACTER: Final = 10.0
"""Guesses for a character that belongs to nothing known, as in zxcvbn."""
_COMMON: Final = """
password passwort passwd pass 123456 12345678 123456789 qwerty abc123 111111 1234567 dragon monkey
letmein login welcome admin administrator iloveyou master sunshine princess football baseball
shadow superman batman trustno1 hello hallo freedom whatever qazwsx michael jennifer jordan hunter
charlie thomas robert daniel soccer hockey ranger buster tigger ginger pepper summer winter spring
autumn secret computer internet server backup test root changeme default love lovely flower
cheese chocolate cookie banana orange apple purple yellow silver golden diamond starwars pokemon
matrix killer access mustang cowboy killer george andrew joshua matthew ashley nicole jessica
amanda samantha maria anna peter martin david alexander sebastian christian january february march
april june july august september october november december monday tuesday wednesday thursday friday
saturday sunday london berlin paris america england germany correct horse battery staple
"""
_ROWS: Final = ("qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm", "1234567890")
_LEET: Final = str.maketrans("@4301!5$7", "aaeoiisst")


def estimate_guesses(passphrase: str) -> float:
    """Return how many guesses an attacker needs who tries the likeliest passphrases first."""
    text = passphrase[:_LONGEST].lower()
    plain = text.translate(_LEET)
    best = [1.0] + [float("inf")] * len(text)
    for start in range(len(text)):
        best[start + 1] = min(best[start + 1], best[start] * _PER_CHARACTER)
        for end, guesses in _parts(text, plain, passphrase, start):
            best[end] = min(best[end], best[start] * guesses)
    return best[-1]


def is_weak(passphrase: str) -> bool:
    """Return whether a passphrase may be guessed by somebody who has the keyring."""
    return estimate_guesses(passphrase) < WEAK


def _parts(text: str, plain: str, typed: str, start: int) -> Iterator[tuple[int, float]]:
    """Yield (end, guesses) of the known parts that begin at `start`."""
    ranks = _dictionary()
    for end in range(start + 3, min(len(text), start + 16) + 1):
        word, changed = text[start:end], plain[start:end]
        rank = ranks.get(word) or ranks.get(changed, 0)
        if rank:
            variants = 1 + (word not in ranks) + (typed[start:end] != word)
            yield end, rank * 2.0 ** (variants - 1)
    if re.match(r"(?:19|20)\d\d", text[start:]):
        yield start + 4, 150.0
    end = start + 1
    while end < len(text) and text[end] == text[start]:
        end += 1
    if end - start >= 3:
        yield end, 12.0 * (end - start)
    yield from _sequences(text, start)


def _sequences(text: str, start: int) -> Iterator[tuple[int, float]]:
    """Yield the parts that go up or down in the alphabet, in digits or in a row of a keyboard."""
    for step in (1, -1):
        end = start + 1
        while end < len(text) and ord(text[end]) - ord(text[end - 1]) == step:
            end += 1
        if end - start >= 3:
            yield end, 20.0 * (end - start)
    for row in (one[::step] for one in _ROWS for step in (1, -1)):
        at, end = row.find(text[start]), start
        while 0 <= at < len(row) and end < len(text) and text[end] == row[at]:
            at, end = at + 1, end + 1
        if end - start >= 3:
            yield end, 20.0 * (end - start)


_ranks: dict[str, int] = {}


def _dictionary() -> dict[str, int]:
    """Return {word: rank}: common passwords first, then the words of fingerprints."""
    if not _ranks:
        words = dict.fromkeys((*_COMMON.split(), *all_words()))
        _ranks.update({word: rank for rank, word in enumerate(words, 1)})
    return _ranks
