"""Blobs in a folder of this machine: the store of a laptop, and of services that share a disk."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub.objects import CHUNK_BYTES, Readable, VerifiedSource, absence_of, check_span
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, StorageFull, StorageUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FolderStore:
    """Blobs in a folder, ``sha256/ab/cd/abcd…``, durable once ``put`` returns; several processes may share it.

    A blob is written to a file in ``tmp``, synced and renamed, so a crash leaves at most a temporary file. Its writer holds a lock
    on that file, which dies with the process, so the next one to open the folder knows what to sweep. What has rotted lies beside
    its place as ``abcd….rotten``, until it is mended.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        with self._named_errors():
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        """See :meth:`ObjectStore.put`."""
        verified, target = VerifiedSource(source, digest, size), self._path(digest)
        with self._temporary_file() as (descriptor, path):
            for chunk in verified:
                with self._named_errors():
                    _write_all(descriptor, chunk)
            with self._named_errors():
                os.fsync(descriptor)
                changed = self._make_parents(target)
                path.replace(target)
                _rotten(target).unlink(missing_ok=True)
                # Together at the end: where the file system has a journal, the first takes the others along.
                for folder in (target.parent, *changed):
                    _sync_folder(folder)
        return verified.size

    def get(self, digest: str) -> Iterator[bytes]:
        """See :meth:`ObjectStore.get`."""
        with self._named_errors(digest), self._path(digest).open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def range(self, digest: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.range`."""
        check_span(start, length)
        with self._named_errors(digest), self._path(digest).open("rb") as file:
            rest = os.fstat(file.fileno()).st_size - start
            file.seek(start)
            return file.read(max(0, min(length, rest)))

    def has(self, digest: str) -> int | None:
        """See :meth:`ObjectStore.has`."""
        try:
            with self._named_errors(digest):
                return self._path(digest).stat().st_size
        except (BlobNotFound, DigestMismatch):
            return None

    def delete(self, digest: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        with self._named_errors():
            self._path(digest).unlink(missing_ok=True)
            _rotten(self._path(digest)).unlink(missing_ok=True)

    def set_aside(self, digest: str) -> None:
        """See :meth:`ObjectStore.set_aside`."""
        path = self._path(digest)
        with self._named_errors(), suppress(FileNotFoundError):
            path.replace(_rotten(path))
            _sync_folder(path.parent)

    def presign(self, digest: str, seconds: int, file_name: str | None = None) -> str | None:  # noqa: ARG002 - a folder has no URL
        """See :meth:`ObjectStore.presign`."""
        return None

    def staging(self) -> None:
        """See :meth:`ObjectStore.staging`."""

    def _path(self, digest: str) -> Path:
        name = check_digest(digest).removeprefix("sha256:")
        return self._root / "sha256" / name[:2] / name[2:4] / name

    @contextmanager
    def _temporary_file(self) -> Iterator[tuple[int, Path]]:
        with self._named_errors():
            descriptor, path = _create_locked(self._temporary)
        try:
            yield descriptor, path
        finally:
            os.close(descriptor)
            with suppress(OSError):  # what is left behind is swept later; the first error matters more
                path.unlink(missing_ok=True)

    def _make_parents(self, target: Path) -> list[Path]:
        """Make the folders above a blob; return those in which there is a new one, to be synced."""
        missing = [folder for folder in (self._root / "sha256", target.parent.parent, target.parent) if not folder.is_dir()]
        for folder in missing:
            folder.mkdir(exist_ok=True)
        return [folder.parent for folder in missing]

    def _sweep(self) -> None:
        for path in self._temporary.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    @contextmanager
    def _named_errors(self, digest: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull("the object store's disk is full", hint="free some space; nothing was stored") from error
            if isinstance(error, FileNotFoundError) and digest is not None and self._temporary.is_dir():
                raise absence_of(digest, is_set_aside=_rotten(self._path(digest)).exists()) from None
            raise StorageUnavailable(f"the object store's folder does not work: {error.strerror}") from error


def _rotten(path: Path) -> Path:
    return path.with_name(f"{path.name}.rotten")


def _create_locked(folder: Path) -> tuple[int, Path]:
    while True:
        path = folder / uuid.uuid4().hex
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # another process swept it before it was locked


def _write_all(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
