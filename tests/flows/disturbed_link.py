"""A link to a server that loses, cuts, delays, repeats and reorders requests and answers, as its seed has it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from tests.links import Link, opened


class Fate(StrEnum):
    """What becomes of one request."""

    LOSE_REQUEST = "the connection ends before the server hears of it"
    CUT_REQUEST = "the server gets a part of it"
    LOSE_ANSWER = "the server acts on it, and its answer is lost"
    CUT_ANSWER = "a part of the answer comes"
    DELAY = "it waits, and others overtake it"
    REPEAT = "the server gets it twice, and the second answer comes"
    COPY_LATER = "a copy of it comes to the server again after the next one"


@dataclass(kw_only=True)
class DisturbedLink(Link):
    """Each request has a fate of its own, or with chance ``1 - share`` none."""

    seed: int
    share: float = 0.5
    fates: Counter[Fate] = field(default_factory=Counter)
    """How often each has struck."""
    requests: int = 0
    _late: list[bytes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def answer(self, request: bytes) -> bytes:
        """Return what comes back to the site, after a late copy of an earlier request has followed this one."""
        fate, part, late = self._draw(request)
        answer = self._answer(request, fate, part)
        if late:
            self.ask(late)
        return answer

    def _draw(self, request: bytes) -> tuple[Fate | None, float, bytes]:
        """Return a request's fate, where it is cut, and the copy of an earlier one that follows it."""
        with self._lock:
            self.requests += 1
            fate = self._random.choice(list(Fate)) if self._random.random() < self.share else None
            late = self._late.pop() if self._late else b""
            if fate is Fate.COPY_LATER:
                self._late.append(request)
            if fate is not None:
                self.fates[fate] += 1
            return fate, self._random.random(), late

    def _answer(self, request: bytes, fate: Fate | None, part: float) -> bytes:
        """Return what comes back to the site."""
        match fate:
            case Fate.LOSE_REQUEST:
                return b""
            case Fate.CUT_REQUEST:
                self.ask(request[: int(part * len(request))])
                return b""
            case Fate.LOSE_ANSWER:
                self.ask(request)
                return b""
            case Fate.CUT_ANSWER:
                answer = self.ask(request)
                return answer[: int(part * len(answer))]
            case Fate.DELAY:
                time.sleep(0.2 * part)
            case Fate.REPEAT:
                self.ask(request)
        return self.ask(request)


@contextmanager
def disturbed(port: int, seed: int, share: float = 0.5) -> Iterator[DisturbedLink]:
    """Give a link to ``port`` of this machine."""
    with opened(DisturbedLink(port=port, seed=seed, share=share)) as link:
        yield link
