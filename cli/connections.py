"""HTTP connections that are given up where a peer is too slow: whoever only opens them, or hardly reads, must not use them all up."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request's head is not there :attr:`head_seconds` after its first byte, or after the connection was made.

    It also cuts one whose answer waits for a reader that takes less than :attr:`least_bytes_a_second` within :attr:`reader_seconds`.
    How long a body may take is :data:`infra.bodies.BODY_SECONDS`; how long a connection may rest between two requests is uvicorn's.
    """

    head_seconds: ClassVar[float] = 30.0
    reader_seconds: ClassVar[float] = 30.0
    least_bytes_a_second: ClassVar[int] = 4096
    """0 lets readers be as slow as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._forget_timer()
        self._forget_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and wait for the rest of the head where it is not all of it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_timer()
        elif self._head_timer is None:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """Look from now on how fast the reader is, for it has not taken all that was sent."""
        super().pause_writing()
        if self.least_bytes_a_second and self._reader_timer is None:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        """Send on."""
        super().resume_writing()
        self._forget_reader()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _wait_for_reader(self) -> None:
        self._reader_timer = self.loop.call_later(self.reader_seconds, self._check_reader, self._unread_bytes())

    def _forget_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _check_reader(self, unread_bytes: int) -> None:
        # Nothing is added while writing is paused, so what is less by now is what the reader took.
        if unread_bytes - self._unread_bytes() < self.least_bytes_a_second * self.reader_seconds:
            self.transport.abort()  # closing would wait for the reader
        else:
            self._wait_for_reader()

    def _unread_bytes(self) -> int:
        """Return what waits here and in the kernel: the latter passes bytes on by megabytes, however steadily they are read."""
        waiting = self.transport.get_write_buffer_size()
        with suppress(OSError):
            content = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int(struct.unpack("i", content)[0])
        return waiting
