"""How many jobs there are, and what was collected, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from infra.database import reading
from infra.readiness import ANSWER_SECONDS, Question
from orchestrator import ledger
from wegeft.contracts.collection import Collected
from wegeft.contracts.errors import Broken
from wegeft.contracts.training import JobState


class JobGauges(Collector):
    """``wegeft_jobs{state}``, counted in the ledger whenever it is asked for; register it with the registry of ``create_app``.

    While the database does not answer there is no such series, and all others are told.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counted = Question(self._count)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Say what will be told, so that registering asks nothing of the database."""
        yield GaugeMetricFamily("wegeft_jobs", "Jobs by state.", labels=("state",))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Count the jobs."""
        gauge = GaugeMetricFamily("wegeft_jobs", "Jobs by state.", labels=("state",))
        with suppress(Broken, TimeoutError):
            for state, count in self._counted.begin().result(ANSWER_SECONDS).items():
                gauge.add_metric((state.value,), count)
        yield gauge

    def _count(self) -> dict[JobState, int]:
        with reading(self._engine) as connection:
            return ledger.count_by_state(connection)


class CollectionTally:
    """``wegeft_collected_blobs_total`` and ``wegeft_collected_bytes_total``: what this process has deleted, as nobody needed it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._blobs = Counter("wegeft_collected_blobs", "Blobs deleted, as nobody needed them.", registry=registry)
        self._bytes = Counter("wegeft_collected_bytes", "Their bytes.", registry=registry)

    def count(self, collected: Collected) -> None:
        """Add what a collection has deleted."""
        self._blobs.inc(collected.blobs)
        self._bytes.inc(collected.bytes)
