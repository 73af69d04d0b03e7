"""Groups for paper: which mistakes are noticed, and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsc.errors import Mistyped
from sfsc.keys.checked_groups import from_groups, split_groups, to_groups, to_rows

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
DATA = bytes(range(7, 7 + 32))
GROUPS = to_groups(DATA)
sized = st.integers(0, 40).flatmap(lambda n: st.binary(min_size=5 * n + 2, max_size=5 * n + 2))


def refused(groups: list[str]) -> tuple[int, ...]:
    with pytest.raises(Mistyped) as caught:
        from_groups(groups, "it")
    said = f"{caught.value} {caught.value.hint}"
    assert not any(group in said for group in groups if group)
    return caught.value.groups


@given(sized)
def test_round_trip(data: bytes) -> None:
    groups = to_groups(data)
    assert {len(group) for group in groups} == {5}
    assert from_groups(groups, "it") == data
    for text in ("-".join(groups), " ".join(groups).lower(), "".join(groups)):
        assert split_groups(text) == groups
    assert split_groups("\n".join(to_rows(groups, 8))) == groups
    assert split_groups("  ".join(groups).replace("O", "0").replace("I", "1")) == groups


def test_known_groups() -> None:
    """Computed from the definition with logarithms of the field, by another program."""
    assert GROUPS[:3] == ["A4EA2", "SCQL4", "BQGQQ"]


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_every_wrong_character_and_every_swap_in_a_group_is_found_in_it(number: int) -> None:
    group = GROUPS[number]
    wrong = {
        group[:place] + letter + group[place + 1 :] for place in range(5) for letter in ALPHABET
    }
    for one in range(5):
        for other in range(one + 1, 5):
            letters = list(group)
            letters[one], letters[other] = letters[other], letters[one]
            wrong.add("".join(letters))
    wrong |= {group[:place] + group[place + 1 :] for place in range(5)}  # a character is missing
    wrong |= {group + "A", "", "!!!!!", group[:4] + "\N{LATIN CAPITAL LETTER E WITH ACUTE}"}
    wrong -= {group}
    assert len(wrong) > 155
    for mistyped in wrong:
        groups = [*GROUPS[:number], mistyped, *GROUPS[number + 1 :]]
        assert refused(groups) == (number + 1,), mistyped


def test_groups_in_wrong_places_are_noticed() -> None:
    for one in range(len(GROUPS) - 1):
        groups = list(GROUPS)
        groups[one], groups[one + 1] = groups[one + 1], groups[one]
        assert refused(groups) == ()
    assert refused(GROUPS[:-1]) == ()
    assert refused([*GROUPS, GROUPS[0]]) == ()
    assert refused([]) == ()


def test_several_mistyped_groups_are_all_named() -> None:
    groups = ["AAAAB" if at in (1, 4, 5) else group for at, group in enumerate(GROUPS)]
    assert refused(groups) == (2, 5, 6)
    with pytest.raises(Mistyped, match=r"the code is mistyped in groups 2, 5, 6$"):
        from_groups(groups, "the code")


@given(st.lists(st.text(max_size=6), max_size=20))
def test_any_text_raises_only_mistyped(groups: list[str]) -> None:
    with pytest.raises(Mistyped):
        from_groups(split_groups(" ".join(groups)), "it")
