"""A link to a server that loses, cuts, delays, repeats and reorders requests and answers, as its seed has it."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

_SECONDS = 30.0


class Fate(StrEnum):
    """What becomes of one request."""

    LOSE_REQUEST = "the connection ends before the server hears of it"
    CUT_REQUEST = "the server gets a part of it"
    LOSE_ANSWER = "the server acts on it, and its answer is lost"
    CUT_ANSWER = "a part of the answer comes"
    DELAY = "it waits, and others overtake it"
    REPEAT = "the server gets it twice, and the second answer comes"
    COPY_LATER = "a copy of it comes to the server again after the next one"


@dataclass
class DisturbedLink:
    """One HTTP request a connection; each has a fate of its own, or with chance ``1 - share`` none."""

    port: int
    """Of the server, on this machine."""
    seed: int
    share: float = 0.5
    fates: Counter[Fate] = field(default_factory=Counter)
    """How often each has struck."""
    requests: int = 0
    _late: list[bytes] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> None:
        """Take connections until the listener is closed."""
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, near: socket.socket) -> None:
        near.settimeout(_SECONDS)
        with near, suppress(OSError):
            request = read_request(near)
            if not request:
                return
            fate, part, late = self._draw(request)
            answer = self._answer(request, fate, part)
            if late:
                self._ask(late)
            near.sendall(answer)

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
                self._ask(request[: int(part * len(request))])
                return b""
            case Fate.LOSE_ANSWER:
                self._ask(request)
                return b""
            case Fate.CUT_ANSWER:
                answer = self._ask(request)
                return answer[: int(part * len(answer))]
            case Fate.DELAY:
                time.sleep(0.2 * part)
            case Fate.REPEAT:
                self._ask(request)
        return self._ask(request)

    def _ask(self, request: bytes) -> bytes:
        """Return the server's whole answer to what is sent, nothing where there is none."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS) as far:
            far.sendall(request)
            if not is_whole(request):
                far.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: far.recv(1 << 16), b""))
        return b""


def read_request(source: socket.socket) -> bytes:
    """Return one request, changed only so that the server closes the connection after its answer; nothing where none came."""
    content = b""
    while not is_whole(content):
        piece = source.recv(1 << 16)
        if not piece:
            return b""
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


def is_whole(request: bytes) -> bool:
    """Return whether a request has its head and as many bytes after it as it says."""
    head, end, body = request.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(end) and len(body) >= (int(lengths[0]) if lengths else 0)


@contextmanager
def disturbed(port: int, seed: int, share: float = 0.5) -> Iterator[DisturbedLink]:
    """Give a link to ``port`` of this machine."""
    link = DisturbedLink(port, seed, share)
    thread = threading.Thread(target=link.accept, daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.close()
        thread.join(30)
