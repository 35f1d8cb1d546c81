"""A job's log in the ledger, on SQLite and on PostgreSQL: counted once, in bounded pages."""

from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ledger.log import PAGE_BYTES
from tests.orchestrator.samples import (
    add_job,
    at,
    batch,
    claim_one,
    end,
    hear,
    log,
    progress,
    view,
)
from wegeft.contracts.errors import (
    WorkerLost,
)
from wegeft.contracts.training import Evaluation, EventBatch, Message, Progress, Sample


def test_a_batch_of_events_counts_once(engine: Engine) -> None:
    """A batch that is sent again, in whole or in part, adds what is new and no more, in order."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    hear(engine, lease)
    for first, steps in ((0, (1, 2, 3)), (0, (1, 2, 3)), (2, (3, 4)), (0, (1, 2, 3, 4, 5)), (5, ())):
        with writing(engine) as connection:
            ledger.record_events(connection, lease, batch(first, *steps), at(1))
    records = [record for record in log(engine, job_id) if isinstance(record.event, Progress)]
    assert [record.event.step for record in records if isinstance(record.event, Progress)] == [1, 2, 3, 4, 5]
    assert [record.sequence for record in log(engine, job_id)] == list(range(1, len(log(engine, job_id)) + 1))
    assert (view(engine, job_id).step, view(engine, job_id).total_steps) == (5, 100)


def test_a_second_attempt_counts_its_events_anew(engine: Engine) -> None:
    """Numbers are of an attempt; the log goes on, and a metric keeps one value a step: the last attempt's."""
    job_id = add_job(engine)
    first = claim_one(engine)
    with writing(engine) as connection:
        ledger.record_events(connection, first, batch(0, 1, 2), at(1))
    end(engine, first, WorkerLost(), 2)
    second = claim_one(engine, 10)
    redone = EventBatch(first_number=0, events=(progress(2, 0.25), Evaluation(step=2, total_steps=100, loss=0.5, rows=9, exact_match=0.1)))
    with writing(engine) as connection:
        ledger.record_events(connection, second, redone, at(11))
    with reading(engine) as connection:
        loss = ledger.read_metric(connection, job_id, "loss", -1, 10)
        assert [(point.step, point.value) for point in loss.points] == [(1, 1.0), (2, 0.25)]
        assert [point.value for point in ledger.read_metric(connection, job_id, "exact_match", -1, 10).points] == [0.1]
        assert ledger.read_metric(connection, job_id, "loss", 1, 1).points == loss.points[1:]
    assert [record.attempt for record in log(engine, job_id)] == [0, 1, 1, 1, 1, 2, 2, 2]


def test_a_log_is_read_in_pages(engine: Engine) -> None:
    """From a number on, up to a limit, with the state at that moment; nothing twice, nothing left out."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    with writing(engine) as connection:
        ledger.record_events(connection, lease, batch(0, *range(1, 24)), at(1))
    seen: list[int] = []
    while True:
        with reading(engine) as connection:
            page = ledger.read_events(connection, job_id, seen[-1] if seen else 0, 10)
        if not page.records:
            break
        seen += [record.sequence for record in page.records]
    assert seen == list(range(1, 26))
    assert page.state == "starting"


def test_text_that_databases_dislike_is_kept(engine: Engine) -> None:
    """A log may quote anything: NUL, emoji, quotes, line ends."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    text = "a\0b 🦊 ' \" \\ \r\n %s :x \u2028"
    with writing(engine) as connection:
        ledger.record_events(connection, lease, EventBatch(first_number=0, events=(Message(text=text),)), at(1))
    assert log(engine, job_id)[-1].event == Message(text=text)
    end(engine, lease, WorkerLost(text), 2)
    assert (view(engine, job_id, 2).waiting_for or "").startswith("worker_lost: a b 🦊")


def test_a_page_of_the_log_is_bounded_in_bytes(engine: Engine) -> None:
    """It ends before it has too many, holds one event at least, and the pages together are the whole log."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    # Sixty thousand stored bytes each, as JSON escapes what is not ASCII.
    for number in range(0, 100, 50):
        texts = tuple(Message(text="ä" * 10_000) for _ in range(50))
        with writing(engine) as connection:
            ledger.record_events(connection, lease, EventBatch(first_number=number, events=texts), at(1))
    seen: list[int] = []
    pages = 0
    with reading(engine) as connection:
        while records := ledger.read_events(connection, job_id, seen[-1] if seen else 0, 1000).records:
            assert len("".join(record.model_dump_json() for record in records)) < PAGE_BYTES
            seen += [record.sequence for record in records]
            pages += 1
    assert (seen, pages) == ([*range(1, 103)], 2)


def test_an_event_longer_than_a_page_is_a_page(engine: Engine) -> None:
    """So that no reader stands still before it."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    text = "ä" * 16_384
    sample = Sample(prompt=text, expected=text, answer=text)
    long = Evaluation(step=1, total_steps=9, loss=0.5, rows=16, samples=(sample,) * 16)
    with writing(engine) as connection:
        ledger.record_events(connection, lease, EventBatch(first_number=0, events=(long, long)), at(1))
    with reading(engine) as connection:
        pages = [ledger.read_events(connection, job_id, after, 10).records for after in (0, 2, 3, 4)]
    assert [[record.sequence for record in page] for page in pages] == [[1, 2], [3], [4], []]
