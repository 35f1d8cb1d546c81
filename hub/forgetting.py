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
    """Go through the words that the catalog keeps meanwhile, a little at each interval; 0 is never.

    At its end it waits for what is being looked at.
    """
    if not interval_seconds:
        yield
        return
    is_closing = threading.Event()
    thread = threading.Thread(target=_go_through, args=(engine, interval_seconds, is_closing), name="forgetting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_closing.set()
        thread.join()


def _go_through(engine: Engine, interval_seconds: float, is_closing: threading.Event) -> None:
    """Look at all words again and again."""
    position = ""
    while not is_closing.wait(interval_seconds):
        try:
            position = _look(engine, position, is_closing)
        except WegeftError as error:
            _LOG.warning("no words could be forgotten", reason=error.message)
        except Exception:  # noqa: BLE001 - the thread must outlive whatever it meets
            _LOG.exception("no words could be forgotten")


def _look(engine: Engine, position: str, is_closing: threading.Event) -> str:
    """Go on behind a word for a while; return where to go on, empty at the end."""
    end = time.monotonic() + _SECONDS
    while position := catalog.forget_words(engine, position, _WORDS):
        if time.monotonic() >= end or is_closing.wait(_PAUSE_SECONDS):
            break
    return position
