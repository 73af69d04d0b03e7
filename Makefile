# A fresh machine needs git, make and Python 3.11 or later with venv (Debian: python3-venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PACKAGES := protocol sfsd sfsc
CHECKED := $(PACKAGES) tests benchmarks contrib

.DELETE_ON_ERROR:
.PHONY: help venv lint format test demo bench bench-peers bench-log bench-sharing bench-growth bench-memory bench-rotation vectors soak rotation-sweep crash-sweep audit-sweep fuzz clean

help:
	@echo "make test         lint, then every test (under ten minutes on two cores)"
	@echo "make demo         a real daemon, two users, real files, and a look at the server's disk"
	@echo "make bench        files, folders, starts, commits beside a bare pipe (BENCH_ROWS, BENCH_RUNS, ...)"
	@echo "make bench-peers  the same work by rclone, restic and Borg beside sfs; installs them (Debian, root)"
	@echo "make bench-log    a log of BENCH_ENTRIES lines (1,000,000) opened, proven from and verified"
	@echo "make bench-sharing  a file with BENCH_READERS readers (200), a reader with BENCH_SHARED files (5,000)"
	@echo "make bench-growth work over 1,000 and over 100,000 files of one user (BENCH_FEW, BENCH_MANY)"
	@echo "make bench-memory peak memory of client and daemon: 4 GiB, and 16 clients of 512 MiB"
	@echo "make bench-rotation  the wraps of BENCH_FILES files (10,000) made anew, and the memory of it"
	@echo "make vectors      write tests/vectors/*.json anew, from their fixed seeds"
	@echo "make lint         ruff, mypy --strict, the floor plan"
	@echo "make format       let ruff write the layout"
	@echo "make soak         5,000 files, 4 GiB, and 50 cuts of one upload, not a sample"
	@echo "make rotation-sweep client and daemon killed at every step of a rotation, not a sample"
	@echo "make crash-sweep  the crash tests at every point, not a sample"
	@echo "make audit-sweep every bit of a log changed, every truncation, not a sample"
	@echo "make fuzz         property tests with SFS_FUZZ_EXAMPLES examples each (1,000,000)"
	@echo "make clean        remove the virtual environment and every cache"

venv: $(STAMP)

# The stamp is written last: a venv that failed half way is laid anew (--clear), never mistaken for a whole one.
$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/mypy --platform win32 $(PACKAGES)
	$(BIN)/mypy --platform darwin $(PACKAGES)
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -q -n auto --dist worksteal --session-timeout=1800

demo: $(STAMP)
	$(BIN)/python -m contrib.demo

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers

bench-log: $(STAMP)
	$(BIN)/python -m benchmarks.log

bench-sharing: $(STAMP)
	$(BIN)/python -m benchmarks.sharing

bench-growth: $(STAMP)
	$(BIN)/python -m benchmarks.growth

bench-memory: $(STAMP)
	$(BIN)/python -m benchmarks.memory

bench-rotation: $(STAMP)
	$(BIN)/python -m benchmarks.rotation

vectors: $(STAMP)
	$(BIN)/python -m tests.vectors.generate_crypto
	$(BIN)/python -m tests.vectors.generate_protocol

soak: $(STAMP)
	SFS_SOAK=full $(BIN)/python -m pytest -q --timeout=3600 tests/e2e/test_soak.py

rotation-sweep: $(STAMP)
	SFS_ROTATION=full $(BIN)/python -m pytest -q --timeout=3600 tests/e2e/test_rotation_sweep.py tests/e2e/test_recovery.py -k "sweep or killed"

crash-sweep: $(STAMP)
	SFS_CRASH_POINTS=full $(BIN)/python -m pytest -q --timeout=3600 tests/e2e/test_crash.py

audit-sweep: $(STAMP)
	SFS_AUDIT_SWEEP=full $(BIN)/python -m pytest -q --timeout=0 tests/sfsd/commands/test_audit_sweep.py

SFS_FUZZ_EXAMPLES ?= 1000000
fuzz: $(STAMP)
	SFS_FUZZ_EXAMPLES=$(SFS_FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -n auto --timeout=0 tests/protocol

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
