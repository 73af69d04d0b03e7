"""Changes bytes at random, in the ways that parsers stumble over.

A change is made either to the bytes themselves or, if they are msgpack, JSON or lines of text, to
the value that they encode. Everything random comes from the given generator, so a seed repeats.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

MAX_INPUT = 256 * 1024
"""Longest changed input in bytes: repeated changes of a change must not grow without end."""
_NUMBERS = (0, 1, 2, 15, 16, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31)
_LARGE = (2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63))
_TEXTS = ("", "a", "\0", "\n", "\x1b[2J", "\u2029", "\u202e", "..", "/", "é", "\U0001f600", "alice")
_SIZES = (0, 1, 16, 31, 32, 33, 64, 255, 256, 4096, 40_000)
_DEPTH = 200
_Tree = Any


class Mutator:
    """Changes inputs with one random generator. `random` may be used for other choices."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def change(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """Return `data` with one to four changes, and once in 64 times without any. Parts of
        `others` may be put in."""
        if self.random.randrange(64) == 0:
            return data
        for _ in range(self.random.choice((1, 1, 2, 4))):
            data = self._change_once(data, others)[:MAX_INPUT]
        return data

    def change_tree(self, value: _Tree, others: Sequence[_Tree] = ()) -> _Tree:
        """Return a value of dicts, lists and scalars with one change in it."""
        return self._replaced(value, self.random.choice(_places(value)), others)

    def _change_once(self, data: bytes, others: Sequence[bytes]) -> bytes:
        if self.random.random() < 0.6:
            for decode, encode in _FORMATS:
                try:
                    tree = decode(data)
                except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
                    continue
                if not isinstance(tree, dict | list):
                    continue
                return encode(self.change_tree(tree, _decoded(decode, others, self.random)))
        if b"\n" in data and self.random.random() < 0.5:
            return self._change_lines(data, others)
        return self._change_bytes(data, others)

    def _change_lines(self, data: bytes, others: Sequence[bytes]) -> bytes:
        lines = data.split(b"\n")
        at = self.random.randrange(len(lines))
        match self.random.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[self.random.randrange(len(lines))])
            case 2:
                other = self.random.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = self._change_bytes(lines[at], others)
            case 4:
                lines[at] += self.random.choice(_TEXTS).encode()
            case _:
                lines[at] = str(self.random.choice(_NUMBERS + _LARGE)).encode()
        return b"\n".join(lines)

    def _change_bytes(self, data: bytes, others: Sequence[bytes]) -> bytes:
        at = self.random.randrange(len(data) + 1)
        end = min(len(data), at + self.random.choice((1, 2, 4, 8, 16, 32, 64, 1024)))
        match self.random.randrange(9):
            case 0:
                if at == len(data):
                    return data + self._bytes()
                flipped = data[at] ^ 1 << self.random.randrange(8)
                return data[:at] + bytes([flipped]) + data[at + 1 :]
            case 1:
                return data[:at] + self.random.randbytes(end - at) + data[end:]
            case 2:
                return data[:at] + data[end:]
            case 3:
                return data[:at] + data[at:end] * 2 + data[end:]
            case 4:
                return data[:at]
            case 5:
                return data[:at] + self._bytes() + data[at:]
            case 6:
                number = self.random.choice(_NUMBERS + _LARGE)
                size = self.random.choice((1, 2, 4, 8))
                stated = (number % (1 << 8 * size)).to_bytes(size)
                return data[:at] + stated + data[at + size :]
            case 7:
                other = self.random.choice(others) if others else b""
                cut = self.random.randrange(len(other) + 1)
                return data[:at] + other[cut:]
            case _:
                other = self.random.choice(others) if others else b""
                cut = self.random.randrange(len(other) + 1)
                return data[:at] + other[cut : cut + end - at] + data[end:]

    def _bytes(self) -> bytes:
        return self.random.randbytes(self.random.choice(_SIZES[:-2]))

    def _replaced(self, value: _Tree, place: tuple[Any, ...], others: Sequence[_Tree]) -> _Tree:
        """Return `value` with one change at `place`, a path of keys and indexes."""
        if not place:
            return self._other_value(value, others)
        step, *rest = place
        if isinstance(value, dict):
            if not rest and self.random.random() < 0.3:
                return self._change_keys(value, step)
            changed = dict(value)
            changed[step] = self._replaced(value[step], tuple(rest), others)
            return changed
        copied = list(value)
        if not rest and self.random.random() < 0.3:
            return self._change_items(copied, step)
        copied[step] = self._replaced(copied[step], tuple(rest), others)
        return copied

    def _change_keys(self, value: dict[Any, _Tree], key: object) -> dict[Any, _Tree]:
        items = list(value.items())
        at = list(value).index(key)
        match self.random.randrange(3):
            case 0:
                del items[at]
            case 1:
                items[at] = (self.random.choice(_TEXTS), items[at][1])
            case _:
                items.append(items.pop(at))
        return dict(items)

    def _change_items(self, items: list[_Tree], at: int) -> list[_Tree]:
        match self.random.randrange(4):
            case 0:
                del items[at]
            case 1:
                items.insert(at, items[at])
            case 2:
                items += [items[at]] * self.random.choice((1, 16, 300))
            case _:
                items.append(items.pop(at))
        return items

    def _other_value(self, value: _Tree, others: Sequence[_Tree]) -> _Tree:
        if others and self.random.random() < 0.2:
            other = self.random.choice(others)
            return _at(other, self.random.choice(_places(other)))
        if isinstance(value, bool) or self.random.random() < 0.15:
            return self._any_value()
        if isinstance(value, int):
            near = min(max(value + self.random.choice((-1, 1)), -(2**63)), 2**64 - 1)
            return self.random.choice((near, self.random.choice(_NUMBERS + _LARGE)))
        if isinstance(value, str):
            if self.random.random() < 0.5:
                return value + self.random.choice(_TEXTS)
            return self._change_bytes(value.encode(), ()).decode(errors="replace")[:4096]
        if isinstance(value, bytes):
            # A signed record, a sealed key, or other bytes.
            return self._change_once(value, ()) if value else self._bytes()
        return self._any_value()

    def _any_value(self) -> _Tree:
        nested: _Tree = []
        match self.random.randrange(8):
            case 0:
                return None
            case 1:
                return self.random.random() < 0.5
            case 2:
                return self.random.choice(_NUMBERS + _LARGE)
            case 3:
                return self.random.choice(_TEXTS) * self.random.choice((1, 1, 600))
            case 4:
                return self.random.randbytes(self.random.choice(_SIZES))
            case 5:
                return self.random.random()
            case 6:
                for _ in range(self.random.choice((1, 2, 9, _DEPTH))):
                    nested = [nested]
                return nested
            case _:
                return {self.random.choice(_TEXTS): self.random.choice(_NUMBERS)}


def _places(value: _Tree, most: int = 400) -> list[tuple[Any, ...]]:
    """Return the paths of the value and of at most that many parts of it."""
    found: list[tuple[Any, ...]] = [()]
    queue: list[tuple[tuple[Any, ...], _Tree]] = [((), value)]
    while queue and len(found) < most:
        place, item = queue.pop()
        parts: list[tuple[Any, _Tree]] = []
        if isinstance(item, dict):
            parts = list(item.items())
        elif isinstance(item, list | tuple):
            parts = list(enumerate(item))[:64]
        for key, part in parts:
            found.append((*place, key))
            queue.append(((*place, key), part))
    return found


def _at(value: _Tree, place: tuple[Any, ...]) -> _Tree:
    for step in place:
        value = value[step]
    return value


def _decoded(
    decode: Callable[[bytes], _Tree], others: Sequence[bytes], generator: random.Random
) -> list[_Tree]:
    """Return one of `others`, decoded, or nothing if it has another format."""
    if not others:
        return []
    try:
        return [decode(generator.choice(others))]
    except (ValueError, RecursionError):
        return []


def _from_json(data: bytes) -> _Tree:
    return json.loads(data.decode("ascii"))


def _to_json(value: _Tree) -> bytes:
    """Encode as JSON. Bytes, which come from a generator of any value, become text."""
    return json.dumps(
        value, separators=(",", ":"), default=lambda other: bytes(other).hex()
    ).encode()


_FORMATS: tuple[tuple[Callable[[bytes], _Tree], Callable[[_Tree], bytes]], ...] = (
    (_from_json, _to_json),
    (msgspec.msgpack.Decoder().decode, msgspec.msgpack.Encoder().encode),
)
