"""The daemon's counters in the OpenMetrics format (https://prometheus.io/docs/specs/om/).

Imported only if ``[metrics]`` names an address. Nothing is measured here: a scrape collects what
the daemon counts anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.utils import floatToGoString

from protocol import VERSION
from sfsd.histogram import Histogram
from sfsd.jobs.account_survey import AccountSurvey
from sfsd.rules.context import ServerContext

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_encode: Final[Callable[[CollectorRegistry], bytes]] = generate_latest
_PENDING: Final = ("due", "overdue", "forced")


class MetricsRegistry:
    """Registry of what a scrape of one daemon shows; docs/operating.md lists it."""

    def __init__(self, context: ServerContext, survey: AccountSurvey) -> None:
        self._context = context
        self._survey = survey
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the text of a scrape. Any thread."""
        return _encode(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; called by the library."""
        yield InfoMetricFamily("sfsd", "The running daemon.", {"version": VERSION})
        yield from self._requests()
        yield from self._storage()
        yield from self._disks()
        yield from self._accounts()
        yield from self._scrub()

    def _requests(self) -> Iterator[Metric]:
        metrics = self._context.metrics
        yield _gauge("sfsd_start_time_seconds", "Start of the daemon.", metrics.started)
        yield _gauge("sfsd_connections", "Connections, logged in or not.", metrics.connections)
        yield _gauge("sfsd_sessions", "Connections that are logged in.", metrics.sessions)
        yield _counter("sfsd_received_bytes", "Bytes received inside TLS.", metrics.received)
        yield _counter("sfsd_sent_bytes", "Bytes sent inside TLS.", metrics.sent)
        seconds = HistogramMetricFamily(
            "sfsd_request_seconds",
            "Seconds from the start of a request to its reply.",
            labels=["operation"],
        )
        for operation, one in sorted(dict(metrics.requests).items()):
            _add(seconds, [operation], one)
        yield seconds
        refused = CounterMetricFamily(
            "sfsd_refusals", "Refused requests, changes and logins.", labels=["code"]
        )
        for code, count in sorted(dict(metrics.refusals).items()):
            refused.add_metric([code], count)
        yield refused
        lost = CounterMetricFamily(
            "sfsd_disconnections", "Connections rejected or ended by the daemon.", labels=["cause"]
        )
        for cause, count in sorted(dict(metrics.disconnected).items()):
            lost.add_metric([cause], count)
        yield lost

    def _storage(self) -> Iterator[Metric]:
        context = self._context
        journal, failed = context.journal, dict(context.metrics.failed_jobs)
        yield _gauge(
            "sfsd_storage_failed", "1 after a failure of the storage.", context.failed is not None
        )
        jobs = GaugeMetricFamily(
            "sfsd_failed_jobs", "1 for each job whose last run failed.", labels=["job"]
        )
        for job in sorted(failed):
            jobs.add_metric([job], 1)
        yield jobs
        sizes = HistogramMetricFamily("sfsd_group_changes", "Changes made durable together.")
        _add(sizes, [], context.committer.group_sizes)
        yield sizes
        syncs = HistogramMetricFamily(
            "sfsd_fsync_seconds", "Seconds of a sync of the log or the store.", labels=["of"]
        )
        _add(syncs, ["log"], journal.sync_seconds)
        _add(syncs, ["store"], context.store.syncs.seconds)
        yield syncs
        yield _gauge("sfsd_log_entries", "Entries of the log.", journal.size)
        yield _gauge("sfsd_log_bytes", "Bytes of the log.", journal.byte_size)
        yield _gauge(
            "sfsd_log_unsigned_entries",
            "Entries of the log that the stored checkpoint lacks.",
            max(journal.size - journal.stored_size, 0),
        )

    def _disks(self) -> Iterator[Metric]:
        free = GaugeMetricFamily(
            "sfsd_disk_free_bytes", "Room on the disk of a folder of the root.", labels=["folder"]
        )
        left = GaugeMetricFamily(
            "sfsd_disk_free_files", "Files that can be created there.", labels=["folder"]
        )
        context = self._context
        for folder in context.disks:
            name = folder.relative_to(context.root).as_posix()
            with contextlib.suppress(OSError):  # /healthz reports it
                free.add_metric([name], context.store.files.free(folder))
                if (files := context.store.files.free_files(folder)) is not None:
                    left.add_metric([name], files)
        yield free
        yield left

    def _accounts(self) -> Iterator[Metric]:
        accounts = self._survey.accounts
        yield _gauge("sfsd_accounts", "Accounts, invited ones included.", len(accounts))
        yield _gauge(
            "sfsd_accounts_time_seconds",
            "When all accounts were looked at last, 0 before.",
            self._survey.finished,
        )
        used, files, quota = (
            GaugeMetricFamily(f"sfsd_account_{name}", text, labels=["user"])
            for name, text in (
                ("used_bytes", "Bytes that the files of an account take."),
                ("files", "Files of an account."),
                ("quota_bytes", "Quota of an account that has one."),
            )
        )
        pending = dict.fromkeys(_PENDING, 0)
        for user, one in accounts.items():
            used.add_metric([user], one.used)
            files.add_metric([user], one.files)
            if one.quota:
                quota.add_metric([user], one.quota)
            if one.keys in pending:
                pending[one.keys] += 1
        yield from (used, files, quota)
        rotations = GaugeMetricFamily(
            "sfsd_rotations_pending",
            "Accounts whose keys are due, overdue, or to be rotated by order of the operator.",
            labels=["state"],
        )
        for state, count in pending.items():
            rotations.add_metric([state], count)
        yield rotations
        damaged = len(self._context.documents.damaged_accounts())
        yield _gauge("sfsd_damaged_accounts", "Accounts that were found damaged.", damaged)

    def _scrub(self) -> Iterator[Metric]:
        scrub = self._context.scrub
        running = bool(scrub.began)
        for name, text, value in (
            ("running", "1 while a pass of the scrub runs or is to go on.", running),
            ("files", "Files that this pass has read.", scrub.files * running),
            ("bytes", "Bytes that this pass has read.", scrub.bytes * running),
            ("last_files", "Files that the last whole pass has read.", scrub.last_files),
            ("last_bytes", "Bytes that the last whole pass has read.", scrub.last_bytes),
            ("last_time_seconds", "When it ended, 0 before.", scrub.last_finished),
            ("damaged_files", "Files that differ from the log.", len(scrub.damaged)),
        ):
            yield _gauge(f"sfsd_scrub_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _add(family: HistogramMetricFamily, labels: list[str], one: Histogram) -> None:
    bounds = [*map(floatToGoString, one.bounds), "+Inf"]
    counts = accumulate(list(one.counts))
    family.add_metric(labels, list(zip(bounds, counts, strict=True)), one.total)
