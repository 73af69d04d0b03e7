"""What every test run shares: how hard hypothesis tries."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings

FUZZ_EXAMPLES = os.environ.get("SFS_FUZZ_EXAMPLES")

# Two cores shared by workers make single examples slow at times; a deadline would only flake.
settings.register_profile("quick", deadline=None, max_examples=100)
settings.register_profile("ci", settings.get_profile("quick"), print_blob=True)
settings.register_profile(
    "fuzz",
    deadline=timedelta(seconds=5),
    max_examples=int(FUZZ_EXAMPLES or 1),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def _profile() -> str:
    if FUZZ_EXAMPLES:
        return "fuzz"
    return "ci" if os.environ.get("CI") else "quick"


settings.load_profile(_profile())
