"""Files by names that others can guess, in folders where others may write: ours, or not opened at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_OURS_ALONE = 0o600
# Without O_NONBLOCK, opening a pipe that somebody has put there would wait for them.
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_own(path: Path, *, makes: bool) -> BinaryIO:
    """Open a file to read and write from its beginning; nobody else's file is ever made, read or changed.

    ``makes``: one that is not there is made, and only we may read it. Raises :class:`FileNotFoundError` where it is not, and another
    :class:`OSError` where the name leads to something that is no regular file, that is another user's, or that has other names as well.
    """
    descriptor = os.open(path, _FLAGS | (os.O_CREAT if makes else 0), _OURS_ALONE)
    file = os.fdopen(descriptor, "r+b")
    if not _is_ours(os.fstat(descriptor)):
        file.close()
        raise PermissionError(errno.EPERM, "not a file of ours", str(path))
    return file


def _is_ours(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink <= 1


def may_be_own(path: Path) -> bool:
    """Return whether a name is free, or leads to a file of ours that :func:`open_own` opens."""
    try:
        open_own(path, makes=False).close()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
