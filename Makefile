# Requires git, make and Python 3.11 or later with venv (Debian: python3-venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete$(subst /,-,$(PYTHON:python3=))
# PYTHON if it runs, else that name in ~/.pyenv/versions. A shim of pyenv is on PATH for every
# installed version, but fails for one that is not selected. Used in recipes only.
INTERPRETER = $(shell for one in $(PYTHON) "$$HOME"/.pyenv/versions/*/bin/$(PYTHON); do \
	"$$one" -c "" 2>/dev/null && echo "$$one" && exit; done; echo $(PYTHON))
PACKAGES := protocol sfsd sfsc
CHECKED := $(PACKAGES) tests benchmarks contrib
# Limit of `make test` in seconds; a busy machine needs more.
TEST_SECONDS ?= 1800
DIST_VENV := .venv-dist
DIST_TOOLS := 'build>=1.3' 'twine>=6.2'

.DELETE_ON_ERROR:
.PHONY: help venv lint format test test-pythons demo recording man dist types vectors clean
.PHONY: fsspec-suite flood soak crash-sweep changeset-model sync-model fault-sweep rotation-sweep audit-sweep fuzz
.PHONY: bench bench-peers bench-log bench-sharing bench-growth bench-memory bench-rotation

help:
	@echo "make test             lint, then all tests (under ten minutes on two cores; TEST_SECONDS)"
	@echo "make lint             ruff, mypy --strict for Linux, Windows and macOS, import contracts, wording"
	@echo "make format           apply ruff's fixes and its layout"
	@echo "make test-pythons     a short selection of the tests with each other Python that setup.cfg names"
	@echo "make demo             run a daemon with two users and real files, then search the server's disk"
	@echo "make recording        write docs/first-session.txt: the first session of README.md on a terminal"
	@echo "make dist             build wheel and sdist in dist/, check both, run the demo from the installed wheel"
	@echo "make types            check with pyright that every name of the installed library has a complete type"
	@echo "make man              write the manual pages to build/man: man -M build/man sfsc-put"
	@echo "make vectors          write tests/vectors/*.json again, from fixed seeds"
	@echo "make clean            remove the virtual environments, the builds and all caches"
	@echo
	@echo "make soak             store 5,000 files and 4 GiB, and cut one upload 50 times (make test: a sample)"
	@echo "make crash-sweep      the crash tests at every point (make test: a sample)"
	@echo "make changeset-model  two machines change files at once, MODEL_STEPS (2,000) times, against a dictionary (make test: a sample)"
	@echo "make sync-model       change a folder and the store at random, and synchronise them, SYNC_ROUNDS (1,000) times (make test: a sample)"
	@echo "make fault-sweep      fail a system call of the daemon on its root, at FAULT_POINTS (2,000) points"
	@echo "make rotation-sweep   kill client and daemon at every step of a rotation (make test: a sample)"
	@echo "make audit-sweep      change every bit of a log and try every truncation (make test: a sample)"
	@echo "make flood            thousands of connections and requests to one daemon: memory, and others' logins (make test: a sample)"
	@echo "make fsspec-suite     fsspec's own tests of a file system, all of them (make test: a sample)"
	@echo "make fuzz             change FUZZ_INPUTS inputs (1,000,000) of all parsers and of both sides of a connection"
	@echo
	@echo "make bench            files, folders, start-up and commits next to a bare pipe (BENCH_ROWS, BENCH_RUNS, ...)"
	@echo "make bench-peers      the same work with rclone, restic and Borg; installs them (Debian, as root)"
	@echo "make bench-log        open, verify and prove from a log of BENCH_ENTRIES entries (1,000,000)"
	@echo "make bench-sharing    a file with BENCH_READERS readers (200), a reader of BENCH_SHARED files (5,000)"
	@echo "make bench-growth     the same work with 1,000 and with 100,000 files (BENCH_FEW, BENCH_MANY)"
	@echo "make bench-memory     peak memory of client and daemon: one file of 4 GiB, 16 clients of 512 MiB"
	@echo "make bench-rotation   rotate the keys of BENCH_FILES files (10,000): time and peak memory"

venv: $(STAMP)

# The stamp is written last, so an installation that failed half way is repeated from an empty venv.
# It names the interpreter, so that another PYTHON gets a new venv.
$(STAMP): setup.cfg pyproject.toml
	$(INTERPRETER) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/mypy --platform win32 $(PACKAGES)
	$(BIN)/mypy --platform darwin $(PACKAGES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m contrib.plain_english

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each of the first two uses one core most of the time.
test: $(STAMP)
	+$(MAKE) --jobs=2 --output-sync=target lint test-pythons
	$(BIN)/python -m pytest -q -n auto --dist worksteal --session-timeout=$(TEST_SECONDS)

# Before the whole suite, whose summary is the last line that `make test` prints.
test-pythons: $(STAMP)
	$(BIN)/python -m contrib.other_pythons

demo: $(STAMP)
	$(BIN)/python -m contrib.demo

man: $(STAMP)
	$(BIN)/python -m contrib.man_pages build/man

recording: $(STAMP)
	$(BIN)/python -m contrib.first_session

# The tools have a venv of their own: nothing else needs them.
dist:
	rm -rf build dist $(DIST_VENV)
	$(INTERPRETER) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(DIST_TOOLS)
	$(DIST_VENV)/bin/python -m build --outdir dist .
	$(DIST_VENV)/bin/python -m twine check --strict dist/*
	$(INTERPRETER) -m contrib.check_dist dist

# The library as a user's type checker sees it: installed, and without the stubs of development.
types:
	rm -rf build $(DIST_VENV)
	$(INTERPRETER) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '.[aio,fsspec]' pyright
	cd $(DIST_VENV) && PATH=$$PWD/bin:$$PATH VIRTUAL_ENV=$$PWD pyright --verifytypes sfsc --ignoreexternal

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
	SFS_CRASH_POINTS=full $(BIN)/python -m pytest -q -n 2 --timeout=3600 tests/e2e/test_crash.py tests/sfsd/storage/test_crash_recovery.py tests/sfsd/storage/test_committer_model.py

MODEL_STEPS ?= 2000
MODEL_SEED ?= 1
changeset-model: $(STAMP)
	SFS_MODEL_STEPS=$(MODEL_STEPS) SFS_MODEL_SEED=$(MODEL_SEED) $(BIN)/python -m pytest -q --timeout=0 tests/e2e/test_changeset_model.py

SYNC_ROUNDS ?= 1000
SYNC_SEED ?= 1
sync-model: $(STAMP)
	SYNC_ROUNDS=$(SYNC_ROUNDS) SYNC_SEED=$(SYNC_SEED) SYNC_EDITS=1000 $(BIN)/python -m pytest -q --timeout=0 tests/e2e/test_sync_model.py tests/e2e/test_watch.py

# More points than there are (about 25,000) are every point.
FAULT_POINTS ?= 2000
fault-sweep: $(STAMP)
	SFS_FAULT_POINTS=$(FAULT_POINTS) $(BIN)/python -m pytest -q -n 2 -rP --timeout=0 tests/e2e/test_fault_sweep.py

flood: $(STAMP)
	SFS_FLOOD=full $(BIN)/python -m pytest -q -rP --timeout=0 tests/e2e/test_flood.py
	$(BIN)/python -m benchmarks.flood

audit-sweep: $(STAMP)
	SFS_AUDIT_SWEEP=full $(BIN)/python -m pytest -q --timeout=0 tests/sfsd/commands/test_audit_sweep.py

fsspec-suite: $(STAMP)
	SFS_FSSPEC=full $(BIN)/python -m pytest -q --timeout=0 tests/sfsc/filesystem

# One arena: with one for each thread that ever ran, the memory that is printed grows for ever.
FUZZ_INPUTS ?= 1000000
FUZZ_SEED ?= 1
fuzz: $(STAMP)
	MALLOC_ARENA_MAX=1 $(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

clean:
	rm -rf $(VENV) $(DIST_VENV) .venv-pythons dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
