"""Jobs by state, as Prometheus sees them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from cli.serve import _make_app, _Parts, now
from hub.objects import MemoryStore
from hub.signing import Signer
from infra.auth import Guard
from infra.database import writing
from infra.http import create_app
from infra.settings import Settings
from orchestrator import ledger
from orchestrator.metrics import JobGauges
from orchestrator.services import OrchestratorServices
from tests.orchestrator.samples import add_job, at, claim, new_sqlite
from wegeft.contracts.signing_keys import SigningKey


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


def test_the_service_tells_them_where_it_runs_jobs(tmp_path: Path) -> None:
    """The application that ``wgctl serve`` puts together; a hub alone has no jobs to count."""
    engine = new_sqlite(tmp_path / "a.db")
    add_job(engine)
    plain: dict[str, Any] = {"engine": engine, "store": MemoryStore(), "guard": Guard(engine=engine, clock=now), "settings": Settings()}
    jobs = OrchestratorServices(engine=engine, store=plain["store"], clock=now)
    parts = _Parts(**plain, registry=CollectorRegistry(), jobs=jobs, signer=Signer(key=SigningKey(bytes(32))))
    with TestClient(_make_app(parts, None, "http://testserver")) as http:
        assert 'wegeft_jobs{state="queued"} 1.0' in http.get("/metrics").text
    with TestClient(_make_app(replace(parts, registry=CollectorRegistry(), jobs=None), "hub", "http://testserver")) as http:
        assert "wegeft_jobs{" not in http.get("/metrics").text
    engine.dispose()
