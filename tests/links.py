"""Links to a server through which one HTTP request goes a connection, so that each can have a fate of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

SECONDS = 30.0
"""How long a link waits for either side."""


@dataclass(kw_only=True)
class Link:
    """Passes requests on; what becomes of each, the kinds of links say in ``answer``."""

    port: int
    """Of the server, on this machine."""
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> None:
        """Take connections until the listener is closed."""
        with suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def serve(self, near: socket.socket) -> None:
        """Answer the one request of a connection."""
        near.settimeout(SECONDS)
        with near, suppress(OSError):
            request = _read_request(near)
            near.sendall(self.answer(request) if request else b"")

    def answer(self, request: bytes) -> bytes:
        """Return what comes back for a request."""
        return self.ask(request)

    def ask(self, request: bytes) -> bytes:
        """Return the server's whole answer to what is sent, nothing where there is none."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as far:
            far.sendall(request)
            if not _is_whole(request):
                far.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: far.recv(1 << 16), b""))
        return b""


AnyLink = TypeVar("AnyLink", bound=Link)


@contextmanager
def opened(link: AnyLink) -> Iterator[AnyLink]:
    """Let a link take connections until the end."""
    thread = threading.Thread(target=link.accept, daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.close()
        thread.join(30)


def _read_request(source: socket.socket) -> bytes:
    """Return one request, changed only so that the server closes the connection after its answer; nothing where none came."""
    content = b""
    while not _is_whole(content):
        piece = source.recv(1 << 16)
        if not piece:
            return b""
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


def _is_whole(request: bytes) -> bool:
    """Return whether a request has its head and as many bytes after it as it says."""
    head, end, body = request.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(end) and len(body) >= (int(lengths[0]) if lengths else 0)
