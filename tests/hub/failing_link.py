"""A link to an S3 server that is down, slow, refuses, or fails after the server has done what it was asked."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from tests.links import SECONDS, Link, opened

_XML = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>planted</Message></Error>"


class Trouble(StrEnum):
    """What befalls one request."""

    DOWN = "nobody answers"
    CUT_REQUEST = "the server gets a part of it"
    CUT_ANSWER = "a part of the answer comes"
    REFUSE_500 = "the server does nothing and answers 500"
    REFUSE_503 = "the server does nothing and answers 503"
    FAIL_AFTER = "the server does it, and answers 500"
    LOSE_ANSWER = "the server does it, and its answer is lost"
    SLOW = "the answer comes late"
    SILENT = "the server does it and never answers"


Choice = Callable[[bytes], Trouble | None]


@dataclass(kw_only=True)
class FailingLink(Link):
    """``choose`` says what befalls each request."""

    choose: Choice = lambda _request: None
    late_seconds: float = 0.1
    """How late a slow answer comes."""
    troubles: Counter[Trouble] = field(default_factory=Counter)
    """How often each has struck."""
    _hung_up: threading.Event = field(default_factory=threading.Event)

    def hang_up(self) -> None:
        """End the connections that are kept silent; the next ones are not."""
        self._hung_up.set()
        self._hung_up = threading.Event()

    def close(self) -> None:
        """Take no more connections, and end those that are kept silent."""
        self.hang_up()
        super().close()

    def answer(self, request: bytes) -> bytes:
        """Return what comes back to the hub."""
        trouble = self.choose(request)
        if trouble is not None:
            self.troubles[trouble] += 1
        return self._answer(request, trouble)

    def _answer(self, request: bytes, trouble: Trouble | None) -> bytes:
        match trouble:
            case Trouble.DOWN:
                return b""
            case Trouble.CUT_REQUEST:
                self.ask(request[: len(request) // 2])
                return b""
            case Trouble.REFUSE_500:
                return _refusal(500, b"InternalError")
            case Trouble.REFUSE_503:
                return _refusal(503, b"SlowDown")
        answer = self.ask(request)
        match trouble:
            case Trouble.CUT_ANSWER:
                return answer[: len(answer) // 2]
            case Trouble.FAIL_AFTER:
                return _refusal(500, b"InternalError")
            case Trouble.LOSE_ANSWER:
                return b""
            case Trouble.SLOW:
                time.sleep(self.late_seconds)
            case Trouble.SILENT:
                self._hung_up.wait(SECONDS)
                return b""
        return answer


def _refusal(status: int, code: bytes) -> bytes:
    xml = _XML % code
    return b"HTTP/1.1 %d No\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(xml), xml)


def by_chance(seed: int, share: float) -> Choice:
    """Return a choice that strikes that share of all requests, with whatever a store can do wrong and recover from."""
    chance, lock = random.Random(seed), threading.Lock()
    kinds = [trouble for trouble in Trouble if trouble is not Trouble.SILENT]

    def choose(_request: bytes) -> Trouble | None:
        with lock:
            return chance.choice(kinds) if chance.random() < share else None

    return choose


@contextmanager
def failing_link(port: int) -> Iterator[FailingLink]:
    """Give a link to ``port`` of this machine."""
    with opened(FailingLink(port=port)) as link:
        yield link
