"""Upkeep at intervals: lets the bytes of jobs go that ended long ago, and deletes what nobody needs, a little at each tick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Engine

from hub.collection import Collector
from infra.database import writing
from orchestrator import ledger
from wegeft.contracts.collection import Collected
from wegeft.contracts.errors import WegeftError

_LOG = structlog.get_logger("upkeep")
_BLOBS_A_TICK = 20
"""So that no tick takes long, whatever there is to delete."""


@dataclass(frozen=True, kw_only=True)
class UpkeepTimes:
    """How often, and how soon."""

    interval_seconds: float
    """Between two collections."""
    keep_seconds: float
    """How long the data and the checkpoint of a job stay after its end."""


class Upkeep:
    """Called at each tick; not for several threads at once."""

    def __init__(self, engine: Engine, collector: Collector, times: UpkeepTimes, note: Callable[[Collected], None]) -> None:
        """``note`` is told what was collected."""
        self._engine = engine
        self._collector = collector
        self._times = times
        self._note = note
        self._next_at: datetime | None = None

    def tick(self, now: datetime) -> None:
        """Do a little where it is time for it. What does not work is logged and tried again after the interval."""
        if self._next_at is not None and now < self._next_at:
            return
        self._next_at = now + timedelta(seconds=self._times.interval_seconds)
        try:
            if not self._work(now):
                self._next_at = now
        except WegeftError as error:
            _LOG.warning("nothing could be collected", reason=error.message, next_at=self._next_at.isoformat())

    def _work(self, now: datetime) -> bool:
        """Return whether there is nothing left to do."""
        with writing(self._engine) as connection:
            ledger.let_go_of_ended(connection, now - timedelta(seconds=self._times.keep_seconds))
        collected = self._collector.collect(now, _BLOBS_A_TICK)
        self._note(collected)
        if collected.blobs:
            _LOG.info("collected what nobody needs", blobs=collected.blobs, bytes=collected.bytes)
        return collected.is_done
