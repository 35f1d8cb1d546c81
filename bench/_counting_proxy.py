"""A TCP proxy on loopback that counts what passes: every byte of HTTP, headers and all, and nothing of what the kernel adds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE = 1 << 16


@dataclass
class CountingProxy:
    """Passes connections on to ``port``."""

    port: int
    bytes_up: int = 0
    """From those who connect to the server."""
    bytes_down: int = 0
    round_trips: int = 0
    """How often somebody has asked and then heard; on one connection a question of several packets counts once."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _served: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> None:
        """Take connections until the listener is closed."""
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True)
                self._served.append(thread)
                thread.start()

    def _serve(self, near: socket.socket) -> None:
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

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def counting(port: int) -> Iterator[CountingProxy]:
    """Count what goes to ``port`` of this machine and comes back from it."""
    proxy = CountingProxy(port)
    thread = threading.Thread(target=proxy.accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(30)
