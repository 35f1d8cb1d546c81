"""A TCP proxy on loopback that counts what passes: every byte of HTTP, headers and all, and nothing of what the kernel adds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.links import Link, opened

_PIECE = 1 << 16


@dataclass(kw_only=True)
class CountingProxy(Link):
    """Passes whole connections on, of any number of requests."""

    bytes_up: int = 0
    """From those who connect to the server."""
    bytes_down: int = 0
    round_trips: int = 0
    """How often somebody has asked and then heard; on one connection a question of several packets counts once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _served: list[threading.Thread] = field(default_factory=list)

    def serve(self, near: socket.socket) -> None:
        """Pass a connection on until both ends are done."""
        self._served.append(threading.current_thread())
        with near, socket.create_connection(("127.0.0.1", self.port)) as far:
            asking = threading.Event()
            up = threading.Thread(target=self._pump, args=(near, far, True, asking), daemon=True)
            up.start()
            self._pump(far, near, False, asking)
            up.join()

    def _pump(self, source: socket.socket, target: socket.socket, is_up: bool, asking: threading.Event) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                with self._lock:
                    self.round_trips += is_up and not asking.is_set()
                    asking.set() if is_up else asking.clear()
                    self.bytes_up += len(piece) if is_up else 0
                    self.bytes_down += 0 if is_up else len(piece)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def settle(self) -> None:
        """Return once every connection so far has ended, which those who opened them must see to."""
        for thread in list(self._served):
            thread.join(30)


@contextmanager
def counting(port: int) -> Iterator[CountingProxy]:
    """Count what goes to ``port`` of this machine and comes back from it."""
    with opened(CountingProxy(port=port)) as proxy:
        yield proxy
