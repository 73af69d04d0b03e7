"""Target of a fuzzer: what is called with an input, and the errors that refuse an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tests.fuzz.mutations import Mutator

Errors = tuple[type[Exception], ...]


class Target(Protocol):
    """Something that takes untrusted bytes. `last` is the last input."""

    name: str
    last: bytes

    def run(self, mutator: Mutator) -> bool:
        """Make an input, and try it. Return whether it was accepted, False if it was refused by one
        of the expected errors. Raises any other error: then a defect was found."""


class Parser:
    """Target that parses changed copies of valid `samples`. `errors` are those that refuse an
    input. `repaired` makes changed bytes pass an outer check, such as a checksum."""

    def __init__(
        self,
        name: str,
        samples: Sequence[bytes],
        errors: Errors,
        parse: Callable[[bytes], object],
        repaired: Callable[[bytes], bytes] = bytes,
    ) -> None:
        if not samples:
            raise ValueError(f"no samples for {name}")
        self.name = name
        self.samples = samples
        self.last = b""
        self._errors = errors
        self._parse = parse
        self._repaired = repaired

    def run(self, mutator: Mutator) -> bool:
        changed = mutator.change(mutator.random.choice(self.samples), self.samples)
        self.last = self._repaired(changed)
        try:
            self._parse(self.last)
        except self._errors:
            return False
        return True


class Stream:
    """Target that is fed a stream of changed samples in pieces of any size. `open_reader` returns a
    function that takes a piece."""

    def __init__(
        self,
        name: str,
        samples: Sequence[bytes],
        errors: Errors,
        open_reader: Callable[[], Callable[[bytes], object]],
        repaired: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.name = name
        self.samples = samples
        self.last = b""
        self._errors = errors
        self._open_reader = open_reader
        self._repaired = repaired

    def run(self, mutator: Mutator) -> bool:
        chosen = mutator.random.choices(self.samples, k=mutator.random.choice((1, 1, 2, 6)))
        at = mutator.random.randrange(len(chosen))
        chosen[at] = mutator.change(chosen[at], self.samples)
        self.last = b"".join(map(self._repaired, chosen))
        if mutator.random.random() < 0.2:
            self.last = mutator.change(self.last, chosen)
        most = mutator.random.choice((1, 7, 1000, 100_000))
        feed = self._open_reader()
        left = self.last if most > 7 else self.last[:600]
        try:
            while left:
                size = mutator.random.randint(1, most)
                feed(left[:size])
                left = left[size:]
        except self._errors:
            return False
        return True
