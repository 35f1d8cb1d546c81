"""A job's log and its metrics: what its workers report, once each, in an order that readers can follow."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Text, cast, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.ledger.tables import EVENTS, JOBS, METRICS
from wegeft.contracts.errors import JobNotFound
from wegeft.contracts.training import (
    Evaluation,
    EventPage,
    EventRecord,
    JobEvent,
    JobState,
    Message,
    MetricPage,
    MetricPoint,
    Progress,
    StateChanged,
    WorkerEvent,
)

PAGE_BYTES = 4 << 20
"""Of events as they are stored, about as many as are sent; a page ends before it has more, but holds one event at least."""

_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)
_Numbered = tuple[int | None, Message | StateChanged | WorkerEvent]


def note_state(connection: Connection, job_id: str, attempt: int, state: JobState, now: datetime, text: str = "") -> None:
    """Write into the job's log that it moved."""
    append(connection, job_id, attempt, [(None, StateChanged(state=state, text=text))], now)


def append(connection: Connection, job_id: str, attempt: int, events: list[_Numbered], now: datetime) -> None:
    """Add events to the job's log under the next numbers; holds the job's row until the transaction ends."""
    grown = update(JOBS).where(JOBS.c.id == job_id).values(last_sequence=JOBS.c.last_sequence + len(events))
    last: int = connection.execute(grown.returning(JOBS.c.last_sequence)).scalar_one()
    first = last - len(events) + 1
    rows = [
        {"job_id": job_id, "sequence": sequence, "attempt": attempt, "number": number, "at": now, "event": event.model_dump(mode="json")}
        for sequence, (number, event) in enumerate(events, first)
    ]
    connection.execute(insert(EVENTS), rows)


def record(
    connection: Connection, job_id: str, attempt: int, events: Iterable[tuple[int, WorkerEvent]], now: datetime
) -> list[WorkerEvent]:
    """Add a worker's numbered events, leaving out those that the log has already; return those that were new.

    The caller holds the job's row, so that two copies of a batch wait for each other.
    """
    numbered = dict(events)
    if not numbered:
        return []
    known = set(
        connection.execute(
            select(EVENTS.c.number).where(
                EVENTS.c.job_id == job_id, EVENTS.c.attempt == attempt, EVENTS.c.number.between(min(numbered), max(numbered))
            )
        ).scalars()
    )
    new: list[_Numbered] = [(number, event) for number, event in sorted(numbered.items()) if number not in known]
    if not new:
        return []
    append(connection, job_id, attempt, new, now)
    fresh = [numbered[number] for number in sorted(numbered) if number not in known]
    _keep_metrics(connection, job_id, attempt, fresh)
    return fresh


def _keep_metrics(connection: Connection, job_id: str, attempt: int, events: Iterable[WorkerEvent]) -> None:
    values = {(name, step): value for event in events for name, step, value in _metrics_of(event)}
    if not values:
        return
    rows = [{"job_id": job_id, "name": name, "step": step, "value": value, "attempt": attempt} for (name, step), value in values.items()]
    table: Any = postgresql.insert(METRICS) if connection.dialect.name == "postgresql" else sqlite.insert(METRICS)
    # A step that is made again, after a resume, replaces what the lost attempt had measured.
    key = [METRICS.c.job_id, METRICS.c.name, METRICS.c.step]
    connection.execute(
        table.on_conflict_do_update(index_elements=key, set_={"value": table.excluded.value, "attempt": table.excluded.attempt}), rows
    )


def _metrics_of(event: WorkerEvent) -> Iterable[tuple[str, int, float]]:
    match event:
        case Progress():
            for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
                yield name, event.step, getattr(event, name)
        case Evaluation():
            yield "eval_loss", event.step, event.loss
            if event.exact_match is not None:
                yield "exact_match", event.step, event.exact_match
            for name, value in event.metrics.items():
                yield name, event.step, value
        case _:
            return


def read_events(connection: Connection, job_id: str, after: int, limit: int) -> EventPage:
    """Return up to ``limit`` events behind number ``after``, fewer where they are long, and the job's state; raise :class:`JobNotFound`."""
    state = connection.execute(select(JOBS.c.state).where(JOBS.c.id == job_id)).scalar_one_or_none()
    if state is None:
        raise JobNotFound(path="job", value=job_id)
    last = _last_of_page(connection, job_id, after, limit)
    is_on_page = (EVENTS.c.job_id == job_id) & (EVENTS.c.sequence > after) & (EVENTS.c.sequence <= last)
    query = select(EVENTS).where(is_on_page).order_by(EVENTS.c.sequence)
    records = tuple(
        EventRecord(sequence=row.sequence, attempt=row.attempt, at=row.at, event=_EVENT.validate_python(row.event))
        for row in connection.execute(query)
    )
    return EventPage(records=records, state=JobState(state))


def read_tail(connection: Connection, job_id: str, count: int) -> EventPage:
    """Return the last ``count`` events, fewer from their first on where they are long; raises as :func:`read_events` does."""
    last = connection.execute(select(JOBS.c.last_sequence).where(JOBS.c.id == job_id)).scalar_one_or_none()
    return read_events(connection, job_id, max((last or 0) - count, 0), count)


def _last_of_page(connection: Connection, job_id: str, after: int, limit: int) -> int:
    """Return the number that a page behind ``after`` ends with; the events themselves are not read for it."""
    size = func.length(cast(EVENTS.c.event, Text))
    query = select(EVENTS.c.sequence, size).where(EVENTS.c.job_id == job_id, EVENTS.c.sequence > after)
    last, total = after, 0
    for sequence, event_bytes in connection.execute(query.order_by(EVENTS.c.sequence).limit(limit)):
        total += event_bytes
        if total > PAGE_BYTES and last != after:
            break
        last = sequence
    return last


def read_metric(connection: Connection, job_id: str, name: str, after: int, limit: int) -> MetricPage:
    """Return up to ``limit`` values of a metric behind step ``after``, one a step, by step; raise :class:`JobNotFound`."""
    if connection.execute(select(JOBS.c.id).where(JOBS.c.id == job_id)).first() is None:
        raise JobNotFound(path="job", value=job_id)
    query = select(METRICS.c.step, METRICS.c.value).where(METRICS.c.job_id == job_id, METRICS.c.name == name, METRICS.c.step > after)
    rows = connection.execute(query.order_by(METRICS.c.step).limit(limit))
    return MetricPage(name=name, points=tuple(MetricPoint(step=row.step, value=row.value) for row in rows))
