"""What is timed of a federation's rounds, whoever runs them: marks in a file, and the CPU seconds of trees of processes."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

RANK, GROUPS = 16, 7
"""Of the generators whose float32 numbers are a round's payload."""
LONG_SECONDS = 1.0
"""Between samples where rounds last seconds."""
SHORT_SECONDS = 0.2
"""Where they last less."""
LEAST_MEMORY_BYTES = 1 << 30
"""That a run leaves to the machine, or is ended."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting, the same for every system."""

    sites: int
    megabytes: float
    rounds: int
    """That are timed; one more comes before them, with everybody's start in it."""
    work_seconds: float = 0.0
    """Slept by each site in each round."""
    limit_seconds: float = 600.0

    @property
    def width(self) -> int:
        """Of each generator, so that all take ``megabytes``."""
        return max(1, round(self.megabytes * 1e6 / (4 * 2 * RANK * GROUPS)))

    @property
    def name(self) -> str:
        """For people."""
        work = f", {self.work_seconds:g} s of work" if self.work_seconds else ""
        return f"{self.sites} × {self.megabytes:g} MB{work}"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something happened: ``round`` began, or a site ``heard`` of it, or had ``begun`` with all that it needs at hand."""

    what: str
    round: int
    at: float
    """Seconds of the machine's clock."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run."""

    periods: tuple[float, ...]
    """Seconds from the beginning of each round to that of the next, without the first."""
    cpu_seconds: float
    """Of all processes together, for each of these rounds."""
    heard: tuple[float, ...] = ()
    """Seconds from a round's beginning until each site knew of it."""
    begun: tuple[float, ...] = ()
    """Until each site had what it needs to train."""

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.periods)


def mark(path: Path, what: str, number: int) -> None:
    """Append that ``what`` happened in a round, now; several processes may write to one file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (json.dumps({"what": what, "round": number, "at": time.time()}) + "\n").encode())
    os.close(descriptor)


def read_marks(path: Path) -> list[Mark]:
    """Return what was marked so far."""
    return [Mark(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def timing_of(marks: Sequence[Mark], samples: Sequence[tuple[float, float]]) -> Timing:
    """Return what the marks say; a round ends where the next one begins, and the first is left out.

    Raises :class:`RuntimeError` where not even one round after the first was done.
    """
    began = {one.round: one.at for one in sorted(marks, key=lambda one: -one.at) if one.what == "round"}
    timed = sorted(number for number in began if number > 1)
    if len(timed) < 2:
        raise RuntimeError("no round after the first was done in time")
    first, last = began[timed[0]], began[timed[-1]]
    times, totals = np.array(samples).T
    # What a process took is lost to the sum where nobody waits for its end.
    spent = float(np.diff(np.interp([first, last], times, np.maximum.accumulate(totals)))[0])
    later = {what: tuple(_delays(marks, what, {number: began[number] for number in timed[:-1]})) for what in ("heard", "begun")}
    periods = tuple(float(gap) for gap in np.diff([began[number] for number in timed]))
    return Timing(periods=periods, cpu_seconds=spent / len(periods), **later)


def _delays(marks: Sequence[Mark], what: str, began: dict[int, float]) -> Iterator[float]:
    return (one.at - began[one.round] for one in marks if one.what == what and one.round in began)


def cpu_seconds(roots: Sequence[int]) -> float:
    """Return the CPU seconds that the processes and all that they started have taken so far, ended ones included."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found |= {process.pid: process for process in [root, *root.children(recursive=True)]}
    total = 0.0
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass
class Watch:
    """Samples CPU seconds now and then."""

    roots: Callable[[], Sequence[int]]
    every_seconds: float
    samples: list[tuple[float, float]] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        """Take one sample."""
        self.samples.append((time.time(), cpu_seconds(self.roots())))

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._is_over.wait(self.every_seconds):
            self.sample()

    def stop(self) -> None:
        """Take the last sample, and no more."""
        self._is_over.set()


@contextmanager
def watching(roots: Callable[[], Sequence[int]], every_seconds: float = LONG_SECONDS) -> Iterator[list[tuple[float, float]]]:
    """Sample meanwhile; give the samples, which are complete at the end."""
    watch = Watch(roots, every_seconds)
    watch.sample()
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch.samples
    finally:
        watch.stop()
        thread.join()
        watch.sample()


def wait_for(is_so: Callable[[], bool], seconds: float) -> bool:
    """Return whether something became so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.2)
    return False


def is_memory_short() -> bool:
    """Return whether so little memory is left that the machine is about to stand still."""
    return bool(psutil.virtual_memory().available < LEAST_MEMORY_BYTES)


def end_all(roots: Sequence[int]) -> None:
    """End processes and all that they started, by their ids, and see them gone."""
    family: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            family |= {process.pid: process for process in [root, *root.children(recursive=True)]}
    for force in ("terminate", "kill"):
        for process in family.values():
            with suppress(psutil.NoSuchProcess):
                getattr(process, force)()
        _, alive = psutil.wait_procs(family.values(), timeout=10)
        family = {process.pid: process for process in alive}
