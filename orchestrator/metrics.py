"""How many jobs there are, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from infra.database import reading
from orchestrator import ledger


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
