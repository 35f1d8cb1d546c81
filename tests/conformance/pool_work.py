"""What attempts do in the tests of pools, by the first word of the job's id; importable by Ray's workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from wegeft.contracts.placement import AttemptOrder


def act(order: AttemptOrder, must_stop: Callable[[], bool]) -> None:
    """Leave the worker's pid in the folder that ``order.server`` names, then do what the job's id says."""
    folder = Path(order.server)
    (folder / f"{order.handle}.pid").write_text(str(os.getpid()))
    match order.job_id.partition("-")[0]:
        case "wait":
            while not must_stop():
                time.sleep(0.02)
        case "fail":
            raise RuntimeError("a bug, with a secret in it")
        case "exit":
            os._exit(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{order.handle}.done").write_text("")


def act_in_thread(order: AttemptOrder, stop: threading.Event) -> None:
    """Act until asked to stop."""
    act(order, stop.is_set)


def act_in_actor(order: AttemptOrder) -> None:
    """Act until killed."""
    act(order, lambda: False)
