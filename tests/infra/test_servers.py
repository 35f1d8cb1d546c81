"""The servers that tests start end with them, even where the tests are killed."""

import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import psutil

ROOT = Path(__file__).parents[2]
RUN = """
import sys, time
from tests.servers import running_postgres
with running_postgres() as server:
    folder = server.url.rpartition("host=")[2]
    print(folder, flush=True)
    time.sleep(300)
"""


def test_a_postgres_ends_with_who_started_it() -> None:
    """Killed, so that nothing of its own could stop the server; its folder goes too."""
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        assert starter.stdout is not None
        folder = Path(unquote(starter.stdout.readline().strip()))
        server = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        assert runs(server)
        starter.kill()
    until = time.monotonic() + 60
    while time.monotonic() < until and (runs(server) or folder.parent.exists()):
        time.sleep(0.1)
    assert not runs(server)
    assert not folder.parent.exists()


def runs(process: psutil.Process) -> bool:
    """Whether it does anything yet; where nobody collects dead processes, as in some containers, they stay as zombies."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
