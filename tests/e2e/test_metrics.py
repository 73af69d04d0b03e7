"""A scrape of a daemon that has done real work, as Prometheus reads it."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from protocol.records.invitation import parse_address
from tests.e2e.accounts import enrolled, new_root
from tests.harness import REPOSITORY, Daemon

DASHBOARD = REPOSITORY / "contrib" / "grafana" / "sfsd.json"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


_parse: Callable[[str], Iterator[Metric]] = text_string_to_metric_families


class Scrape:
    """The samples of a scrape."""

    def __init__(self, text: str) -> None:
        self.samples: Samples = {}
        self.names: set[str] = set()
        self.families: set[str] = set()
        for family in _parse(text):
            self.families.add(family.name)
            self.names.add(family.name)
            for sample in family.samples:
                self.names.add(sample.name)
                self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Yield a daemon that has stored, fetched and refused something."""
    folder = tmp_path_factory.mktemp("metrics")
    served = new_root(folder / "root")
    with (served.root / "sfsd.toml").open("a") as settings:
        settings.write('[health]\nfree_space = "1 MiB"\nfree_files = 1\n')
        settings.write('[metrics]\nlisten = "127.0.0.1:0"\n')
    (folder / "one").write_bytes(bytes(100_000))
    (folder / "two").write_bytes(b"2" * 100_000)
    (folder / "large").write_bytes(bytes(2_000_000))
    with served:
        alice = enrolled(served, "alice", folder / "alice")
        alice.run("put", folder / "one")
        served.run("user", "quota", "alice", "1 MiB")
    with served:  # looks at the accounts at once
        enrolled(served, "bob", folder / "bob")
        alice.run("put", folder / "two")
        alice.run("get", "two", "-o", folder / "back")
        alice.run("put", folder / "large", code=4)
        with socket.create_connection(parse_address(served.address), timeout=20) as stranger:
            stranger.sendall(b"no TLS\r\n")
            stranger.recv(1)
        yield served


@pytest.fixture(scope="module")
def address(running: Daemon) -> str:
    address: str = json.loads(running.run("status", "--json").text)["metrics"]
    return address


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


@pytest.fixture(scope="module")
def scrape(address: str) -> Scrape:
    """Return a scrape, once the daemon has looked at the accounts."""
    until = time.monotonic() + 20
    while True:
        found = Scrape(get(address, "/metrics"))
        if ("sfsd_account_used_bytes", (("user", "alice"),)) in found.samples:
            return found
        assert time.monotonic() < until
        time.sleep(0.1)


def test_requests_are_counted_by_operation(scrape: Scrape) -> None:
    assert scrape.value("sfsd_request_seconds_count", operation="Enroll") == 1
    logins = scrape.value("sfsd_request_seconds_count", operation="Login")
    assert logins >= 3
    assert scrape.value("sfsd_request_seconds_bucket", operation="Login", le="+Inf") == logins
    assert 0 < scrape.value("sfsd_request_seconds_sum", operation="Login") < 60
    assert scrape.value("sfsd_received_bytes_total") > 100_000
    assert scrape.value("sfsd_sent_bytes_total") > 100_000
    assert scrape.value("sfsd_refusals_total", code="quota") >= 1


def test_log_and_store(scrape: Scrape, running: Daemon) -> None:
    log = running.root / "logs" / "audit.jsonl"
    entries = log.read_bytes()
    assert scrape.value("sfsd_log_entries") == entries.count(b"\n")
    assert scrape.value("sfsd_log_bytes") == len(entries)
    assert scrape.value("sfsd_log_unsigned_entries") == 0
    assert scrape.value("sfsd_storage_failed") == 0
    groups = scrape.value("sfsd_group_changes_count")
    assert 0 < groups <= scrape.value("sfsd_group_changes_sum")
    assert scrape.value("sfsd_fsync_seconds_count", of="log") >= groups
    assert scrape.value("sfsd_fsync_seconds_count", of="store") > 0
    assert scrape.value("sfsd_disk_free_bytes", folder="logs") > 0


def test_accounts(scrape: Scrape) -> None:
    assert 100_000 < scrape.value("sfsd_account_used_bytes", user="alice") < 300_000
    assert scrape.value("sfsd_account_files", user="alice") in (1, 2)
    assert scrape.value("sfsd_account_quota_bytes", user="alice") == 1 << 20
    assert {
        state: scrape.value("sfsd_rotations_pending", state=state)
        for state in ("due", "overdue", "forced")
    } == {"due": 0, "overdue": 0, "forced": 0}


def test_health_says_why(address: str, running: Daemon) -> None:
    proof = running.root / "staging" / ".write-proof"
    proof.mkdir()
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address, "/healthz")
    assert caught.value.code == 503
    assert caught.value.read() == b"cannot write: writing to staging/: Is a directory\n"
    proof.rmdir()


def test_the_start_line_says_where(running: Daemon, address: str) -> None:
    assert f"metrics on http://{address}/metrics" in running.log_path.read_text()


def test_every_metric_of_the_dashboard_exists(scrape: Scrape) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ] + [one["query"] for one in dashboard["templating"]["list"]]
    named = {name for query in asked for name in re.findall(r"\bsfsd_[a-z_]+", query)}
    assert len(named) > 20
    assert named <= scrape.names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_another_address_than_loopback_is_a_warning(tmp_path: Path) -> None:
    served = new_root(tmp_path / "root")
    with (served.root / "sfsd.toml").open("a") as settings:
        settings.write('[metrics]\nlisten = "0.0.0.0:0"\n')
    with served:
        assert "WARNING metrics on http://0.0.0.0:" in served.log_path.read_text()


def test_the_documentation_has_every_metric(scrape: Scrape) -> None:
    page = (REPOSITORY / "docs" / "operating.md").read_text("utf-8")
    named = set(re.findall(r"`(sfsd_[a-z_]+)`", page))
    assert named == {
        family.replace("sfsd", "sfsd_info") if family == "sfsd" else family
        for family in scrape.families
    }
