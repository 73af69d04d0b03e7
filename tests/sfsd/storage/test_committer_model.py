"""Model test of store and log: changes, conflicts, restarts and crashes against a dictionary."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sfsd.storage.change import digest_of
from tests.sfsd.faults import Crash
from tests.sfsd.simulated_disk import SimulatedDisk
from tests.sfsd.store_model import (
    Asked,
    Copy,
    Drop,
    Put,
    Step,
    StoreModel,
    Upload,
    check_start,
    stored,
)
from tests.temporary import memory

CIPHERTEXTS = [f"{user}/files/0{n}/0{n}.{n}.ct" for user in ("alice", "bob") for n in (1, 2)]
OTHERS = ["alice/account.json", "alice/files/01/01.1.json", "bob/inbox/alice.01"]

small = st.binary(max_size=40)
ciphertext = st.sampled_from(CIPHERTEXTS)
path = st.sampled_from(CIPHERTEXTS + OTHERS)
deed = st.one_of(
    st.builds(Put, path, small, st.booleans()),
    st.builds(Upload, ciphertext, st.binary(min_size=1, max_size=600)),
    st.builds(Copy, ciphertext, ciphertext),
    st.builds(Drop, path),
)
deeds = st.lists(deed, max_size=4, unique_by=lambda deed: deed.path).map(tuple)
# Expectations of a change for some paths: present bytes, no file, or outdated bytes.
expectation = st.dictionaries(
    path, st.sampled_from(["present", "present", "none", "gone"]), max_size=3
)
Wanted = tuple[tuple[Put | Upload | Copy | Drop, ...], dict[str, str]]
change = st.tuples(deeds, expectation)
atomic_set = st.lists(change, min_size=2, max_size=4)
groups = st.lists(st.one_of(change, atomic_set), min_size=1, max_size=5)


class StoreAndLog(RuleBasedStateMachine):
    """A root on a simulated disk; `model.states` has the expected state after each entry."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=memory()))
        self.roots = 0
        self.root = self.folder / "0"
        self.root.mkdir()
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.close()
            self.disk.end()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def _open(self) -> None:
        state = stored(self.root)
        self.disk = SimulatedDisk(self.root)
        self.model = StoreModel(self.root, self.disk, state)

    def _asked(self, wanted: list[Wanted | list[Wanted]]) -> list[Asked]:
        return [
            tuple(map(self._step, one)) if isinstance(one, list) else self._step(one)
            for one in wanted
        ]

    def _step(self, wanted: Wanted) -> Step:
        state = self.model.states[-1]
        meant: dict[str, dict[str, bytes | None]] = {
            "present": {name: state.get(name) for name in CIPHERTEXTS + OTHERS},
            "none": {},
            "gone": dict.fromkeys(CIPHERTEXTS + OTHERS, b"long gone"),
        }
        do, expected = wanted
        return Step(do, {name: meant[which].get(name) for name, which in expected.items()})

    @rule(wanted=groups)
    def commit(self, wanted: list[Wanted | list[Wanted]]) -> None:
        self.model.commit(self._asked(wanted))

    @rule()
    def settle(self) -> None:
        self.model.point.settle()

    @rule()
    def restart(self) -> None:
        self.model.close()
        self.disk.end()
        expected = self.model.states[-1]
        assert stored(self.root) == expected
        self._open()
        assert self.model.recovered.installed == 0

    @rule(wanted=groups, calls=st.integers(0, 40), seed=st.integers(0, 2**16), power=st.booleans())
    def crash(
        self,
        wanted: list[Wanted | list[Wanted]],
        calls: int,
        seed: int,
        power: bool,
    ) -> None:
        model = self.model
        self.disk.crash_at = len(self.disk.calls) + calls
        try:
            model.commit(self._asked(wanted))
            model.point.settle()
        except Crash:
            pass
        self.disk.end()
        del self.model  # the process has ended
        if power:
            self.roots += 1
            self.root = self.folder / str(self.roots)
            self.disk.lose_power(self.root, Random(seed))
        size, state = check_start(self.root, SimulatedDisk(self.root))
        assert model.acknowledged <= size
        assert state == model.state_at(size)
        self._open()

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def the_store_holds_what_the_dictionary_does(self) -> None:
        expected = self.model.states[-1]
        assert stored(self.root) == expected
        assert self.model.journal.next_seq == self.model.base + len(self.model.states) - 1
        for name in CIPHERTEXTS + OTHERS:
            data = expected.get(name)
            known = None if data is None else digest_of(name, data)
            assert self.model.store.stored_digest(name) == known


TestStoreAndLog = StoreAndLog.TestCase
# `make crash-sweep` runs as many examples as other tests do by default, and more.
TestStoreAndLog.settings = settings(
    stateful_step_count=25,
    max_examples=1000 if os.environ.get("SFS_CRASH_POINTS") == "full" else 40,
)
