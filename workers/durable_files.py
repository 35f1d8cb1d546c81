"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from wegeft.client.blobs import local_errors


def write_durably(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, readable by this user alone; when this returns, it outlives a power cut.

    Raises :class:`StorageFull`, or :class:`InvalidSetting` where the folder cannot be written.
    """
    with local_errors(path.parent):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
