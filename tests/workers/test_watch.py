"""When a worker must stop: a pure decision, and threads that act on it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from wegeft.contracts.errors import (
    Forbidden,
    JobNotFound,
    ServiceTimeout,
    ServiceUnreachable,
    StaleLease,
    TooLarge,
    Unauthenticated,
    UnexpectedAnswer,
    WegeftError,
)
from wegeft.contracts.training import HeartbeatReply
from workers.watch import Reason, Watch, reason_to_stop


@pytest.mark.parametrize(
    ("answer", "silent", "reason"),
    [
        (HeartbeatReply(should_stop=False), 0, None),
        (HeartbeatReply(should_stop=True), 0, Reason.CANCELLED),
        (StaleLease(), 0, Reason.STALE),
        (Unauthenticated(), 0, Reason.STALE),
        (Forbidden(), 0, None),
        (TooLarge(), 0, None),
        (JobNotFound(), 0, Reason.STALE),
        (ServiceUnreachable(), 14.9, None),
        (ServiceUnreachable(), 15, Reason.SILENT),
        (ServiceTimeout(), 15, Reason.SILENT),
        (UnexpectedAnswer(), 15, Reason.SILENT),
        (WegeftError(), 3, None),
    ],
)
def test_reasons_to_stop(answer: HeartbeatReply | WegeftError, silent: float, reason: Reason | None) -> None:
    assert reason_to_stop(answer, silent, 15) is reason


def until(holds: threading.Event | None, watch: Watch, seconds: float = 10) -> float:
    started = time.monotonic()
    while not (holds.is_set() if holds else watch.must_stop()):
        assert time.monotonic() - started < seconds
        time.sleep(0.005)
    return time.monotonic() - started


def test_heartbeats_carry_the_step_and_bring_the_cancel() -> None:
    watch = Watch()
    told: list[int | None] = []

    def heartbeat(step: int | None) -> HeartbeatReply:
        told.append(step)
        watch.step = len(told)
        return HeartbeatReply(should_stop=len(told) == 4)

    with watch.beating(heartbeat, 0.01, 5):
        until(None, watch)
    assert told == [None, 1, 2, 3]
    assert watch.reason is Reason.CANCELLED


def test_a_worker_that_hears_nothing_stops_within_its_lease() -> None:
    watch = Watch()

    def heartbeat(_step: int | None) -> HeartbeatReply:
        raise ServiceUnreachable

    with watch.beating(heartbeat, 0.05, 0.5):
        seconds = until(None, watch)
    assert watch.reason is Reason.SILENT
    assert 0.4 < seconds < 3


def test_a_gap_shorter_than_the_lease_is_forgiven() -> None:
    watch = Watch()
    calls: list[float] = []
    is_enough = threading.Event()

    def heartbeat(_step: int | None) -> HeartbeatReply:
        calls.append(time.monotonic())
        if len(calls) > 30:
            is_enough.set()
        if len(calls) % 5:
            raise ServiceUnreachable
        return HeartbeatReply(should_stop=False)

    with watch.beating(heartbeat, 0.02, 2):
        until(is_enough, watch)
    assert watch.reason is None


def test_the_lease_runs_from_when_the_question_was_sent() -> None:
    watch = Watch()
    answered: list[float] = []

    def heartbeat(_step: int | None) -> HeartbeatReply:
        if answered:
            raise ServiceUnreachable
        time.sleep(0.4)  # The orchestrator renewed at once, and its answer took long.
        answered.append(time.monotonic())
        return HeartbeatReply(should_stop=False)

    with watch.beating(heartbeat, 0.05, 0.6):
        until(None, watch)
        assert time.monotonic() - answered[0] < 0.55


def test_the_first_reason_stays() -> None:
    watch = Watch()
    watch.stop(Reason.CANCELLED)
    watch.stop(Reason.STALE)
    assert watch.reason is Reason.CANCELLED


def test_the_pool_can_ask() -> None:
    asked = threading.Event()
    watch = Watch(asked)
    assert not watch.must_stop()
    asked.set()
    assert watch.reason is Reason.ASKED


@pytest.mark.parametrize(("error", "stops"), [(StaleLease(), True), (Unauthenticated(), True), (ServiceUnreachable(), False)])
def test_refusals_of_other_calls_stop_too(error: WegeftError, stops: bool) -> None:
    watch = Watch()
    watch.check(error)
    assert watch.must_stop() is stops


_STUCK = """
import sys, time
from workers import watch
watch.GRACE_SECONDS = 0.5
seen = watch.Watch()
with seen.ending_process():
    if sys.argv[1] == "stop":
        seen.stop(watch.Reason.STALE)
    time.sleep(float(sys.argv[2]))
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("word", "seconds", "status", "output"), [("stop", "60", 75, ""), ("stop", "0", 0, "went on\n"), ("go", "1", 0, "went on\n")]
)
def test_a_process_that_does_not_stop_is_ended(word: str, seconds: str, status: int, output: str) -> None:
    done = subprocess.run([sys.executable, "-c", _STUCK, word, seconds], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, output)
