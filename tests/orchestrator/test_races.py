"""Many at once, on SQLite and on PostgreSQL: nothing is done twice, and nothing is lost."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from sqlalchemy import Connection, Engine, func, select

from infra.auth import hash_secret
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ledger.tables import EVENTS, JOBS
from tests.http_clients import patient_client
from tests.orchestrator.samples import LEASE_SECONDS, add_job, at, batch, claim, claim_one, end, hear, log, make_spec, states, view
from tests.orchestrator.serving import Site, listening, plain_spec
from wegeft.contracts.errors import IllegalTransition, StaleLease, WegeftError, WorkerLost
from wegeft.contracts.training import PublishedVersion

Answer = TypeVar("Answer")


def at_once(count: int, act: Callable[[int], Answer]) -> list[Answer | WegeftError]:
    """Do something ``count`` times at the same moment; return each answer, or how it was refused."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Answer | WegeftError:
        barrier.wait(30)
        try:
            return act(number)
        except WegeftError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_eight_claimers_never_get_the_same_job(engine: Engine) -> None:
    """120 jobs, each claimed once, in the order of the queue for each claimer."""
    with writing(engine) as connection:
        for number in range(120):
            new = ledger.NewJob(id=f"job-{number:026d}", owner="ada", token_id="a" * 12, spec=make_spec(priority=number % 3))
            ledger.add(connection, new, at(0))

    def claim_all(_: int) -> list[str]:
        got = []
        while (claimed := claim(engine, 1)) is not None:
            got.append(claimed[0].job_id)
        return got

    claimed = at_once(8, claim_all)
    taken = [job_id for got in claimed if isinstance(got, list) for job_id in got]
    assert Counter(taken) == Counter({f"job-{number:026d}": 1 for number in range(120)})
    for got in claimed:
        assert isinstance(got, list)
        assert got == sorted(got, key=lambda job_id: (-(int(job_id[4:]) % 3), job_id))


def test_two_hundred_submissions_under_one_key_are_one_job(engine: Engine) -> None:
    """All get the same answer."""

    def submit(number: int) -> tuple[str, bool]:
        new = ledger.NewJob(id=f"job-{number:026d}", owner="ada", token_id="a" * 12, spec=make_spec(), idempotency_key="key")
        with writing(engine) as connection:
            view, is_new = ledger.add(connection, new, at(0))
        return view.id, is_new

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(submit, range(200)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(JOBS)).scalar_one() == 1
        assert connection.execute(select(func.count()).select_from(EVENTS)).scalar_one() == 1


def test_many_submissions_over_http_are_one_job(engine: Engine) -> None:
    """Through real connections, sixteen at a time: one 201, and 200 for the rest."""
    site = Site(engine)
    with listening(site.app()) as url, patient_client(base_url=url, headers=site.bearer()) as http:
        with ThreadPoolExecutor(16) as pool:
            body, key = {"spec": plain_spec()}, {"Idempotency-Key": "k"}
            answers = list(pool.map(lambda _: http.post("/api/v1/jobs", json=body, headers=key), range(64)))
        assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 63}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(http.get("/api/v1/jobs").json()["jobs"]) == 1


def test_copies_of_a_batch_at_once_count_once(engine: Engine) -> None:
    """Overlapping ones too; the log's numbers have no gap."""
    job_id = add_job(engine)
    lease = claim_one(engine)

    def report(number: int) -> None:
        with writing(engine) as connection:
            ledger.contact(connection, lease, at(1), LEASE_SECONDS)
            ledger.record_events(connection, lease, batch(number % 3, *range(number % 3, 20)), at(1))

    assert at_once(9, report) == [None] * 9
    records = log(engine, job_id)
    assert sorted(record.event.step for record in records if record.event.type == "progress") == list(range(20))
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))


def test_of_many_ends_of_an_attempt_one_counts(engine: Engine) -> None:
    """A result, a failure, an expired lease and a cancel at the same moment: one of them wins, the others are refused."""
    published = PublishedVersion(adapter="a/b", version=1)
    seen: Counter[str] = Counter()
    for number in range(12):
        job_id = add_job(engine, number, number, priority=100 - number)
        lease = claim_one(engine, 100)
        hear(engine, lease, 100)

        def act(who: int, lease: ledger.Lease = lease, job_id: str = job_id) -> str:
            with writing(engine) as connection:
                match who:
                    case 0:
                        ledger.succeed(connection, lease, published, at(101))
                    case 1:
                        ledger.end_attempt(connection, lease, WorkerLost().body(), at(101))
                    case 2:
                        ledger.give_back(connection, lease, WorkerLost().body(), at(101), 10_000)
                    case _:
                        ledger.cancel(connection, job_id, at(101))
            return "done"

        answers = at_once(4, act)
        assert all(answer == "done" or isinstance(answer, StaleLease | IllegalTransition) for answer in answers)
        assert sum(answer == "done" for answer in answers[:3]) <= 1
        after = view(engine, job_id, 102)
        history = states(engine, job_id)
        assert history[-1] == after.state
        assert sum(state in ("succeeded", "failed", "cancelled") for state in history) <= 1
        assert (after.result is not None) == (after.state == "succeeded")
        seen[after.state] += 1
        with writing(engine) as connection:
            if not after.state.is_final:
                ledger.cancel(connection, job_id, at(103))
        if view(engine, job_id).state == "cancelling":
            end(engine, lease, WorkerLost(), 104)
    assert sum(seen.values()) == 12


@pytest.mark.parametrize("who_is_first", ["worker", "reaper"])
def test_a_lease_that_is_taken_while_its_worker_writes(engine: Engine, who_is_first: str) -> None:
    """Both begin before either is done: whoever holds the row first wins, and the other sees what has become of it."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    hear(engine, lease)
    holds, may_commit = threading.Event(), threading.Event()
    refused: dict[str, WegeftError | None] = {}

    def pause(name: str) -> None:
        if name == who_is_first:
            holds.set()
            may_commit.wait(30)

    def worker(connection: Connection) -> None:
        ledger.contact(connection, lease, at(1), LEASE_SECONDS)
        pause("worker")
        ledger.record_events(connection, lease, batch(0, 1), at(1))

    def reaper(connection: Connection) -> None:
        ledger.end_attempt(connection, lease, WorkerLost().body(), at(1))
        pause("reaper")

    def run(name: str, act: Callable[[Connection], None]) -> None:
        refused[name] = None
        try:
            with writing(engine) as connection:
                act(connection)
        except WegeftError as error:
            refused[name] = error

    acts = {"worker": worker, "reaper": reaper}
    first, second = (threading.Thread(target=run, args=(name, acts[name])) for name in sorted(acts, key=lambda name: name != who_is_first))
    first.start()
    assert holds.wait(30)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second waits for the row"
    may_commit.set()
    first.join(30)
    second.join(30)
    assert refused[who_is_first] is None
    assert isinstance(refused["worker"], StaleLease) == (who_is_first == "reaper")
    assert view(engine, job_id).state == "queued"
    assert sum(record.event.type == "progress" for record in log(engine, job_id)) == (who_is_first == "worker")


def test_a_cancel_at_the_moment_of_a_claim(engine: Engine) -> None:
    """The job is cancelled before it starts, or is cancelling after: never lost between the two."""
    for number in range(10):
        job_id = add_job(engine, number, number, priority=100 - number)

        def act(who: int, job_id: str = job_id) -> object:
            with writing(engine) as connection:
                if who:
                    return ledger.cancel(connection, job_id, at(50)).state
                return ledger.claim(connection, hash_secret("x"), at(50), LEASE_SECONDS)

        claimed, cancelled = at_once(2, act)
        if isinstance(claimed, ledger.Claimed):
            assert (cancelled, view(engine, job_id).state) == ("cancelling", "cancelling")
            end(engine, claimed.lease, WorkerLost(), 51)
        else:
            assert (claimed, cancelled) == (None, "cancelled")
        assert view(engine, job_id).state == "cancelled"
