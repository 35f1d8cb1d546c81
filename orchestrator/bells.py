"""Who waits hears at once that there is something to see; SQL stays the truth, and whoever hears nothing looks again by himself."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field


class Bell:
    """Rung from any thread, heard in event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    @property
    def count(self) -> int:
        """How often it was rung; read it before looking, and pass it to :meth:`wait`, so that nothing is missed in between."""
        return self._count

    def ring(self) -> None:
        """Wake everyone who waits."""
        with self._lock:
            self._count += 1
            waiting = list(self._waiting.items())
        for event, loop in waiting:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # that loop has closed, and nobody waits there any more
                continue

    async def wait(self, heard: int, seconds: float) -> None:
        """Return once it was rung more than ``heard`` times, or after ``seconds``."""
        event = asyncio.Event()
        with self._lock:
            if self._count != heard:
                return
            self._waiting[event] = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
        finally:
            with self._lock:
                del self._waiting[event]


@dataclass(frozen=True)
class Bells:
    """What happens in federations."""

    asked: Bell = field(default_factory=Bell)
    """A round has opened, or a federation has ended: sites look again."""
    arrived: threading.Event = field(default_factory=threading.Event)
    """A site has answered, or was approved: whoever drives rounds looks again."""
