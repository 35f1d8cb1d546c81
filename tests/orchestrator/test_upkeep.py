"""What a job needs stays as long as it needs it, and goes after; on SQLite and on PostgreSQL."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine

from hub import catalog
from hub.collection import Collector
from hub.intake import Intake
from hub.objects import MemoryStore
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.metrics import CollectionTally
from orchestrator.upkeep import Upkeep, UpkeepTimes
from tests.orchestrator.samples import DATASET, NOW, add_job, at, claim_one, end, hear, make_spec
from wegeft.contracts.adapter import FileEntry, digest_of
from wegeft.contracts.errors import InvalidData, InvalidRequest, StorageUnavailable, WorkerLost
from wegeft.contracts.training import Checkpoint

KEEP_SECONDS, SUPERSEDED_SECONDS = 86_400.0, 600.0
TIMES = UpkeepTimes(interval_seconds=600, keep_seconds=KEEP_SECONDS)


class Bench:
    """The parts, and what workers and users do to them."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.store = engine, MemoryStore()
        self.registry = CollectorRegistry()
        collector = Collector(engine=engine, store=self.store)
        self.upkeep = Upkeep(engine, collector, TIMES, CollectionTally(self.registry).count)

    def send(self, content: bytes, holder: str, seconds: float = 0) -> str:
        intake = Intake(engine=self.engine, store=self.store, clock=lambda: at(seconds), keep_seconds=KEEP_SECONDS)
        size = intake.store_bytes(digest_of(content), io.BytesIO(content))
        with writing(self.engine) as connection:
            assert intake.own(connection, digest_of(content), size, holder)
        return digest_of(content)

    def submit(self) -> str:
        self.send(DATASET, "upload:ada")
        job_id = add_job(self.engine)
        with writing(self.engine) as connection:
            assert not ledger.hold_data(connection, job_id, make_spec())
        return job_id

    def checkpoint(self, lease: ledger.Lease, step: int, content: bytes, seconds: float) -> None:
        digest = self.send(content, ledger.delivery_of(lease.job_id), seconds)
        files = (FileEntry(path="state", digest=digest, size=len(content)),)
        with writing(self.engine) as connection:
            ledger.save_checkpoint(connection, lease, Checkpoint(step=step, files=files), at(seconds))

    def stored(self, seconds: float, *contents: bytes) -> list[bool]:
        """Which of these are left after the upkeep of a moment."""
        self.upkeep.tick(at(seconds))
        return [self.store.has(digest_of(content)) is not None for content in contents]


@pytest.fixture
def bench(engine: Engine) -> Bench:
    return Bench(engine)


def test_a_superseded_checkpoint_goes_soon_and_the_current_one_stays(bench: Bench, engine: Engine) -> None:
    """However long the job runs, with its data."""
    bench.submit()
    lease = claim_one(engine)
    bench.checkpoint(lease, 1, b"first", 10)
    assert bench.stored(100_000, b"first") == [True]
    bench.checkpoint(lease, 2, b"second", 100_000)
    assert bench.stored(100_000 + SUPERSEDED_SECONDS - 1, b"first", b"second") == [True, True]
    assert bench.stored(100_000 + 2 * SUPERSEDED_SECONDS, b"first", b"second", DATASET) == [False, True, True]
    end(engine, lease, WorkerLost(), 200_000)
    assert bench.stored(10_000_000, b"second", DATASET) == [True, True]


def test_a_job_that_ended_keeps_its_data_for_a_while(bench: Bench, engine: Engine) -> None:
    """So that its author may look into it and submit it again; then all of it goes."""
    bench.submit()
    lease = claim_one(engine)
    bench.checkpoint(lease, 1, b"state", 10)
    hear(engine, lease, 20)
    end(engine, lease, InvalidData(), 200_000)
    assert bench.stored(200_000 + KEEP_SECONDS - 1, b"state", DATASET) == [True, True]
    assert bench.stored(200_000 + KEEP_SECONDS + 600, b"state", DATASET) == [False, False]


def test_data_that_two_jobs_name_stays_for_the_second(bench: Bench, engine: Engine) -> None:
    first = bench.submit()
    second = add_job(engine, 1, 1)
    with writing(engine) as connection:
        ledger.hold_data(connection, second, make_spec())
        ledger.cancel(connection, first, at(5))
    assert bench.stored(10 * KEEP_SECONDS, DATASET) == [True]
    with writing(engine) as connection:
        ledger.cancel(connection, second, at(10 * KEEP_SECONDS))
    assert bench.stored(12 * KEEP_SECONDS, DATASET) == [False]


def test_a_checkpoint_whose_bytes_are_gone_is_refused(bench: Bench, engine: Engine) -> None:
    """It would be one that no attempt can go on from; the one before stays."""
    bench.submit()
    lease = claim_one(engine)
    bench.checkpoint(lease, 1, b"first", 10)
    digest = bench.send(b"slow", ledger.delivery_of(lease.job_id), 10)
    assert bench.stored(10 + KEEP_SECONDS, b"slow") == [False]
    second = Checkpoint(step=2, files=(FileEntry(path="state", digest=digest, size=4),))
    with writing(engine) as connection, pytest.raises(InvalidRequest, match="not kept any more"):
        ledger.save_checkpoint(connection, lease, second, at(20 + KEEP_SECONDS))
    assert bench.stored(10 * KEEP_SECONDS, b"first") == [True]


def test_upkeep_is_done_at_its_intervals_a_little_at_a_time(bench: Bench) -> None:
    """Many blobs take several ticks, and count once."""
    for number in range(50):
        bench.send(bytes([number]), "upload:ada", -2 * KEEP_SECONDS)
    left = [sum(bench.stored(tick, *(bytes([number]) for number in range(50)))) for tick in range(4)]
    assert left == [30, 10, 0, 0]
    bench.send(b"late", "upload:ada", -2 * KEEP_SECONDS)
    assert bench.stored(500, b"late") == [True]
    assert bench.stored(700, b"late") == [False]
    told = generate_latest(bench.registry).decode()
    assert "wegeft_collected_blobs_total 51.0" in told
    assert "wegeft_collected_bytes_total 54.0" in told


def test_an_outage_is_waited_for(engine: Engine) -> None:
    """The tick goes on; the next interval tries again."""

    class Away(MemoryStore):
        is_away = True

        def has(self, digest: str) -> int | None:
            if self.is_away:
                raise StorageUnavailable
            return super().has(digest)

    bench = Bench(engine)
    store = bench.store = Away()
    bench.upkeep = Upkeep(engine, Collector(engine=engine, store=store), TIMES, lambda collected: None)
    bench.send(b"x", "upload:ada", -2 * KEEP_SECONDS)
    bench.upkeep.tick(NOW)
    store.is_away = False
    bench.upkeep.tick(NOW + timedelta(seconds=599))
    assert store.has(digest_of(b"x")) == 1
    bench.upkeep.tick(NOW + timedelta(seconds=600))
    assert store.has(digest_of(b"x")) is None
    with reading(engine) as connection:
        assert catalog.take_stock(connection, NOW).blobs == 0
