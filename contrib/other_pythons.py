"""Runs a short selection of the tests with each further Python version that setup.cfg names.

An interpreter is looked for on PATH and in ~/.pyenv/versions. A version that is not installed is
named and left out.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENVS = REPOSITORY / ".venv-pythons"
SELECTION = (
    "tests/protocol/codec/test_values.py",
    "tests/protocol/wire/test_connection.py",
    "tests/sfsd/fs/test_files.py",
    "tests/sfsd/test_cli.py",
    "tests/sfsc/crypto/test_segments.py",
    "tests/sfsc/keys/test_home.py",
    "tests/sfsc/transfer/test_reader.py",
    "tests/sfsc/session/test_transport.py",
    "tests/e2e/test_main_job.py::test_round_trip_of_every_size",
    "tests/e2e/test_main_job.py::test_new_and_old_versions",
    "tests/e2e/test_standard_streams.py",
)
"""Tests of what differs between versions: finalizers, sockets, TLS, streams; one use of it all."""
_PROBE = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
_INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--no-compile", "--editable")


def main() -> int:
    """Test with each further interpreter; return 1 if a test failed."""
    failed = []
    for version in named_versions(REPOSITORY / "setup.cfg"):
        if version == "{}.{}".format(*sys.version_info):
            continue
        interpreter = find_interpreter(version, os.environ.get("PATH", ""), Path.home())
        if interpreter is None:
            print(f"Python {version}: not found, not tested", flush=True)
            continue
        print(f"Python {version}: {interpreter}", flush=True)
        if not run_selection(interpreter, version):
            failed.append(version)
    if failed:
        print(f"tests failed with Python {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def named_versions(settings: Path) -> list[str]:
    """Return the versions in the classifiers of `settings`, such as ``3.12``."""
    parser = configparser.ConfigParser()
    parser.read(settings)
    return re.findall(r"Python :: (\d+\.\d+)$", parser["metadata"]["classifiers"], re.MULTILINE)


def find_interpreter(version: str, path: str, home: Path) -> Path | None:
    """Return an interpreter of this version that can make virtual environments, or None."""
    for candidate in _candidates(version, path, home):
        probed = subprocess.run([candidate, "-c", _PROBE], capture_output=True, check=False)
        # A shim of pyenv may exist for a version that is not selected; it then fails.
        if probed.returncode == 0 and probed.stdout.decode().strip() == version:
            return candidate
    return None


def run_selection(interpreter: Path, version: str) -> bool:
    """Run the selection in a virtual environment, made if needed; return whether it passed."""
    folder = VENVS / version
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / ".complete"
    settings = REPOSITORY / "setup.cfg"
    if not complete.exists() or complete.stat().st_mtime < settings.stat().st_mtime:
        subprocess.run([interpreter, "-m", "venv", "--clear", "--without-pip", folder], check=True)
        # The pip of this interpreter; installing it in each environment would take longer.
        pip = (sys.executable, "-m", "pip", "--python", python)
        subprocess.run([*pip, *_INSTALL, ".[test]"], check=True, cwd=REPOSITORY)
        complete.touch()
    options = ("-q", "-n", "auto", "--dist", "worksteal", "-p", "no:cacheprovider")
    done = subprocess.run(
        [python, "-m", "pytest", *options, *SELECTION], check=False, cwd=REPOSITORY
    )
    return done.returncode == 0


def _candidates(version: str, path: str, home: Path) -> Iterator[Path]:
    for folder in path.split(os.pathsep):
        if found := shutil.which(f"python{version}", path=folder):
            yield Path(found)
    yield from sorted((home / ".pyenv" / "versions").glob(f"{version}.*/bin/python"), reverse=True)


if __name__ == "__main__":
    sys.exit(main())
