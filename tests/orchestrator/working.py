"""A worker's side of the attempts API, as tests play it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from hub import catalog
from infra.auth import hash_secret, make_attempt_token
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ids import make_job_id
from orchestrator.ledger.tables import ATTEMPTS, EVENTS, JOB_BLOBS, JOB_LABELS, JOBS, METRICS
from tests.orchestrator.samples import DATASET, batch, make_spec
from tests.orchestrator.serving import Site, adapter_files, now, result_of
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import InvalidData, WorkerLost
from wegeft.contracts.training import Checkpoint, Heartbeat


@dataclass
class Worker:
    """One attempt, and the HTTP client that it would use."""

    http: Any
    lease: ledger.Lease
    token: str

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Make a request as this attempt."""
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return self.http.request(method, f"/api/v1/attempts/{self.lease.job_id}/{self.lease.attempt}/{path}", headers=headers, **options)

    def post(self, path: str, body: Any) -> Any:
        """Post a contract."""
        return self.call("POST", path, json=body.model_dump(mode="json"))

    def put(self, content: bytes) -> Any:
        """Store bytes."""
        return self.call("PUT", f"blobs/{digest_of(content)}", content=content)

    def deliver(self, files: dict[str, bytes], **metrics: float) -> Any:
        """Upload files and report them as the result."""
        for content in files.values():
            assert self.put(content).status_code in (200, 201)
        return self.post("result", result_of(files, **metrics))


_numbers = iter(range(10**9))


def queue(site: Site, **fields: Any) -> str:
    """Queue a job; return its id."""
    job_id = make_job_id(now(), next(_numbers).to_bytes(10))
    new = ledger.NewJob(id=job_id, owner="ada", token_id="a" * 12, spec=make_spec(**fields))
    with writing(site.engine) as connection:
        ledger.add(connection, new, now())
    return job_id


def claim(site: Site, http: Any) -> Worker:
    """Claim the next job as a scheduler does, and give its worker."""
    token = make_attempt_token()
    with writing(site.engine) as connection:
        claimed = ledger.claim(connection, hash_secret(token), now(), site.limits.lease_seconds)
    assert claimed is not None
    return Worker(http=http, lease=claimed.lease, token=token)


def take_over(site: Site, http: Any, stale: Worker) -> Worker:
    """Give the job of a worker that was not heard to another."""
    with writing(site.engine) as connection:
        ledger.give_back(connection, stale.lease, WorkerLost().body(), now(), 0)
    return claim(site, http)


def state(site: Site, job_id: str) -> str:
    """The job's state."""
    with reading(site.engine) as connection:
        return ledger.find(connection, job_id, now()).state


def snapshot(site: Site) -> list[Any]:
    """Every row of the ledger and the catalog."""
    tables = [JOBS, JOB_LABELS, JOB_BLOBS, ATTEMPTS, EVENTS, METRICS, catalog.VERSIONS, catalog.ALIASES]
    with reading(site.engine) as connection:
        return [connection.execute(select(table).order_by(*table.primary_key)).all() for table in tables]


def every_write(worker: Worker) -> dict[str, Callable[[], Any]]:
    """Everything that a worker may ask for, as it would."""
    files = adapter_files(seed=7)
    entries = result_of(files).files
    return {
        "task": lambda: worker.call("GET", "task"),
        "heartbeat": lambda: worker.post("heartbeat", Heartbeat(step=99)),
        "events": lambda: worker.post("events", batch(50, 98, 99)),
        "has": lambda: worker.call("HEAD", f"blobs/{digest_of(DATASET)}"),
        "put": lambda: worker.put(b"of a stale worker"),
        "get": lambda: worker.call("GET", f"blobs/{digest_of(DATASET)}"),
        "checkpoint": lambda: worker.post("checkpoints", Checkpoint(step=99, files=entries)),
        "result": lambda: worker.post("result", result_of(files)),
        "failure": lambda: worker.post("failure", InvalidData("stale").body()),
    }
