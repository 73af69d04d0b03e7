"""Fuzzer of everything that takes bytes from somebody else; ``make fuzz`` runs it.

::

    python -m tests.fuzz [--inputs N] [--seed S] [--kind KIND]… [--only KIND:NUMBER]

Each input has a number within its kind, from which, with the seed, its changes follow. Valid inputs
to start from are made anew by each run, with other keys. An exception that is not one of the
target's expected errors is printed with its input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from protocol.codec.values import Mutable, field
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutations import Mutator
from tests.fuzz.replies import Replies
from tests.fuzz.requests import Requests
from tests.fuzz.target import Target
from tests.fuzz.world import World, running_world

_SHOWN = 20
"""Defects that are printed, when they are found."""
_SLOW = 2.0
"""Seconds of processor time after which an input is reported: parsers must not take long."""


class Result(Mutable):
    """Counts of a run: inputs and accepted inputs by target, and replies that were changed by type;
    the texts of defects, and of inputs that took long."""

    tried: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)


def run_kind(
    kind: str, targets: Sequence[Target], count: int, seed: int, result: Result, first: int = 0
) -> None:
    """Try `count` inputs of a kind, from number `first` on, on its targets in turn."""
    for number in range(first, first + count):
        target = targets[number % len(targets)]
        mutator = Mutator(random.Random(f"{seed} {kind} {number}"))
        name = f"{kind}: {target.name}"
        result.tried[name] += 1
        started = time.process_time()
        try:
            result.accepted[name] += target.run(mutator)
        except Exception:  # noqa: BLE001 - whatever a target does not expect is a defect
            cause = traceback.format_exc()
            defect = f"{kind}:{number} {target.name}\n{target.last.hex()}\n{cause}"
            result.defects.append(defect)
            if len(result.defects) <= _SHOWN:
                print(f"\n{defect}", flush=True)
        if time.process_time() - started > _SLOW:
            result.slow.append(f"{kind}:{number} {target.name} {target.last[:200].hex()}")


def run_all(
    world: World, kinds: Sequence[str], inputs: int, seed: int, *, steps: int = 10
) -> Result:
    """Try about that many inputs, the kinds by their shares in `steps` rounds, and print the memory
    after each round."""
    result, total = Result(), sum(KINDS[kind][0] for kind in kinds)
    targets = {kind: KINDS[kind][1](world) for kind in kinds}
    done = dict.fromkeys(kinds, 0)
    started = time.monotonic()
    for step in range(1, steps + 1):
        for kind in kinds:
            wanted = round(inputs * KINDS[kind][0] / total * step / steps)
            run_kind(kind, targets[kind], wanted - done[kind], seed, result, done[kind])
            done[kind] = wanted
        print(
            f"{step * 100 // steps:3} %  {sum(done.values()):9,} inputs  "
            f"{time.monotonic() - started:6.0f} s  resident {resident_mib():6.1f} MiB  "
            f"{len(result.defects)} defects",
            flush=True,
        )
    for target in (one for found in targets.values() for one in found):
        if isinstance(target, Replies | Requests):
            target.close()
        if isinstance(target, Replies):
            result.changed += target.changed
    return result


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def report(result: Result) -> None:
    """Print the counts, and inputs that took long."""
    for name, count in result.tried.items():
        print(f"{count:9,} {result.accepted[name]:9,} accepted  {name}")
    for name, count in result.changed.items():
        print(f"{count:9,} changed replies  {name}")
    for one in result.slow:
        print(f"slow: {one}")
    print(f"{sum(result.tried.values()):,} inputs, {len(result.defects)} unhandled exceptions")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--only", help="KIND:NUMBER of one input")
    stated = parser.parse_args()
    logging.disable()  # the daemon warns of what a changed client or disk does
    with tempfile.TemporaryDirectory() as folder, running_world(Path(folder)) as world:
        if stated.only is not None:
            kind, _, number = stated.only.partition(":")
            result = Result()
            run_kind(kind, KINDS[kind][1](world), 1, stated.seed, result, int(number))
        else:
            result = run_all(world, stated.kind or list(KINDS), stated.inputs, stated.seed)
        report(result)
    return 1 if result.defects or result.slow else 0


if __name__ == "__main__":
    sys.exit(main())
