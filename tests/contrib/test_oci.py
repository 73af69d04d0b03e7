"""The container image: what its Dockerfile says is run here, as its user, without docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import BYTECODE

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "contrib" / "oci"
PROGRAM = "/opt/sfs/bin/sfsd"
DOCKER = shutil.which("docker")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the last stage, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found = [line.split(maxsplit=1) for line in lines if line.strip()]
    last = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return [(name, arguments) for name, arguments in found[last:]]


STEPS = dict(instructions())
ENVIRONMENT = dict(one.split("=", 1) for one in shlex.split(STEPS["ENV"]))
UID, GID = map(int, STEPS["USER"].split(":"))


def arguments_of(step: str) -> list[str]:
    """Return the program of an instruction in its exec form: no shell, which takes no signals."""
    found: list[str] = json.loads(STEPS[step][STEPS[step].index("[") :])
    return found


def interpreter() -> str | None:
    """Return a Python like this one that every user may run, None if there is none."""
    if os.geteuid() != 0:
        return sys.executable
    for name in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        tried = (
            subprocess.run([name, "-c", ""], user=UID, group=GID, check=False, cwd="/")
            if os.path.exists(name) and _reaches(name)
            else None
        )
        if tried is not None and tried.returncode == 0:
            return name
    return None


def _reaches(name: str) -> bool:
    """Tell whether every user may enter the folders above a file."""
    path = Path(name)
    folders = [*path.resolve().parents, *path.absolute().parents]
    return all(one.stat().st_mode & 0o001 for one in folders)


PYTHON = interpreter() if sys.platform == "linux" else None


def started(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the program of the image with `arguments`, as its user."""
    program, *own = arguments
    assert program == PROGRAM
    path = os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")])
    start = "import sys; from sfsd.cli import main; sys.exit(main())"
    here = {"SFSD_ROOT": str(root), "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
    as_root = os.geteuid() == 0
    return subprocess.Popen(
        [str(PYTHON), "-c", start, *own],
        env=ENVIRONMENT | here,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        user=UID if as_root else None,
        group=GID if as_root else None,
        extra_groups=[] if as_root else None,
    )


@pytest.fixture
def outer() -> Iterator[Path]:
    """Yield a folder that every user may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def test_the_image_is_not_of_root_and_knows_its_volume() -> None:
    assert UID > 0 < GID
    assert f"--uid {UID}" in STEPS["RUN"]
    assert json.loads(STEPS["VOLUME"]) == [ENVIRONMENT["SFSD_ROOT"]]
    assert arguments_of("ENTRYPOINT") == [PROGRAM]
    assert arguments_of("CMD")[-1].endswith(f":{STEPS['EXPOSE']}")


def test_the_build_sees_what_it_needs_and_no_more() -> None:
    seen = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    names = [line[1:] for line in seen if line.startswith("!")]
    assert seen[0] == "*"
    assert all((REPOSITORY / name).exists() for name in names)
    assert {"protocol", "sfsd", "sfsc", "contrib", "setup.cfg", "pyproject.toml"} <= set(names)


@pytest.mark.skipif(PYTHON is None, reason="no Python that the user of the image may run")
def test_the_user_of_the_image_makes_serves_and_checks_a_root(outer: Path) -> None:
    root = outer / "volume"
    root.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(root, UID, GID)
    entry, check = arguments_of("ENTRYPOINT"), arguments_of("HEALTHCHECK")
    with started(root, *entry, "init", "--public", "files.example:7373") as made:
        assert len(made.communicate(timeout=30)[0].strip()) == 64
    (root / "sfsd.toml").write_text('[health]\nfree_space = "1"\nfree_files = 0\n')
    with started(root, *check) as checked:
        assert checked.wait(30) == 1  # nothing serves
    command = [*arguments_of("CMD")[:-1], "127.0.0.1:0"]
    with started(root, *entry, *command) as daemon:
        assert daemon.stderr is not None
        line = json.loads(daemon.stderr.readline())
        assert (line["event"], line["fields"]["pid"]) == ("start", daemon.pid)
        with started(root, *check) as checked:
            reasons = checked.communicate(timeout=30)[0]
        assert (checked.returncode, reasons) == (0, "")
        daemon.terminate()  # STOPSIGNAL
        assert STEPS["STOPSIGNAL"] == "SIGTERM"
        assert daemon.wait(20) == 0
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in root.rglob("*")} == {UID}


def docker(*arguments: str) -> str:
    done = subprocess.run(
        [str(DOCKER), *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return done.stdout.strip()


def has_docker() -> bool:
    if DOCKER is None:
        return False
    return not subprocess.run([DOCKER, "version"], capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="no docker daemon")
def test_the_image_becomes_healthy() -> None:
    image = docker("build", "--quiet", "-f", "contrib/oci/Dockerfile", ".")
    volume = docker("volume", "create")
    mount = f"{volume}:{ENVIRONMENT['SFSD_ROOT']}"
    try:
        docker("run", "--rm", "-v", mount, image, "init", "--public", "files.example:7373")
        limits = ("--read-only", "--cap-drop", "ALL", "--health-interval", "1s")
        container = docker("run", "-d", "--rm", "-v", mount, *limits, image)
        deadline = time.monotonic() + 60
        while docker("inspect", "-f", "{{.State.Health.Status}}", container) != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        docker("stop", container)
    finally:
        docker("volume", "rm", "--force", volume)
        docker("image", "rm", "--force", image)
