"""A collector in a process of its own that is killed at a step: ``python -m tests.hub.dying_collector URL FOLDER STEP``."""

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from hub.collection import Collector
from hub.folder_store import FolderStore
from infra.database import make_engine


class DyingStore(FolderStore):
    """Kills its process before the first look, before the first deletion, or right after it."""

    def has(self, digest: str) -> int | None:
        if sys.argv[3] == "chosen":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().has(digest)

    def delete(self, digest: str) -> None:
        if sys.argv[3] == "seized":
            os.kill(os.getpid(), signal.SIGKILL)
        super().delete(digest)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Collector(engine=make_engine(sys.argv[1]), store=DyingStore(Path(sys.argv[2]))).collect(datetime.now(UTC), 10)
