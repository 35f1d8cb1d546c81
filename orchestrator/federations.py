"""Drives every federated job from round to round; a thread repeats the tick, and a site's answer wakes it.

What this process remembers can be lost at any moment: a lease that it forgets runs out, and another server goes on from SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ledger import federations, rounds, sites, troubles
from orchestrator.ledger.federations import FederatedJob
from orchestrator.ledger.troubles import Trouble
from orchestrator.round_steps import Steps
from orchestrator.rounds import may_try_again
from orchestrator.services import OrchestratorServices
from wegeft.contracts.errors import (
    Conflict,
    DatabaseUnavailable,
    DurationExceeded,
    JobCancelled,
    StaleLease,
    WegeftError,
    shorten,
)
from wegeft.contracts.federation import SiteState
from wegeft.contracts.job import seconds_of
from wegeft.contracts.training import JobState

_LOG = structlog.get_logger("federations")
LONGEST_OUTAGE = timedelta(hours=24)
"""How long the same step of a federation may fail because something does not answer."""
_MOST_STEPS = 16
"""Of one job before the others have their turn."""


@dataclass
class _Held:
    lease: ledger.Lease
    expires_at: datetime


class Federations:
    """All federated jobs that this server drives; not for several threads at once."""

    def __init__(self, services: OrchestratorServices) -> None:
        self._services = services
        self._held: dict[str, _Held] = {}

    def tick(self, now: datetime) -> None:
        """Take every federated job as far as it can go now; an error of one does not stop the others.

        Raises :class:`DatabaseUnavailable` where nothing can be recorded, and :class:`StorageFull` where the database has no room.
        """
        with reading(self._services.engine) as connection:
            going_on = federations.list_going_on(connection)
        self._held = {job.id: self._held[job.id] for job in going_on if job.id in self._held}
        for job in going_on:
            self._guarded(job, now)

    def close(self, now: datetime) -> None:
        """Let other servers take over at once."""
        for held in self._held.values():
            with writing(self._services.engine) as connection:
                federations.release(connection, held.lease, now)
        self._held.clear()

    def _guarded(self, job: FederatedJob, now: datetime) -> None:
        try:
            self._drive(job, now)
        except StaleLease:
            self._held.pop(job.id, None)
            _LOG.info("another server drives the federation", job=job.id)
        except DatabaseUnavailable:
            raise
        except Conflict as error:
            _LOG.debug("a step was done already", job=job.id, reason=error.message)
        except WegeftError as error:
            _LOG.warning("federation cannot go on", job=job.id, code=error.code, reason=error.message)
            self._count(job, error)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one federation, the others go on
            _LOG.exception("error with one federation", job=job.id)
            self._count(job, WegeftError(f"an unexpected error: {type(error).__name__}", hint="the service's log has it whole"))

    def _count(self, job: FederatedJob, error: WegeftError) -> None:
        """Say what the federation waits for, and end it where the same step has failed with this error too often."""
        now = self._services.clock()
        with writing(self._services.engine) as connection:
            newest = rounds.last_round(connection, job.id)
            place = f"round {newest[0].number}, try {newest[0].attempt}: {newest[1]}" if newest else "its start"
            trouble = troubles.note_trouble(connection, job.id, place, error.code, now)
            federations.note_wait(connection, job.id, shorten(f"{error.code}: {error.message} ({trouble.tries} times at {place})", 500))
        if job.id in self._held and is_hopeless(trouble, error, job.section.max_failed_rounds, now):
            with suppress(StaleLease):
                self._steps(job).end(error, now)

    def _steps(self, job: FederatedJob) -> Steps:
        return Steps(services=self._services, job=job, lease=self._held[job.id].lease, renew=lambda: self._renew(job.id))

    def _drive(self, job: FederatedJob, now: datetime) -> None:
        if job.state is JobState.QUEUED and not self._has_sites(job):
            return
        if not self._holds(job, now):
            return
        steps = self._steps(job)
        if job.state is JobState.CANCELLING:
            steps.end(JobCancelled(), now)
            return
        if self._is_too_long(job, now):
            steps.end(DurationExceeded(f"the federation ran longer than {job.spec.max_duration}", path="max_duration"), now)
            return
        with reading(self._services.engine) as connection:
            trouble = troubles.find_trouble(connection, job.id)
        if trouble is not None and now < trouble.next_at:
            return
        for _ in range(_MOST_STEPS):
            moment = max(now, self._services.clock())
            until = steps.advance(moment)
            if trouble is not None:
                self._forget(job)
                trouble = None
            if until is not None or not self._goes_on(job.id):
                return
        self._services.bells.arrived.set()

    def _forget(self, job: FederatedJob) -> None:
        with writing(self._services.engine) as connection:
            troubles.forget_trouble(connection, job.id)
            federations.note_wait(connection, job.id, None)

    def _goes_on(self, job_id: str) -> bool:
        with reading(self._services.engine) as connection:
            return federations.find_federated(connection, job_id).state is JobState.RUNNING

    def _has_sites(self, job: FederatedJob) -> bool:
        """Return whether enough sites can be asked for the first round; say so in the job where not."""
        with reading(self._services.engine) as connection:
            states = [site.state for site in sites.list_sites(connection, job.id)]
        approved, least = states.count(SiteState.APPROVED), job.section.min_sites
        if approved < least:
            pending = states.count(SiteState.PENDING)
            self._say(job, f"sites: {approved} of at least {least} are approved" + (f", {pending} wait for approval" if pending else ""))
        return approved >= least

    def _say(self, job: FederatedJob, text: str) -> None:
        if job.waiting_for != text:
            with writing(self._services.engine) as connection:
                federations.note_wait(connection, job.id, text)

    def _holds(self, job: FederatedJob, now: datetime) -> bool:
        """Return whether this server drives the job, taking or renewing the lease where it can."""
        if job.id in self._held:
            self._renew(job.id)
            return True
        seconds = self._services.limits.lease_seconds
        with writing(self._services.engine) as connection:
            take = federations.begin if job.state is JobState.QUEUED else federations.take_over
            lease = take(connection, job, now, seconds)
        if lease is not None:
            self._held[job.id] = _Held(lease=lease, expires_at=now + timedelta(seconds=seconds))
        return lease is not None

    def _renew(self, job_id: str) -> None:
        """Renew the lease where half of it is gone; raise :class:`StaleLease` where it is lost."""
        held, now = self._held[job_id], self._services.clock()
        seconds = self._services.limits.lease_seconds
        if now >= held.expires_at - timedelta(seconds=seconds / 2):
            with writing(self._services.engine) as connection:
                ledger.renew(connection, held.lease, now, seconds)
            held.expires_at = now + timedelta(seconds=seconds)

    def _is_too_long(self, job: FederatedJob, now: datetime) -> bool:
        if job.spec.max_duration is None or job.started_at is None:
            return False
        return now >= job.started_at + timedelta(seconds=seconds_of(job.spec.max_duration))


def is_hopeless(trouble: Trouble, error: WegeftError, max_failed_rounds: int, now: datetime) -> bool:
    """Return whether a step that fails with ``error`` is not tried again.

    What nobody mends by waiting is tried as often as a round may fail; an outage is waited out, for a day.
    """
    return now - trouble.since >= LONGEST_OUTAGE if error.is_retryable else not may_try_again(trouble.tries, max_failed_rounds)


class FederationsThread:
    """Ticks in a thread of its own until it is closed, at once where a site has answered; after an error it waits longer, and goes on."""

    def __init__(
        self, federations_: Federations, services: OrchestratorServices, tick_seconds: float = 0.5, longest_seconds: float = 10.0
    ) -> None:
        self._federations = federations_
        self._services = services
        self._tick_seconds = tick_seconds
        self._longest_seconds = longest_seconds
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="federations", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """Finish the step that runs, and let other servers take over."""
        self._is_closing.set()
        self._services.bells.arrived.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._federations.close(self._services.clock())
        except WegeftError as error:
            _LOG.warning("leases could not be given back; they will expire", reason=error.message)

    def _run(self) -> None:
        wait = self._tick_seconds
        while not self._is_closing.is_set():
            wait = self._try(self._services.clock, wait)
            self._services.bells.arrived.wait(wait)
            self._services.bells.arrived.clear()

    def _try(self, clock: Callable[[], datetime], wait: float) -> float:
        """Tick once; return how long to wait for the next time."""
        try:
            self._federations.tick(clock())
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a tick meets
            wait = min(wait * 2, self._longest_seconds)
            _LOG.warning("tick failed", reason=str(error), next_in_seconds=wait, exc_info=not isinstance(error, WegeftError))
            return wait
        return self._tick_seconds
