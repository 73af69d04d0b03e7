"""``make dist``: check what was built, and run the demo from the wheel in an empty venv.

Run as ``python -m contrib.check_dist DIST``. The wheel and the sdist must hold every module of the
three packages and their ``py.typed``, and the wheel the manual pages. The demo then runs in a
temporary folder that has the demo and what drives it, but none of the packages, so that only the
installed wheel can serve it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "sfsd", "sfsc")
DRIVERS = ("contrib/demo.py", "contrib/search.py", "tests/forked.py", "tests/harness.py")
"""What the demo needs beside the packages."""
PAGES = ("sfsc.1", "sfsc-put.1", "sfsc-key-recovery.1", "sfsd.1", "sfsd-serve.1")
"""Some of the manual pages, of which a test checks that there is one for each command."""
PLACES = "import protocol, sfsc, sfsd; print(protocol.__file__, sfsc.__file__, sfsd.__file__)"


_SUFFIXES = {".py", ".html", ".css", ".js", ".service", ".socket", ".timer"}
"""Suffixes of the files of a package: modules, the page of `sfsd report`, and systemd's units."""


class DistError(Exception):
    """The built distributions are not complete, or are not what would be used."""


def modules() -> set[str]:
    """Return the paths of all modules and markers that a distribution must hold."""
    found = (path for name in PACKAGES for path in (REPOSITORY / name).rglob("*"))
    return {
        path.relative_to(REPOSITORY).as_posix()
        for path in found
        if path.suffix in _SUFFIXES or path.name == "py.typed"
    }


def wheel_paths(wheel: Path) -> set[str]:
    """Return the paths in a wheel, those of its metadata left out, and of its data below their
    place in the environment."""
    with zipfile.ZipFile(wheel) as archive:
        paths = {name for name in archive.namelist() if ".dist-info/" not in name}
    return {path.partition(".data/data/")[2] or path for path in paths}


def sdist_paths(sdist: Path) -> set[str]:
    """Return the paths in an sdist, relative to its top folder."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def check(wheel: Path, sdist: Path) -> None:
    """Raise `DistError` if a module is missing, or the wheel installs something else."""
    wanted, in_wheel = modules(), wheel_paths(wheel)
    pages = {path for path in in_wheel if path.startswith("share/man/")}
    if in_wheel - pages != wanted:
        raise DistError(f"{wheel.name} differs in {sorted((in_wheel - pages) ^ wanted)[:5]}")
    if missing := {f"share/man/man1/{name}" for name in PAGES} - pages:
        raise DistError(f"{wheel.name} lacks {sorted(missing)}")
    if missing := (wanted | set(DRIVERS)) - sdist_paths(sdist):
        raise DistError(f"{sdist.name} lacks {sorted(missing)[:5]}")
    print(f"{wheel.name}, {sdist.name}: all {len(wanted)} modules and markers", flush=True)


def run_demo(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty venv below `folder` and run the demo with it."""
    place = folder / "venv"
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run([python, *install], check=True, cwd=folder, env=own)
    work = folder / "work"
    for name in DRIVERS:
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
    shown = subprocess.run(
        [python, "-c", PLACES], check=True, cwd=work, env=own, capture_output=True, text=True
    )
    for used in shown.stdout.split():
        if not Path(used).resolve().is_relative_to(place.resolve()):
            raise DistError(f"{used} is not in the venv")
    subprocess.run([python, "-m", "contrib.demo"], check=True, cwd=work, env=own)


def main(arguments: list[str]) -> int:
    """Check the one wheel and the one sdist in the folder named, then run the demo."""
    built = Path(arguments[0])
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    try:
        check(wheel.resolve(), sdist.resolve())
        with tempfile.TemporaryDirectory(prefix="sfs-dist-") as folder:
            run_demo(wheel.resolve(), Path(folder))
    except (DistError, subprocess.CalledProcessError) as exc:
        print(f"dist: FAILED: {exc}", file=sys.stderr)
        return 1
    print("dist: complete, and the demo held with the installed wheel")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
