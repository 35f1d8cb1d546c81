"""Jobs, over HTTP: the part of the client that submits, follows, cancels and waits for them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from time import monotonic
from urllib.parse import quote

from pydantic import BaseModel

from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.errors import JobPending, UnexpectedAnswer
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import EventPage, EventRecord, JobPage, JobState, JobView, MetricPage, MetricPoint

POLL_SECONDS = 20
"""How long one question for new events stays open."""
FOLLOW_PATIENCE_SECONDS = 60.0
"""How long a reader of a log waits for a service that is gone, a restart for example."""

_JSON = {"Content-Type": "application/json"}
_BEYOND_EVERY_EVENT = 2**31 - 1


class _Submission(BaseModel):
    spec: JobSpec


class JobCalls:
    """What :class:`wegeft.client.Client` can ask about jobs."""

    _transport: Transport
    _timeout_seconds: float

    def submit(self, spec: JobSpec, *, idempotency_key: str | None = None) -> JobView:
        """Queue a job and return it; the same key with the same spec returns the same job, however often.

        Raises :class:`InvalidJob` with every problem that the server sees, a data set that was not uploaded among them.
        """
        headers = {**_JSON, "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._transport.ask(Call(method="POST", path="/jobs", headers=headers, content=json_body(_Submission(spec=spec))), JobView)

    def job(self, job_id: str) -> JobView:
        """Return a job; raise :class:`JobNotFound`."""
        return self._transport.ask(Call(method="GET", path=_job_path(job_id)), JobView)

    def jobs(self, *, state: JobState | None = None, label: str | None = None, limit: int = 50, after: str | None = None) -> JobPage:
        """Return jobs, newest first; ``label`` is ``key=value``."""
        wanted = {"state": state, "label": label, "limit": limit, "after": after}
        given = {key: value for key, value in wanted.items() if value is not None}
        return self._transport.ask(Call(method="GET", path="/jobs", params=given), JobPage)

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop and return it; harmless where it was cancelled already.

        Raises :class:`IllegalTransition` where it has succeeded or failed.
        """
        return self._transport.ask(Call(method="POST", path=f"{_job_path(job_id)}/cancel"), JobView)

    def events(self, job_id: str, *, after: int = 0, wait_seconds: int = 0, limit: int = 500) -> EventPage:
        """Return the events of a job's log behind number ``after``; wait for one so long where there is none yet."""
        return self._events(job_id, {"after": after, "limit": limit, "wait_seconds": wait_seconds}, None)

    def _events(self, job_id: str, params: Mapping[str, int], patience_seconds: float | None) -> EventPage:
        call = Call(
            method="GET",
            path=f"{_job_path(job_id)}/events",
            params=params,
            read_seconds=params["wait_seconds"] + self._timeout_seconds,
        )
        return self._transport.ask(call, EventPage, patience_seconds=patience_seconds)

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[EventRecord]:
        """Yield the events of a job's log as they come, until the job has ended; go on after a lost connection."""
        patience = max(FOLLOW_PATIENCE_SECONDS, self._transport.patience_seconds)
        while True:
            page = self._events(job_id, {"after": after, "limit": 500, "wait_seconds": POLL_SECONDS}, patience)
            for record in page.records:
                if record.sequence <= after:
                    raise UnexpectedAnswer("the log's numbers do not grow", path=job_id, value=record.sequence)
                after = record.sequence
                yield record
            if page.state.is_final and not page.records:
                return

    def metric(self, job_id: str, name: str) -> tuple[MetricPoint, ...]:
        """Return every value of a metric (``loss``, ``eval_loss``, ``learning_rate``, …) by step, one a step whatever was redone."""
        found: list[MetricPoint] = []
        while True:
            after = found[-1].step if found else -1
            call = Call(method="GET", path=f"{_job_path(job_id)}/metrics/{quote(name, safe='')}", params={"after": after, "limit": 10_000})
            page = self._transport.ask(call, MetricPage)
            if not page.points or page.points[-1].step <= after:
                return tuple(found)
            found += page.points

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> JobView:
        """Return the job once it has ended; raise :class:`JobPending` where it has not within ``timeout_seconds``."""
        patience = max(FOLLOW_PATIENCE_SECONDS, self._transport.patience_seconds)
        end = None if timeout_seconds is None else monotonic() + timeout_seconds
        while True:
            left = POLL_SECONDS if end is None else min(POLL_SECONDS, int(end - monotonic()) + 1)
            page = self._events(job_id, {"after": _BEYOND_EVERY_EVENT, "limit": 1, "wait_seconds": max(left, 0)}, patience)
            if page.state.is_final:
                return self.job(job_id)
            if end is not None and monotonic() >= end:
                raise JobPending(f"the job is {page.state} after {timeout_seconds:g} s", path=job_id, hint="it goes on; wait again")


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
