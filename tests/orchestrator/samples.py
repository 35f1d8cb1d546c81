"""Values that the orchestrator's tests begin from."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from hub import catalog
from infra.auth import hash_secret, make_attempt_token
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ids import make_job_id
from tests.databases import open_database
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import WegeftError
from wegeft.contracts.job import JobSpec, parse_spec
from wegeft.contracts.training import Checkpoint, EventBatch, EventRecord, JobView, Progress, StateChanged

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DATASET = b'{"prompt": "1+1", "completion": "2"}\n'
LEASE_SECONDS = 15.0


def new_sqlite(path: Path) -> Engine:
    """A new SQLite database with our tables."""
    return open_database(f"sqlite:///{path}")


def at(seconds: float) -> datetime:
    """The moment so many seconds after the tests' beginning of time."""
    return NOW + timedelta(seconds=seconds)


def make_spec(**fields: Any) -> JobSpec:
    """A job that is right, but for what ``fields`` say."""
    plain = {
        "name": "sums",
        "base_model": "org/model",
        "rank": 2,
        "datasets": [{"path": digest_of(DATASET), "file_format": "jsonl", "type": "prompt_completion"}],
    }
    return parse_spec({**plain, **fields})


def add_job(engine: Engine, seconds: float = 0, entropy: int = 0, key: str | None = None, **fields: Any) -> str:
    """Queue a job; return its id."""
    job_id = make_job_id(at(seconds), entropy.to_bytes(10))
    new = ledger.NewJob(id=job_id, owner="ada", token_id="a" * 12, spec=make_spec(**fields), idempotency_key=key)
    with writing(engine) as connection:
        view, _ = ledger.add(connection, new, at(seconds))
    return view.id


def claim(engine: Engine, seconds: float = 0) -> tuple[ledger.Lease, str] | None:
    """Claim the next job; return its lease and its attempt's token."""
    token = make_attempt_token()
    with writing(engine) as connection:
        claimed = ledger.claim(connection, hash_secret(token), at(seconds), LEASE_SECONDS)
    return (claimed.lease, token) if claimed else None


def claim_one(engine: Engine, seconds: float = 0) -> ledger.Lease:
    """Claim the job that must be there."""
    claimed = claim(engine, seconds)
    assert claimed is not None
    return claimed[0]


def hear(engine: Engine, lease: ledger.Lease, seconds: float = 0, step: int | None = None) -> None:
    """Let the worker be heard."""
    with writing(engine) as connection:
        ledger.contact(connection, lease, at(seconds), LEASE_SECONDS, step)


def end(engine: Engine, lease: ledger.Lease, error: WegeftError, seconds: float = 0) -> None:
    """End the attempt with an error."""
    with writing(engine) as connection:
        ledger.end_attempt(connection, lease, error.body(), at(seconds))


def save(engine: Engine, lease: ledger.Lease, checkpoint: Checkpoint, seconds: float = 0) -> None:
    """Deliver a checkpoint's files, as far as the ledger knows, and let the next attempt go on from it."""
    with writing(engine) as connection:
        for entry in checkpoint.files:
            catalog.expect(connection, entry.digest, at(seconds + 86_400))
            assert catalog.arrive(connection, entry.digest, entry.size, ledger.delivery_of(lease.job_id), at(seconds + 86_400))
        ledger.save_checkpoint(connection, lease, checkpoint, at(seconds))


def view(engine: Engine, job_id: str, seconds: float = 0) -> JobView:
    """The job as people see it."""
    with reading(engine) as connection:
        return ledger.find(connection, job_id, at(seconds))


def log(engine: Engine, job_id: str) -> tuple[EventRecord, ...]:
    """The job's whole log."""
    with reading(engine) as connection:
        return ledger.read_events(connection, job_id, 0, 100_000).records


def states(engine: Engine, job_id: str) -> list[str]:
    """The states that the job's log tells of, in order."""
    return [record.event.state.value for record in log(engine, job_id) if isinstance(record.event, StateChanged)]


def progress(step: int, loss: float = 1.0) -> Progress:
    """A step that went well."""
    return Progress(step=step, total_steps=100, epoch=step / 10, loss=loss, learning_rate=1e-3, gradient_norm=0.5, tokens_per_second=100.0)


def batch(first: int, *steps: int) -> EventBatch:
    """Progress events, numbered from ``first``."""
    return EventBatch(first_number=first, events=tuple(progress(step) for step in steps))
