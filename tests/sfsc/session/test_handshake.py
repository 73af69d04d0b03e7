"""Lifetime of a key: the server's policy, jittered and clamped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.wire.messages.session import Limits
from sfsc.session.handshake import DAY, key_lifetime

NOW = 1_800_000_000
LONGEST = 730 * DAY
SECONDS = st.integers(0, 2**40) | st.integers(0, LONGEST) | st.just(90 * DAY)


@given(SECONDS, SECONDS, st.integers(0, 100))
def test_a_lifetime_is_within_the_policy_and_the_limits(age: int, grace: int, jitter: int) -> None:
    due, expires = key_lifetime(Limits(0, age, grace, jitter), NOW)
    lasts = due - NOW
    assert DAY <= lasts <= LONGEST
    assert lasts <= max(DAY, age)
    assert lasts >= min(LONGEST, age - age * jitter // 100)
    assert due <= expires <= NOW + LONGEST
    assert expires - due == min(grace, LONGEST - lasts)


def test_keys_do_not_all_fall_due_on_one_day() -> None:
    lasts = {key_lifetime(Limits(0, 90 * DAY, 30 * DAY, 10), NOW)[0] - NOW for _ in range(200)}
    assert min(lasts) >= 81 * DAY
    assert max(lasts) <= 90 * DAY
    assert len({seconds // DAY for seconds in lasts}) > 5
    assert {key_lifetime(Limits(0, 90 * DAY, 0, 0), NOW)[0] - NOW for _ in range(20)} == {90 * DAY}
