"""Whether the parts that a service stands on work, asked with a deadline: a part that hangs must not make the question hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Generic, TypeVar

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from wegeft.contracts.errors import Problem, WegeftError

ANSWER_SECONDS = 2.0
"""How long a part may take to say that it works."""

Answer = TypeVar("Answer")
Check = Callable[[], None]
"""Raises where a part that the service stands on does not work."""


class Question(Generic[Answer]):
    """Asks what may never be answered, in a thread of its own; whoever asks meanwhile waits for the same answer.

    So however many ask a part that hangs, and however often, one thread hangs with it and none of those that serve requests.
    """

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask = ask
        self._asked: Future[Answer] | None = None
        self._lock = threading.Lock()

    def begin(self) -> Future[Answer]:
        """Return the answer to come."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                self._asked.set_running_or_notify_cancel()  # from now on nobody's impatience ends it for the others
                threading.Thread(target=self._answer, args=(self._asked,), name="question", daemon=True).start()
            return self._asked

    def _answer(self, asked: Future[Answer]) -> None:
        try:
            asked.set_result(self._ask())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            asked.set_exception(error)


class Readiness:
    """Asks the parts, all at once; safe to use from several threads and by several requests."""

    def __init__(self, checks: Mapping[str, Check], answer_seconds: float = ANSWER_SECONDS) -> None:
        self._questions = {name: Question(partial(_problem_of, name, check)) for name, check in checks.items()}
        self._answer_seconds = answer_seconds

    async def problems(self) -> list[Problem]:
        """Return what does not work, in the order of the checks."""
        asked = self._begin()
        waiting = [asyncio.wrap_future(answer) for answer in asked.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self._answer_seconds)
            for answer in late:
                answer.cancel()
        return [problem for name, answer in asked.items() if (problem := self._problem(name, answer))]

    def states(self) -> dict[str, bool]:
        """Return which parts work, by name."""
        asked = self._begin()
        wait(asked.values(), self._answer_seconds)
        return {name: self._problem(name, answer) is None for name, answer in asked.items()}

    def _begin(self) -> dict[str, Future[Problem | None]]:
        return {name: question.begin() for name, question in self._questions.items()}

    def _problem(self, name: str, answer: Future[Problem | None]) -> Problem | None:
        if answer.done():
            return answer.result()
        return Problem(path=name, message=f"no answer within {self._answer_seconds:g} s")


def _problem_of(name: str, check: Check) -> Problem | None:
    try:
        check()
    except WegeftError as error:
        return Problem(path=name, message=error.message)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the answer is that it is not ready
        return Problem(path=name, message=type(error).__name__)
    return None


class PartGauges(Collector):
    """``wegeft_part_up{part}``: 1 where a part works, asked whenever metrics are."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Say what will be told, so that registering asks nobody."""
        yield self._gauge()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask the parts."""
        gauge = self._gauge()
        for name, is_up in self._readiness.states().items():
            gauge.add_metric((name,), float(is_up))
        yield gauge

    def _gauge(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("wegeft_part_up", "Whether a part that the service stands on works.", labels=("part",))
