"""How a site waits for a server that does not answer: again and again, with longer and longer pauses, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from wegeft.client.site import SiteClient
from wegeft.client.transport import may_pass
from wegeft.contracts.errors import StorageFull, Unauthenticated, WegeftError
from wegeft.contracts.signatures import CLOCK_TOLERANCE
from wegeft.contracts.training import Message, WorkerEvent

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a site needs from the world."""

    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    """Seconds of a clock that never goes back."""
    sleep: Callable[[float], None]
    chance: Callable[[], float]
    """A random number from 0 to 1, so that sites do not come back all at once."""
    tell: Callable[[WorkerEvent], None]
    """Shows what happens to the site's owner."""

    def say(self, text: str, *, is_warning: bool = False) -> None:
        """Tell the site's owner something in words."""
        self.tell(Message(level="warning" if is_warning else "info", text=text))


@dataclass(frozen=True)
class Patience:
    """Calls a site's server for as long as ``longest``, whatever happens to it in between."""

    client: SiteClient
    around: Around
    longest: timedelta

    def call(self, once: Callable[[], Result]) -> Result:
        """Return what ``once`` does; wait and try again while the server does not answer, has no room, or the clock is wrong.

        Raises the last error once ``longest`` is over, and at once what waiting does not mend.
        """
        began, pause, is_told = self.around.monotonic(), FIRST_PAUSE_SECONDS, False
        while True:
            try:
                result = once()
            except WegeftError as error:
                reason = self._reason_to_wait(error)
                if reason is None or self.around.monotonic() - began >= self.longest.total_seconds():
                    raise
                if not is_told:
                    self.around.say(f"{reason}; trying again", is_warning=True)
                is_told = True
                self.around.sleep(pause * (0.5 + self.around.chance()))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                if is_told:
                    self.around.say("the server answers again")
                return result

    def _reason_to_wait(self, error: WegeftError) -> str | None:
        if may_pass(error) or isinstance(error, StorageFull):
            return error.message
        if not isinstance(error, Unauthenticated):
            return None
        try:
            lead = self.client.clock_lead()
        except WegeftError as unheard:
            return unheard.message if may_pass(unheard) else None
        if abs(lead) <= CLOCK_TOLERANCE:
            return None
        way = "ahead of" if lead > timedelta() else "behind"
        return f"this machine's clock is {abs(lead).total_seconds():.0f} s {way} the server's: set it"
