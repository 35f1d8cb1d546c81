"""Beside collections, in a thread of its own: words that no adapter is found by any more are forgotten, a little at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine

from hub import catalog
from wegeft.contracts.errors import WegeftError

_LOG = structlog.get_logger("forgetting")
_WORDS = 200
"""That are looked at together."""
_SECONDS = 2.0
"""That it takes from one interval, whatever there is to look at; it goes on in the next."""
_PAUSE_SECONDS = 0.01
"""Between two looks, so that the database has time for others."""


@contextmanager
def forgetting_words(engine: Engine, interval_seconds: float) -> Iterator[None]:
    """Go through the words that the catalog keeps meanwhile, a little at each interval; 0 is never."""
    if not interval_seconds:
        yield
        return
    thread = WordsThread(engine, interval_seconds)
    thread.start()
    try:
        yield
    finally:
        thread.close()


class WordsThread:
    """Goes through the words that the catalog keeps, again and again, until it is closed."""

    def __init__(self, engine: Engine, interval_seconds: float) -> None:
        self._engine = engine
        self._interval_seconds = interval_seconds
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forgetting", daemon=True)

    def start(self) -> None:
        """Begin, one interval from now."""
        self._thread.start()

    def close(self) -> None:
        """Finish what is being looked at, and end."""
        self._is_closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        position = ""
        while not self._is_closing.wait(self._interval_seconds):
            try:
                position = self._look(position)
            except WegeftError as error:
                _LOG.warning("no words could be forgotten", reason=error.message)
            except Exception:  # noqa: BLE001 - the thread must outlive whatever it meets
                _LOG.exception("no words could be forgotten")

    def _look(self, position: str) -> str:
        """Go on behind a word for a while; return where to go on, empty at the end."""
        end = time.monotonic() + _SECONDS
        while position := catalog.forget_words(self._engine, position, _WORDS):
            if time.monotonic() >= end or self._is_closing.wait(_PAUSE_SECONDS):
                break
        return position
