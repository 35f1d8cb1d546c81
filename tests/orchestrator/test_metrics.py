"""Jobs by state, as Prometheus sees them."""

from pathlib import Path

from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from infra.database import writing
from infra.http import create_app
from orchestrator import ledger
from orchestrator.metrics import JobGauges
from tests.orchestrator.samples import add_job, at, claim, new_sqlite


def test_every_state_has_a_number(tmp_path: Path) -> None:
    """Zero where there is none, counted anew each time."""
    engine = new_sqlite(tmp_path / "a.db")
    registry = CollectorRegistry()
    registry.register(JobGauges(engine))
    ids = [add_job(engine, n, n) for n in range(3)]
    claim(engine, 5)
    with writing(engine) as connection:
        ledger.cancel(connection, ids[2], at(5))
    with TestClient(create_app([], title="t", version="1", registry=registry)) as http:
        lines = {line for line in http.get("/metrics").text.splitlines() if line.startswith("wegeft_jobs{")}
    counts = {"queued": 1, "starting": 1, "cancelled": 1, "running": 0, "cancelling": 0, "succeeded": 0, "failed": 0}
    assert lines == {f'wegeft_jobs{{state="{state}"}} {count}.0' for state, count in counts.items()}
    engine.dispose()
