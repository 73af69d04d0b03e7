"""What a user would take instead, each encrypting on the client and serving over loopback.

rclone  crypt over its own webdav server, with TLS as sfs has it
restic  over ``rclone serve restic``
borg    over ssh to an sshd of its own
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from benchmarks.measure import SECONDS
from benchmarks.works import clear
from sfsc.closing import Closing
from tests.harness import PASSPHRASE, Client

READY_SECONDS = 20.0


class Contender(Protocol):
    """Stores `source`, a file or a folder, under `name`, and brings it back."""

    @property
    def name(self) -> str: ...

    def fresh(self) -> None:
        """Forget what was stored: who stores equal bytes once shall be measured at storing."""

    def up(self, source: Path, name: str) -> None: ...

    def down(self, name: str, source: Path, target: Path) -> Path:
        """Fetch `name`, which `source` went up under, below `target`; where it is then."""


@dataclass(frozen=True)
class Product:
    """``sfsc``, with its passphrase."""

    client: Client
    name: str = "sfs"

    def fresh(self) -> None:
        pass  # no content is stored once for two files

    def up(self, source: Path, name: str) -> None:
        recursive = ("-r",) if source.is_dir() else ()
        self.client.run("put", *recursive, source, "--name", name, seconds=SECONDS)

    def down(self, name: str, source: Path, target: Path) -> Path:
        if source.is_dir():
            self.client.run("get", "-r", name, "-o", target, seconds=SECONDS)
        else:
            target.mkdir()
            self.client.run("get", name, "-o", target / name, seconds=SECONDS)
        return target / name


class _Served(Closing):
    """A peer with a server of its own below `folder`, which ends with the context."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "store").mkdir(parents=True)
        self._port = _free_port()
        self._server = ExitStack()

    def _serve(self, *words: str | Path) -> None:
        process = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._server.callback(process.wait)
        self._server.callback(process.terminate)
        _wait_for(self._port)

    def fresh(self) -> None:
        clear(self._folder / "store")
        (self._folder / "store").mkdir()

    @abstractmethod
    def up(self, source: Path, name: str) -> None: ...

    @abstractmethod
    def down(self, name: str, source: Path, target: Path) -> Path: ...

    def close(self) -> None:
        self._server.close()


class Rclone(_Served):
    name = "rclone"

    def __enter__(self) -> Self:
        hidden = _output("rclone", "obscure", PASSPHRASE)
        self._config = self._folder / "rclone.conf"
        self._config.write_text(
            f"[dav]\ntype=webdav\nurl=https://127.0.0.1:{self._port}\nvendor=other\n"
            f"[enc]\ntype=crypt\nremote=dav:\npassword={hidden}\n"
        )
        self._certificate, key = self._folder / "certificate", self._folder / "key"
        _run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ),
                *("-nodes", "-days", "30", "-subj", "/CN=127.0.0.1"),
                *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key),
                *("-out", self._certificate),
            ]
        )
        served = ("--addr", f"127.0.0.1:{self._port}", "--cert", self._certificate, "--key", key)
        self._serve("rclone", "serve", "webdav", self._folder / "store", *served)
        return self

    def up(self, source: Path, name: str) -> None:
        self._copy(source, source, f"enc:{name}")

    def down(self, name: str, source: Path, target: Path) -> Path:
        self._copy(source, f"enc:{name}", target / name)
        return target / name

    def _copy(self, source: Path, origin: str | Path, target: str | Path) -> None:
        how = "copy" if source.is_dir() else "copyto"
        words = ("rclone", "--config", self._config, "--ca-cert", self._certificate)
        _run([*words, "--transfers", "8", "--checkers", "8", how, origin, target])


class Restic(_Served):
    name = "restic"

    def __enter__(self) -> Self:
        address = f"127.0.0.1:{self._port}"
        self._serve(
            "rclone",
            "serve",
            "restic",
            self._folder / "store",
            "--addr",
            address,
            "--cache-objects=false",
        )
        self._environment = {
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_REPOSITORY": f"rest:http://{address}/",
            "RESTIC_CACHE_DIR": str(self._folder / "cache"),
        }
        return self

    def fresh(self) -> None:
        super().fresh()
        self._restic("init")

    def up(self, source: Path, name: str) -> None:
        self._restic("backup", "--tag", name, source)

    def down(self, name: str, source: Path, target: Path) -> Path:
        self._restic("restore", "latest", "--tag", name, "--target", target)
        return target / source.relative_to(source.anchor)

    def _restic(self, *words: str | Path) -> None:
        _run(["restic", *words], self._environment)


class Borg(_Served):
    name = "borg"

    def __enter__(self) -> Self:
        folder = self._folder
        for key in ("host", "user"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key])
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "sshd.conf").write_text(
            f"Port {self._port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPidFile none\n"
            "PermitRootLogin yes\nUsePAM no\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd puts its unprivileged half
        self._serve(_sshd(), "-D", "-f", folder / "sshd.conf")
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        user = _output("id", "-un")
        self._environment = {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_RSH": f"ssh -p {self._port} -i {folder}/user {options}",
            "BORG_REPO": f"ssh://{user}@127.0.0.1:{self._port}{folder}/store/repository",
            "BORG_BASE_DIR": str(folder / "base"),
        }
        return self

    def fresh(self) -> None:
        super().fresh()
        clear(self._folder / "base")
        self._borg("init", "-e", "repokey-blake2")

    def up(self, source: Path, name: str) -> None:
        self._borg("create", "-C", "none", f"::{name}", source)

    def down(self, name: str, source: Path, target: Path) -> Path:
        target.mkdir()
        self._borg("extract", f"::{name}", cwd=target)
        return target / source.relative_to(source.anchor)

    def _borg(self, *words: str | Path, cwd: Path | None = None) -> None:
        _run(["borg", *words], self._environment, cwd)


PEERS: Mapping[str, tuple[Callable[[Path], _Served], tuple[str, ...]]] = {
    "rclone": (Rclone, ("rclone", "openssl")),
    "restic": (Restic, ("restic", "rclone")),
    "borg": (Borg, ("borg", "ssh", "ssh-keygen", "sshd")),
}
"""Each peer, and the programs that it needs."""


def missing(programs: Sequence[str]) -> list[str]:
    return [one for one in programs if shutil.which(one) is None and one != "sshd"] + [
        one for one in programs if one == "sshd" and not Path(_sshd()).exists()
    ]


def _sshd() -> str:
    return shutil.which("sshd") or "/usr/sbin/sshd"


def _run(
    words: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    done = subprocess.run(
        list(map(str, words)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        told = done.stderr[-600:].decode(errors="replace")
        raise SystemExit(f"{' '.join(map(str, words[:2]))} ended with {done.returncode}: {told}")


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as exc:
            if time.monotonic() > deadline:
                raise SystemExit(f"a peer's server does not accept connections: {exc}") from exc
            time.sleep(0.05)
