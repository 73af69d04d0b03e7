"""The container image, built without docker."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from contrib.oci_image import DOCKERFILE, StepError, carry_out, last_stage
from tests.harness import REPOSITORY

BASE = """
mkdir -p "$1/usr" "$1/etc"
for name in bin sbin lib lib64; do
  if [ -L "/$name" ]; then cp -P "/$name" "$1/$name"
  elif [ -d "/$name" ]; then mkdir "$1/$name" && mount --bind "/$name" "$1/$name"; fi
done
mount --bind /usr "$1/usr"
for file in passwd group shadow gshadow; do head -n 1 "/etc/$file" > "$1/etc/$file"; done
exec "$2" -m contrib.oci_image "$1" "$3" "$4"
"""
"""Makes a root file system of that of this machine, in mounts that end with the shell."""


def can_mount() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return not subprocess.run(
        ["unshare", "-m", "true"], capture_output=True, check=False
    ).returncode


@pytest.mark.skipif(not can_mount(), reason="needs root and mounts")
def test_the_image_has_the_steps_of_the_dockerfile(tmp_path: Path) -> None:
    base, programs, image = (tmp_path / name for name in ("base", "programs", "image.tar"))
    (programs / "bin").mkdir(parents=True)
    (programs / "bin" / "sfsd").write_text("the program")
    arguments = [str(base), sys.executable, str(programs), str(image)]
    command = ["unshare", "-m", "sh", "-ec", BASE, "sh", *arguments]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    with tarfile.open(image) as archive:
        files = {one.name: read(archive, one.name) for one in archive.getmembers()}
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    manifest = blob(files, json.loads(files["index.json"])["manifests"][0])
    described = blob(files, manifest["config"])
    assert described["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    config = described["config"]
    assert config["User"] == "10001:10001"
    assert "SFSD_ROOT=/var/lib/sfsd" in config["Env"]
    assert config["Entrypoint"] == ["/opt/sfs/bin/sfsd"]
    assert config["Healthcheck"]["Test"] == ["CMD", "/opt/sfs/bin/sfsd", "status", "--check"]
    assert config["Healthcheck"]["Interval"] == 60 * 10**9
    layer = files[f"blobs/sha256/{manifest['layers'][0]['digest'].removeprefix('sha256:')}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as inside:
        root = inside.getmember("var/lib/sfsd")
        assert (root.uid, root.gid, root.mode & 0o777) == (10001, 10001, 0o700)
        assert read(inside, "opt/sfs/bin/sfsd") == b"the program"
        assert b"sfsd:x:10001:10001:" in read(inside, "etc/passwd")
        assert not [name for name in inside.getnames() if name.startswith("usr/")]  # mounted


def read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    return b"" if file is None else file.read()


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> dict[str, Any]:
    content = files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
    assert descriptor["size"] == len(content)
    found: dict[str, Any] = json.loads(content)
    return found


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    steps = last_stage(DOCKERFILE.read_text("utf-8"))
    assert {"RUN", "COPY", "HEALTHCHECK"} <= {name for name, _ in steps}
    for step in [("ADD", "x y"), ("COPY", "--from=other /a /b")]:
        with pytest.raises(StepError):
            carry_out(tmp_path, tmp_path, [step])
