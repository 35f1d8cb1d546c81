"""The ledger against a model of it: whatever happens in whatever order, the promises hold."""

import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import Connection

from infra.database import reading, writing
from orchestrator import ledger
from tests.orchestrator.samples import LEASE_SECONDS, add_job, at, batch, claim, new_sqlite, view
from wegeft.contracts.errors import IllegalTransition, InvalidData, LossNotFinite, StaleLease, TrainingCrashed, WegeftError, WorkerLost
from wegeft.contracts.training import JobState, PublishedVersion, StateChanged

ERRORS: list[WegeftError] = [WorkerLost(), TrainingCrashed(), InvalidData(), LossNotFinite()]
LIVE = {"starting", "running", "cancelling"}


@dataclass
class Expected:
    """What the model knows of a job."""

    state: str = "queued"
    attempt: int = 0
    steps: set[tuple[int, int]] = field(default_factory=set)
    """(attempt, number) of every event recorded."""


class LedgerMachine(RuleBasedStateMachine):
    """Jobs are added, claimed, heard, ended and cancelled by schedulers and workers, current and stale ones."""

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.engine = new_sqlite(self.folder / "ledger.db")
        self.now = 0.0
        self.entropy = itertools.count()
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.dispose()
            shutil.rmtree(self.folder)

    def is_current(self, lease: ledger.Lease) -> bool:
        job = self.expected[lease.job_id]
        return job.state in LIVE and job.attempt == lease.attempt

    def check(self, lease: ledger.Lease, refused: WegeftError | None) -> bool:
        """A write must have been refused if and only if its lease was stale; return whether it was accepted."""
        assert isinstance(refused, StaleLease) != self.is_current(lease)
        return refused is None

    @rule(target=jobs, priority=st.integers(0, 3), restarts=st.integers(0, 2), preemptions=st.integers(-1, 2))
    def add(self, priority: int, restarts: int, preemptions: int) -> str:
        recovery = {"max_restarts_on_errors": restarts, "max_preemptions": preemptions}
        job_id = add_job(self.engine, self.now, next(self.entropy), priority=priority, job_recovery=recovery)
        self.expected[job_id] = Expected()
        return job_id

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=leases)
    def claim(self) -> ledger.Lease:
        claimed = claim(self.engine, self.now)
        if claimed is None:
            # Hypothesis wants a value; a lease that nobody ever had is as stale as can be.
            self.expected.setdefault("job-none", Expected(state="absent"))
            return ledger.Lease(job_id="job-none", attempt=1, token=1)
        lease = claimed[0]
        job = self.expected[lease.job_id]
        assert job.state == "queued"
        assert lease.attempt == job.attempt + 1
        job.state, job.attempt = "starting", lease.attempt
        return lease

    @rule(lease=leases, step=st.integers(0, 5))
    def hear(self, lease: ledger.Lease, step: int) -> None:
        refused = self.write(lambda connection: ledger.contact(connection, lease, at(self.now), LEASE_SECONDS, step))
        if self.check(lease, refused) and self.expected[lease.job_id].state == "starting":
            self.expected[lease.job_id].state = "running"

    @rule(lease=leases, first=st.integers(0, 4), count=st.integers(0, 4))
    def report(self, lease: ledger.Lease, first: int, count: int) -> None:
        def report(connection: Connection) -> None:
            ledger.contact(connection, lease, at(self.now), LEASE_SECONDS)
            ledger.record_events(connection, lease, batch(first, *range(first, first + count)), at(self.now))

        if self.check(lease, self.write(report)):
            job = self.expected[lease.job_id]
            job.state = "running" if job.state == "starting" else job.state
            job.steps |= {(lease.attempt, number) for number in range(first, first + count)}

    @rule(lease=leases, error=st.sampled_from(ERRORS))
    def end(self, lease: ledger.Lease, error: WegeftError) -> None:
        refused = self.write(lambda connection: ledger.end_attempt(connection, lease, error.body(), at(self.now)))
        if self.check(lease, refused):
            job = self.expected[lease.job_id]
            after = view(self.engine, lease.job_id, self.now).state
            allowed = {"cancelled"} if job.state == "cancelling" else {"queued", "failed"} if error.is_retryable else {"failed"}
            assert after in allowed
            job.state = after

    @rule(lease=leases)
    def give_back(self, lease: ledger.Lease) -> None:
        refused = self.write(lambda connection: ledger.give_back(connection, lease, WorkerLost().body(), at(self.now), 1))
        if self.check(lease, refused):
            job = self.expected[lease.job_id]
            job.state = "cancelled" if job.state == "cancelling" else "queued"

    @rule(lease=leases)
    def succeed(self, lease: ledger.Lease) -> None:
        def succeed(connection: Connection) -> None:
            ledger.contact(connection, lease, at(self.now), LEASE_SECONDS)
            ledger.succeed(connection, lease, PublishedVersion(adapter="a/b", version=lease.attempt), at(self.now))

        was_cancelling = self.expected[lease.job_id].state == "cancelling"
        refused = self.write(succeed)
        if self.is_current(lease) and was_cancelling:
            assert isinstance(refused, IllegalTransition)
        elif self.check(lease, refused):
            self.expected[lease.job_id].state = "succeeded"

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.expected[job_id]
        refused = self.write(lambda connection: ledger.cancel(connection, job_id, at(self.now)))
        assert isinstance(refused, IllegalTransition) == (job.state in ("succeeded", "failed"))
        if refused is None:
            job.state = {"queued": "cancelled", "starting": "cancelling", "running": "cancelling"}.get(job.state, job.state)

    @rule(lease=consumes(leases))
    def forget(self, lease: ledger.Lease) -> None:
        """A worker is gone without a word."""

    def write(self, act: Callable[[Connection], object]) -> WegeftError | None:
        """Do something in a transaction; return how it was refused."""
        try:
            with writing(self.engine) as connection:
                act(connection)
        except WegeftError as error:
            return error
        return None

    @invariant()
    def the_ledger_agrees(self) -> None:
        if not hasattr(self, "engine"):
            return
        there = {job_id: job for job_id, job in self.expected.items() if job.state != "absent"}
        with reading(self.engine) as connection:
            found = {name: ledger.find(connection, name, at(self.now)) for name in there}
            logs = {name: ledger.read_events(connection, name, 0, 100_000).records for name in there}
        for job_id, job in there.items():
            seen, records = found[job_id], logs[job_id]
            assert (seen.state, seen.attempt) == (job.state, job.attempt)
            assert (seen.finished_at is not None) == seen.state.is_final
            assert (seen.result is not None) == (seen.state is JobState.SUCCEEDED)
            assert (seen.error is not None) == (seen.state is JobState.FAILED)
            assert [record.event.state for record in records if isinstance(record.event, StateChanged)][-1] == job.state
            assert [record.sequence for record in records] == list(range(1, len(records) + 1))
            assert sum(record.event.type == "progress" for record in records) == len(job.steps)

    @invariant()
    def live_attempts_are_the_current_ones(self) -> None:
        if not hasattr(self, "engine"):
            return
        with reading(self.engine) as connection:
            live = [(attempt.job_id, attempt.attempt) for attempt in ledger.list_live(connection)]
        assert sorted(live) == sorted((job_id, job.attempt) for job_id, job in self.expected.items() if job.state in LIVE)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
