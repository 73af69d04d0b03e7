"""Builds the container image without docker: the last stage of contrib/oci/Dockerfile, as root.

Run as ``python -m contrib.oci_image BASE PROGRAMS IMAGE.tar``. BASE is the folder of a root file
system with Python (``debootstrap``, ``docker export``), in which the steps are carried out.
PROGRAMS is what the first stage makes: a virtual environment for ``/opt/sfs``, with the Python of
BASE. The result is an OCI image layout, which ``podman load`` and ``docker load`` read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Final

DOCKERFILE: Final = Path(__file__).resolve().parent / "oci" / "Dockerfile"
_SECONDS: Final = {"s": 1, "m": 60}
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE: Final = "application/vnd.oci.image"


class StepError(Exception):
    """An instruction of the Dockerfile that cannot be carried out here."""


def last_stage(text: str) -> list[tuple[str, str]]:
    """Return the instructions after the last FROM, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    begin = max(number for number, (name, _) in enumerate(steps) if name == "FROM")
    return [(name, arguments) for name, arguments in steps[begin + 1 :]]


def carry_out(base: Path, programs: Path, steps: list[tuple[str, str]]) -> dict[str, Any]:
    """Change `base` as the steps say; return the config of the image (its member ``config``).

    Raises `StepError` for an instruction that is not known, CalledProcessError for a command that
    fails.
    """
    config: dict[str, Any] = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]}
    for name, arguments in steps:
        if name == "RUN":
            command = ["/bin/sh", "-ec", arguments]
            subprocess.run(["/usr/sbin/chroot", str(base), *command], check=True, cwd="/")
        elif name == "COPY":
            origin, _, target = shlex.split(arguments)
            if origin != "--from=build":
                raise StepError(f"COPY {arguments}")
            shutil.copytree(programs, base / target.lstrip("/"), symlinks=True)
        elif name == "ENV":
            config["Env"] += shlex.split(arguments)
        elif name in ("USER", "WORKDIR", "STOPSIGNAL"):
            key = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}[name]
            config[key] = arguments
        elif name in ("ENTRYPOINT", "CMD"):
            config[name.capitalize()] = json.loads(arguments)
        elif name == "VOLUME":
            config["Volumes"] = {path: {} for path in json.loads(arguments)}
        elif name == "EXPOSE":
            config["ExposedPorts"] = {f"{arguments}/tcp": {}}
        elif name == "HEALTHCHECK":
            config["Healthcheck"] = _health_check(arguments)
        else:
            raise StepError(f"{name} {arguments}")
    return config


def _health_check(arguments: str) -> dict[str, Any]:
    """Return a health check as docker's images have it; times are in nanoseconds."""
    options, _, command = arguments.partition("CMD ")
    found: dict[str, Any] = {"Test": ["CMD", *json.loads(command)]}
    keys = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
    for name, count, unit in re.findall(r"--([a-z-]+)=(\d+)([sm])", options):
        found[keys[name]] = int(count) * _SECONDS[unit] * 10**9
    return found


def write_image(base: Path, config: dict[str, Any], image: BinaryIO) -> None:
    """Write an image of the files in `base` to `image`. What is mounted there is left out."""
    with tempfile.TemporaryFile() as layer, tarfile.open(fileobj=image, mode="w") as archive:
        with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as files:
            _add_folder(files, base, "", base.stat().st_dev)
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        described = {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        stored = json.dumps(described).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": _descriptor(f"{_TYPE}.config.v1+json", stored),
            "layers": [
                {
                    "mediaType": f"{_TYPE}.layer.v1.tar",
                    "digest": f"sha256:{digest}",
                    "size": layer.tell(),
                }
            ],
        }
        manifest_bytes = json.dumps(manifest).encode()
        name = {"annotations": {"org.opencontainers.image.ref.name": "sfsd:latest"}}
        entry = _descriptor(f"{_TYPE}.manifest.v1+json", manifest_bytes) | name
        _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for blob in (stored, manifest_bytes):
            _add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        head = tarfile.TarInfo(f"blobs/sha256/{digest}")
        head.size = layer.tell()
        layer.seek(0)
        archive.addfile(head, layer)


def _add_folder(files: tarfile.TarFile, folder: Path, inside: str, device: int) -> None:
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.stat(follow_symlinks=False).st_dev != device:
            continue
        name = f"{inside}{entry.name}"
        files.add(entry.path, name, recursive=False)
        if entry.is_dir(follow_symlinks=False):
            _add_folder(files, Path(entry.path), f"{name}/", device)


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    return {"mediaType": kind, "digest": digest, "size": len(blob)}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    head = tarfile.TarInfo(name)
    head.size = len(content)
    archive.addfile(head, io.BytesIO(content))


def main(base: str, programs: str, image: str) -> None:
    """Carry out the last stage in `base`, and write the image."""
    config = carry_out(Path(base), Path(programs), last_stage(DOCKERFILE.read_text("utf-8")))
    with open(image, "wb") as file:
        write_image(Path(base), config, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
