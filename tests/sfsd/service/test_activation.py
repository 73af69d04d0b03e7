"""Which variables of socket activation count; tests/e2e/test_service.py passes real sockets."""

from __future__ import annotations

import os

import pytest

from sfsd.errors import ConfigError
from sfsd.service.activation import inherited_sockets


@pytest.mark.parametrize(
    "variables",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}],
)
def test_variables_for_another_process_are_ignored_and_removed(variables: dict[str, str]) -> None:
    environment = {**variables, "OTHER": "1"}
    assert inherited_sockets(environment) == []
    assert environment == {"OTHER": "1"}


@pytest.mark.parametrize("count", ["x", "-1", "65", "1.5", "٣"])
def test_other_counts_are_refused(count: str) -> None:
    with pytest.raises(ConfigError):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
