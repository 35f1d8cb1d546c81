"""How many jobs there are, and what was collected, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from infra.database import reading
from orchestrator import ledger
from wegeft.contracts.collection import Collected


class JobGauges(Collector):
    """``wegeft_jobs{state}``, counted in the ledger whenever it is asked for; register it with the registry of ``create_app``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Say what will be told, so that registering asks nothing of the database."""
        yield GaugeMetricFamily("wegeft_jobs", "Jobs by state.", labels=("state",))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Count the jobs."""
        gauge = GaugeMetricFamily("wegeft_jobs", "Jobs by state.", labels=("state",))
        with reading(self._engine) as connection:
            for state, count in ledger.count_by_state(connection).items():
                gauge.add_metric((state.value,), count)
        yield gauge


class CollectionTally:
    """``wegeft_collected_blobs_total`` and ``wegeft_collected_bytes_total``: what this process has deleted, as nobody needed it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._blobs = Counter("wegeft_collected_blobs", "Blobs deleted, as nobody needed them.", registry=registry)
        self._bytes = Counter("wegeft_collected_bytes", "Their bytes.", registry=registry)

    def count(self, collected: Collected) -> None:
        """Add what a collection has deleted."""
        self._blobs.inc(collected.blobs)
        self._bytes.inc(collected.bytes)
