"""A socket to listen on, and HTTP on it until a signal says that it is enough."""

from __future__ import annotations

import errno
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from wegeft.contracts.errors import InvalidSetting, PortTaken, StartFailed

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 5
"""How long requests that are under way may take once the service is told to end."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def listening(host: str, port: int, preferred: int = 0) -> Iterator[socket.socket]:
    """Give a bound socket: on ``port``, or where that is 0, on ``preferred`` if it is free and on any free one otherwise.

    Raises :class:`PortTaken`, and :class:`InvalidSetting` where ``host`` is no address of this machine.
    """
    listener = _bind(host, port) if port else _bind_any(host, preferred)
    try:
        yield listener
    finally:
        listener.close()


def _bind_any(host: str, preferred: int) -> socket.socket:
    try:
        return _bind(host, preferred)
    except PortTaken:
        return _bind(host, 0)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidSetting("not an address of this machine", path="host", value=host) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            message = f"port {port} of {host} cannot be used: {error.strerror}"
            raise PortTaken(message, path="port", value=port, hint="give another one, or 0 for a free one") from error
        raise InvalidSetting(f"cannot listen there: {error.strerror}", path="host", value=host) from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the socket."""
    port = listener.getsockname()[1]
    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - the names of every address
    return f"http://{loopback.get(host, f'[{host}]' if ':' in host else host)}:{port}"


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the block as Ctrl-C would, so that everything in it is closed; the block then ends quietly."""
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_http(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None], least_download_rate: int) -> None:
    """Serve ``app`` until SIGTERM or SIGINT, then let requests finish for a moment; ``on_ready`` is called once it answers.

    Readers that take fewer than ``least_download_rate`` bytes a second are cut off; 0: none are.
    """
    import uvicorn

    from cli.connections import ImpatientProtocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _leave_to_itself()
                on_ready()

    class Protocol(ImpatientProtocol):
        least_bytes_a_second = least_download_rate

    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
    config = uvicorn.Config(app, http=Protocol, timeout_graceful_shutdown=GRACE_SECONDS, **quiet)
    # uvicorn handles both signals while it runs, and raises them again when it is done.
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise StartFailed("the HTTP server did not start", hint="its log says why")


def _leave_to_itself() -> None:
    """Let Python's collector look no more at what is there before the first request.

    They are more than a hundred thousand, and live as long as the process; looking at all of them takes a tenth of a second, in which
    nobody is answered.
    """
    gc.collect()
    gc.freeze()
