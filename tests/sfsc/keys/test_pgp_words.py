"""Fingerprints as PGP words."""

from __future__ import annotations

from sfsc.keys.pgp_words import pgp_words


def test_each_byte_has_a_distinct_word_per_position() -> None:
    every = bytes(range(256))
    # At even places one list, at odd ones the other.
    even = pgp_words(bytes(byte for value in every for byte in (value, 0)))[::2]
    odd = pgp_words(bytes(byte for value in every for byte in (0, value)))[1::2]
    assert len({*even, *odd}) == 512
    assert all(word.isalpha() and word.islower() for word in (*even, *odd))


def test_the_published_example() -> None:
    """From the list's own description: E582 94F2 E9A2 2748 6E8B 061B 31CC 528F D7FA 3F19."""
    shown = pgp_words(bytes.fromhex("E58294F2E9A227486E8B061B31CC528FD7FA3F19"))
    assert " ".join(shown) == (
        "topmost istanbul pluto vagabond treadmill pacific brackish dictator goldfish medusa"
        " afflict bravado chatter revolver dupont midsummer stopwatch whimsical cowbell bottomless"
    )
