"""A folder for one attempt's data, for this user alone, that does not outlive it."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

import psutil

_NAME = re.compile(r"wegeft-attempt-([0-9a-f]{8})-([0-9]+)-([0-9]+)-")
_CLOCK_SHIFT_SECONDS = 120
"""The same process's beginning is told with small differences when the machine's clock is set."""


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that only this user can read, and remove it; those that killed processes left are removed first."""
    parent = parent or Path(tempfile.gettempdir())
    for left in parent.glob("wegeft-attempt-*"):
        if _is_abandoned(left.name):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"wegeft-attempt-{_host()}-{getpid()}-{int(psutil.Process().create_time())}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        yield Path(folder)


def _host() -> str:
    """Return a short name of this machine or container: others may share its temporary folder, but not its process numbers."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_abandoned(name: str) -> bool:
    """Whether the process that made the folder was of this machine and is gone; its number may be another process's by now."""
    owner = _NAME.match(name)
    if owner is None or owner.group(1) != _host():
        return False
    try:
        began = psutil.Process(int(owner.group(2))).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return abs(began - int(owner.group(3))) > _CLOCK_SHIFT_SECONDS
