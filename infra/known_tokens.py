"""Whether a token is any good, asked before a body is read: remembered for a few seconds, so that it costs next to nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from infra.auth import authenticate, hash_secret, is_attempt_token
from infra.database import reading
from wegeft.contracts.errors import Unauthenticated

REMEMBERED_SECONDS = 5.0
"""How long a token passes that was good; one that is revoked meanwhile is still refused by every endpoint."""
_MOST = 10_000
_ATTEMPT_SEGMENTS = 6
"""Of a path that begins with ``/api/v1/attempts/<job>/<attempt>``, the empty one before the first slash too."""

AttemptCheck = Callable[[Connection, str, str], None]
"""Takes a connection, a token and a path; raises :class:`Unauthenticated` where the path is not of the token's attempt."""


class KnownTokens:
    """Answers from its memory or from the database; safe to use from several threads."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime], check_attempt: AttemptCheck | None = None) -> None:
        """``check_attempt`` is asked about attempts' tokens, which are good for nothing without it."""
        self._engine = engine
        self._clock = clock
        self._check_attempt = check_attempt
        self._good: dict[tuple[str, str], datetime] = {}
        self._lock = threading.Lock()

    def __call__(self, token: str, path: str) -> bool:
        """Return whether the token is good for the path; raise :class:`DatabaseUnavailable` where that cannot be asked."""
        now = self._clock()
        # An attempt's token is good for paths of its own alone, so where they part another question begins.
        key = hash_secret(token), "/".join(path.split("/")[:_ATTEMPT_SEGMENTS]) if is_attempt_token(token) else ""
        with self._lock:
            if self._good.get(key, now) > now:
                return True
        if not self._ask(token, path, now):
            return False
        with self._lock:
            if len(self._good) >= _MOST:
                self._good.clear()
            self._good[key] = now + timedelta(seconds=REMEMBERED_SECONDS)
        return True

    def _ask(self, token: str, path: str, now: datetime) -> bool:
        try:
            with reading(self._engine) as connection:
                if not is_attempt_token(token):
                    authenticate(connection, token, now)
                    return True
                if self._check_attempt is not None:
                    self._check_attempt(connection, token, path)
                    return True
        except Unauthenticated:
            pass
        return False
