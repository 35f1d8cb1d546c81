"""The scheduler: one ``tick`` brings the ledger and the pool together; a thread repeats it.

What the scheduler remembers can be lost at any moment: attempts that it forgets run out of their leases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import structlog
from sqlalchemy import Connection, Engine

from infra.auth import hash_secret, make_attempt_token
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.jobs import End, GiveUp, Keep, Limits, LiveAttempt, Renew, Verdict, judge
from wegeft.contracts.errors import (
    ERROR_KINDS,
    DatabaseUnavailable,
    ErrorBody,
    JobFailure,
    StaleLease,
    StartFailed,
    StorageFull,
    WegeftError,
    WorkerLost,
)
from wegeft.contracts.job import bytes_of
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from wegeft.contracts.training import JobState

_LOG = structlog.get_logger("scheduler")
_LINGER_SECONDS = 10.0
"""How long a process may take to end after its attempt is over in the ledger, before it is killed."""
_PAUSE_SECONDS = 5.0
"""Ticks further apart than this, and than half a lease, tell of a pause."""
_POOL_REST_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How long nothing is started after the pool has failed to, once, twice, …"""
_POOL_CALM_SECONDS = 60.0
"""A failure so long after the last rest is the first again."""
_NO_ROOM_SECONDS = 30.0
"""How long a job that found no room lets the others go first."""


class Pool(Protocol):
    """Where attempts run. One thread calls it; no method blocks for long."""

    def start(self, order: AttemptOrder) -> None:
        """Start an attempt, or keep it until there is room; ``order.handle`` names it from now on.

        Raises :class:`NoCapacity` where its resources can never be had here, and :class:`Broken` where the pool does not work; or
        reports either later, as the end of an attempt that is refused.
        """
        ...

    def poll(self) -> tuple[AttemptEnd, ...]:
        """Return the attempts that have ended since the last call, each once."""
        ...

    def stop(self, handle: str) -> None:
        """Kill an attempt now; harmless where it is over or was never here. Its end may be reported or not."""
        ...

    def close(self) -> None:
        """Kill every attempt and give everything back."""
        ...


class Scheduler:
    """Gives queued jobs to a pool and sees every attempt to its end; not for several threads at once."""

    def __init__(self, engine: Engine, pool: Pool, limits: Limits, server: str) -> None:
        """``server`` is the orchestrator's base URL, as the pool's workers reach it."""
        self._engine = engine
        self._pool = pool
        self._limits = limits
        self._server = server
        self._given: dict[str, datetime | None] = {}  # handle → since when its attempt is over in the ledger
        self._unrecorded: list[AttemptEnd] = []
        self._pool_failures = 0
        self._pool_rests_until: datetime | None = None
        self._last_tick: datetime | None = None
        self._was_paused = False
        self._awake_since: datetime | None = None

    def tick(self, now: datetime) -> None:
        """Collect ends, judge what lives, and start what may run.

        An error of one job does not stop the others. Raises :class:`DatabaseUnavailable` where nothing can be recorded.
        """
        self._note_pause(now)
        self._collect(now)
        with reading(self._engine) as connection:
            live = ledger.list_live(connection)
        for attempt in live:
            self._guarded("judge", attempt.handle, partial(self._judge, attempt, now))
        self._kill_lingering(live, now)
        self._launch(now)

    def close(self, now: datetime) -> None:
        """Kill every attempt of this pool and put its job back into the queue, so that the next start need not wait for its lease."""
        given = list(self._given)
        self._pool.close()
        for handle in given:
            self._guarded("close", handle, partial(self._put_back, handle, now))
        self._given.clear()

    def _put_back(self, handle: str, now: datetime) -> None:
        with writing(self._engine) as connection:
            lease = _lease_of(connection, handle)
            if lease is not None:
                ledger.give_back(connection, lease, WorkerLost("the orchestrator was shut down").body(), now, 0)

    def _guarded(self, doing: str, handle: str, act: Callable[[], None]) -> None:
        """Do something about one attempt; only a database that takes no writes concerns the others too."""
        try:
            act()
        except StaleLease:
            _LOG.debug("attempt is over already", doing=doing, handle=handle)
        except (DatabaseUnavailable, StorageFull):
            raise
        except Exception:  # noqa: BLE001 - whatever is wrong with one attempt, the others go on
            _LOG.exception("error with one attempt", doing=doing, handle=handle)

    def _collect(self, now: datetime) -> None:
        try:
            self._unrecorded += self._pool.poll()
        except Exception as error:  # noqa: BLE001 - a pool that does not work must not keep cancels and leases waiting
            _LOG.warning("pool does not answer", reason=str(error), exc_info=not isinstance(error, WegeftError))
        while self._unrecorded:
            # An end is told once, so it is kept until the ledger has it.
            end = self._unrecorded[0]
            self._guarded("collect", end.handle, partial(self._record_end, end, now))
            self._unrecorded.pop(0)
            self._given.pop(end.handle, None)

    def _record_end(self, end: AttemptEnd, now: datetime) -> None:
        # A process that says it has reported its end, but has not, is as lost as one that says nothing.
        error = end.error or WorkerLost("the worker ended without a result or an error").body()
        with writing(self._engine) as connection:
            lease = _lease_of(connection, end.handle)
            if lease is None:
                return
            if end.is_refused and not _is_of_the_job(error):
                _LOG.warning("pool could not start an attempt", handle=end.handle, code=error.code, reason=error.detail)
                ledger.give_back(connection, lease, error, now, self._rest(now))
                return
            after = ledger.end_attempt(connection, lease, error, now)
        _LOG.info("attempt ended", handle=end.handle, code=error.code, reason=error.detail, job_is=str(after))

    def _judge(self, seen: LiveAttempt, now: datetime) -> None:
        if isinstance(self._verdict(seen, now), Keep):
            return
        lease = ledger.Lease(job_id=seen.job_id, attempt=seen.attempt, token=seen.lease_token)
        with writing(self._engine) as connection:
            # Once more, now that nobody else can change it: the worker may have been heard just now.
            verdict = self._verdict(ledger.find_live(connection, lease), now)
            match verdict:
                case Keep():
                    return
                case Renew():
                    ledger.renew(connection, lease, now, self._limits.lease_seconds)
                    return
                case End(error=error):
                    after = ledger.end_attempt(connection, lease, error.body(), now)
                case GiveUp(error=error):
                    ledger.give_back(connection, lease, error.body(), now, _NO_ROOM_SECONDS)
                    after = JobState.QUEUED
        # Fenced first, killed after: whatever the process still does, it changes nothing.
        self._stop(seen.handle)
        _LOG.info("attempt stopped", handle=seen.handle, code=error.code, reason=error.message, job_is=str(after))

    def _verdict(self, live: LiveAttempt, now: datetime) -> Verdict:
        if self._awake_since is not None and live.state is not JobState.CANCELLING:
            heard_by = self._awake_since + timedelta(seconds=self._limits.lease_seconds / 2)
            live = replace(
                live, lease_expires_at=max(live.lease_expires_at, heard_by), progress_at=max(live.progress_at, self._awake_since)
            )
        return judge(live, now, self._limits, is_in_our_pool=live.handle in self._given)

    def _note_pause(self, now: datetime) -> None:
        """After a pause of our own, a machine that slept for example, let the workers be heard before their silence counts."""
        pause = (now - self._last_tick).total_seconds() if self._last_tick else 0.0
        is_pause = pause > max(self._limits.lease_seconds / 2, _PAUSE_SECONDS)
        # One pause after another is no pause but slowness, and must not keep dead workers alive for ever.
        if is_pause and not self._was_paused:
            self._awake_since = now
            _LOG.warning("the scheduler was paused", seconds=pause)
        self._last_tick, self._was_paused = now, is_pause

    def _stop(self, handle: str) -> None:
        try:
            self._pool.stop(handle)
        except Exception as error:  # noqa: BLE001 - the ledger fences the attempt anyway, and its worker stops when it hears so
            _LOG.warning("pool could not stop an attempt", handle=handle, reason=str(error), exc_info=not isinstance(error, WegeftError))

    def _kill_lingering(self, live: tuple[LiveAttempt, ...], now: datetime) -> None:
        """Kill processes whose attempts have been over for a while: they hold what other jobs wait for."""
        alive = {attempt.handle for attempt in live}
        for handle, over_since in list(self._given.items()):
            if handle in alive:
                continue
            if over_since is None:
                self._given[handle] = now
            elif now >= over_since + timedelta(seconds=_LINGER_SECONDS):
                self._stop(handle)
                del self._given[handle]

    def _launch(self, now: datetime) -> None:
        while self._pool_rests_until is None or now >= self._pool_rests_until:
            token = make_attempt_token()
            with writing(self._engine) as connection:
                has_room = ledger.count_live(connection) < self._limits.max_concurrent_jobs
                claimed = ledger.claim(connection, hash_secret(token), now, self._limits.lease_seconds) if has_room else None
            if claimed is None:
                return
            self._start(claimed, self._order(claimed, token), now)

    def _order(self, claimed: ledger.Claimed, token: str) -> AttemptOrder:
        resources = claimed.spec.resources
        return AttemptOrder(
            server=self._server,
            job_id=claimed.lease.job_id,
            attempt=claimed.lease.attempt,
            token=token,
            cpus=resources.cpus,
            gpus=resources.gpus,
            memory_bytes=bytes_of(resources.memory) if resources.memory else None,
        )

    def _start(self, claimed: ledger.Claimed, order: AttemptOrder, now: datetime) -> None:
        try:
            self._pool.start(order)
        except JobFailure as error:
            with writing(self._engine) as connection:
                ledger.end_attempt(connection, claimed.lease, error.body(), now)
            _LOG.info("attempt refused by the pool", handle=order.handle, code=error.code, reason=error.message)
        except Exception as error:  # noqa: BLE001 - a pool's own trouble is not the job's
            _LOG.warning(
                "pool could not start an attempt", handle=order.handle, reason=str(error), exc_info=not isinstance(error, WegeftError)
            )
            told = error if isinstance(error, WegeftError) else StartFailed("the pool could not start the attempt")
            with writing(self._engine) as connection:
                ledger.give_back(connection, claimed.lease, told.body(), now, self._rest(now))
        else:
            self._given[order.handle] = None
            _LOG.info("attempt given to the pool", handle=order.handle)

    def _rest(self, now: datetime) -> float:
        """Start nothing for a while, and return how many seconds: a pool that does not work fails every job alike.

        That a pool takes an order does not end its trouble, as it may refuse it later; only time does.
        """
        until = self._pool_rests_until
        if until is not None and now < until:
            return (until - now).total_seconds()  # Several orders met the same trouble.
        if until is not None and now >= until + timedelta(seconds=_POOL_CALM_SECONDS):
            self._pool_failures = 0
        seconds = _POOL_REST_SECONDS[min(self._pool_failures, len(_POOL_REST_SECONDS) - 1)]
        self._pool_failures += 1
        self._pool_rests_until = now + timedelta(seconds=seconds)
        return seconds


def _is_of_the_job(error: ErrorBody) -> bool:
    """Whether a refusal would be the same from any pool that works."""
    return issubclass(ERROR_KINDS.get(error.code, WegeftError), JobFailure)


def _lease_of(connection: Connection, handle: str) -> ledger.Lease | None:
    job_id, _, attempt = handle.rpartition(".")
    return ledger.find_lease(connection, job_id, int(attempt)) if attempt.isdecimal() else None


class SchedulerThread:
    """Ticks in a thread of its own until it is closed; after an error it waits longer, and goes on."""

    def __init__(
        self, scheduler: Scheduler, clock: Callable[[], datetime], tick_seconds: float = 0.5, longest_seconds: float = 10.0
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._longest_seconds = longest_seconds
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def close(self) -> None:
        """Finish the tick that runs, kill the attempts and put their jobs back into the queue."""
        self._is_closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._scheduler.close(self._clock())
        except WegeftError as error:
            _LOG.warning("attempts could not be put back; their leases will expire", reason=error.message)

    def _run(self) -> None:
        wait = self._tick_seconds
        while not self._is_closing.wait(wait):
            try:
                self._scheduler.tick(self._clock())
                wait = self._tick_seconds
            except WegeftError as error:
                wait = min(wait * 2, self._longest_seconds)
                _LOG.warning("tick failed", reason=error.message, next_in_seconds=wait)
            except Exception:  # noqa: BLE001 - the thread must outlive whatever a tick meets
                wait = min(wait * 2, self._longest_seconds)
                _LOG.exception("tick failed", next_in_seconds=wait)
