"""A hub in a process of its own that is killed at a step: ``python -m tests.hub.dying_hub PORT DATABASE FOLDER STEP COUNT``.

At the ``COUNT``-th blob that is stored and has no row yet (``stored``), or the ``COUNT``-th commit whose answer is to be sent
(``answering``); a count of 0 is never.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import api
from hub.folder_store import FolderStore
from hub.objects import Readable
from hub.services import HubServices
from infra.auth import Guard
from infra.database import make_engine
from infra.http import create_app

PORT, DATABASE, FOLDER, STEP, COUNT = sys.argv[1:6] if len(sys.argv) > 5 else ("0", "", "", "", "0")
_PASSED = itertools.count(1)


def now() -> datetime:
    return datetime.now(UTC)


def pass_step(step: str) -> None:
    """Die where this is the one."""
    if step == STEP and next(_PASSED) == int(COUNT):
        os.kill(os.getpid(), signal.SIGKILL)


class DyingStore(FolderStore):
    """Kills its process after a blob is stored, and before anybody has written down whose it is."""

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        stored = super().put(digest, source, size)
        pass_step("stored")
        return stored


def dying(app: ASGIApp) -> ASGIApp:
    """Return the application that dies when a commit is done, and before its answer is sent."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and "/commit/" in scope["path"] and message["status"] == 200:
                pass_step("answering")
            await send(message)

        await app(scope, receive, watch)

    return watched


def main() -> None:
    engine = make_engine(DATABASE)
    services = HubServices(engine=engine, store=DyingStore(Path(FOLDER)), clock=now, is_private_by_default=False)
    app = create_app([api.make_router(services, Guard(engine=engine, clock=now))], title="hub", version="test")
    uvicorn.run(dying(app), host="127.0.0.1", port=int(PORT), log_config=None, lifespan="off")


if __name__ == "__main__":
    main()
