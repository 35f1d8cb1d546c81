"""A server of federations as a process of its own, to be killed: ``python -m tests.orchestrator.federation_process URL FOLDER PORT``."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from hub.folder_store import FolderStore
from infra.database import make_engine
from orchestrator.jobs import Limits
from tests.orchestrator.federating import Server


def main(database: str, folder: str, port: int) -> None:
    """Serve until killed."""
    server = Server(make_engine(database), store=FolderStore(Path(folder)), limits=Limits(lease_seconds=0.5))
    thread = server.thread()
    thread.start()
    uvicorn.run(server.app(), host="127.0.0.1", port=port, log_config=None, access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
