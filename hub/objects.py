"""Where bytes live: the ``ObjectStore`` port, its two simple implementations, and verified reading.

A blob is named by its sha256, written once and never changed, so a store needs no locks and no conditional writes:
two writers of one name write the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, Broken, DigestMismatch, StorageFull, StorageUnavailable, TooLarge

CHUNK_BYTES = 1 << 20
VERIFIED_FIRST_BYTES = 64 << 20
"""A blob up to this size is read and verified before its first byte is given away, so that rot can still be told by a status."""
_MENDING = "uploading the right bytes again mends it"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Readable(Protocol):
    """What bytes are read from: a file, a request's body."""

    def read(self, length: int = ..., /) -> bytes:
        """Return the next bytes, at most ``length``, and b"" at the end."""
        ...


class ObjectStore(Protocol):
    """Bytes by digest; every method may be called from many threads and processes at once.

    Every method raises :class:`InvalidReference` for a malformed digest and :class:`StorageUnavailable` where the store does not work.
    """

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        """Stream ``source`` into the store and return how many bytes it had; a blob appears whole and verified, or not at all.

        Putting a blob again is harmless, and mends one that rotted. ``size`` is what the caller expects, if it knows.
        Raises :class:`DigestMismatch` where the bytes are not those that ``digest`` names, and :class:`StorageFull`; what
        reading ``source`` raises passes through.
        """
        ...

    def get(self, digest: str) -> Iterator[bytes]:
        """Yield the bytes in chunks of at most a mebibyte, unverified.

        Raises at the first step: :class:`BlobNotFound`, or :class:`DigestMismatch` where they were set aside.
        """
        ...

    def range(self, digest: str, start: int, length: int) -> bytes:
        """Return the ``length`` bytes from ``start`` on, fewer where the blob ends before; raises what :meth:`get` does."""
        ...

    def has(self, digest: str) -> int | None:
        """Return the blob's size in bytes, or None where there is no such blob."""
        ...

    def delete(self, digest: str) -> None:
        """Forget the blob, and what was set aside of it; deleting what is not there is harmless."""
        ...

    def set_aside(self, digest: str) -> None:
        """Take a rotten blob out of the way, so that :meth:`has` asks for it anew, but keep its bytes for whoever may save them.

        Until it is put again or deleted, reading it raises :class:`DigestMismatch`. Setting aside what is not there is harmless.
        """
        ...

    def presign(self, digest: str, seconds: int) -> str | None:
        """Return a URL that anyone may read the blob from for so long, or None where the store has no such thing."""
        ...


class VerifiedSource:
    """A stream that raises :class:`DigestMismatch` at its end, unless its bytes were those that ``digest`` names."""

    def __init__(self, source: Readable, digest: str, size: int | None = None) -> None:
        self._source, self._digest, self._expected = source, check_digest(digest), size
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes read so far."""

    def read(self, length: int = CHUNK_BYTES) -> bytes:
        """Return the next bytes, at most ``length``; b"" at the end, which is reached only by the right bytes."""
        chunk = self._source.read(length)
        if chunk:
            self._hash.update(chunk)
            self.size += len(chunk)
        elif length:
            self._check_size()
            found = f"sha256:{self._hash.hexdigest()}"
            if found != self._digest:
                raise DigestMismatch(path=self._digest, value=found)
        if self._expected is not None and self.size > self._expected:
            self._check_size()
        return chunk

    def _check_size(self) -> None:
        if self._expected not in (None, self.size):
            raise DigestMismatch(
                "the size differs from the announced one", path=self._digest, value=self.size, hint=f"{self._expected} bytes"
            )

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read():
            yield chunk


def absence_of(digest: str, *, is_set_aside: bool) -> BlobNotFound | DigestMismatch:
    """Return what to raise for a blob that is not in its place."""
    if is_set_aside:
        return DigestMismatch("the stored bytes have rotted and were set aside", path=digest, hint=_MENDING)
    return BlobNotFound(path=digest)


def stream_verified(store: ObjectStore, digest: str) -> Iterator[bytes]:
    """Yield a blob's bytes, holding back the last chunk until all are verified, so that a corrupt body never completes.

    Raises :class:`BlobNotFound` and, up to :data:`VERIFIED_FIRST_BYTES`, :class:`DigestMismatch` at the first step; the latter for
    a larger blob in place of its last chunk. Rot is set aside, so whoever asks again hears of it at once, and an upload mends it.
    """
    if (store.has(digest) or 0) <= VERIFIED_FIRST_BYTES:
        _refuse_rot(store, digest, _digest_in(store, digest))
    sha256, held = hashlib.sha256(), b""
    for chunk in store.get(digest):
        sha256.update(chunk)
        if held:
            yield held
        held = chunk
    _refuse_rot(store, digest, f"sha256:{sha256.hexdigest()}")
    if held:
        yield held


def read_verified(store: ObjectStore, digest: str, max_bytes: int) -> bytes:
    """Return a blob's bytes; raise :class:`TooLarge` above ``max_bytes``, and :class:`DigestMismatch` for rot, which is set aside."""
    content = bytearray()
    for chunk in store.get(digest):
        content += chunk
        if len(content) > max_bytes:
            raise TooLarge("the blob is too large to be read at once", path=digest, hint=f"at most {max_bytes} bytes")
    _refuse_rot(store, digest, f"sha256:{hashlib.sha256(content).hexdigest()}")
    return bytes(content)


def _digest_in(store: ObjectStore, digest: str) -> str:
    sha256 = hashlib.sha256()
    for chunk in store.get(digest):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


def _refuse_rot(store: ObjectStore, digest: str, found: str) -> None:
    if found == digest:
        return
    # The mismatch matters more than whether the store can be tidied; and a misread, or what was mended meanwhile, stays.
    with suppress(Broken, BlobNotFound):
        if _digest_in(store, digest) != digest:
            store.set_aside(digest)
    raise DigestMismatch(path=digest, value=found, hint=_MENDING)


def check_span(start: int, length: int) -> None:
    """Raise ValueError unless ``start`` and ``length`` can be those of a range."""
    if start < 0 or length < 0:
        raise ValueError(f"a range of {length} bytes from {start}")


class MemoryStore:
    """Blobs in a dictionary, for tests and for trying things out; gone when the process ends."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._rotten: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        """See :meth:`ObjectStore.put`."""
        content = b"".join(VerifiedSource(source, digest, size))
        with self._lock:
            self._blobs[digest] = content
            self._rotten.pop(digest, None)
        return len(content)

    def get(self, digest: str) -> Iterator[bytes]:
        """See :meth:`ObjectStore.get`."""
        content = self._content(digest)
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]

    def range(self, digest: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.range`."""
        check_span(start, length)
        return self._content(digest)[start : start + length]

    def has(self, digest: str) -> int | None:
        """See :meth:`ObjectStore.has`."""
        content = self._blobs.get(check_digest(digest))
        return None if content is None else len(content)

    def delete(self, digest: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        with self._lock:
            self._blobs.pop(check_digest(digest), None)
            self._rotten.pop(digest, None)

    def set_aside(self, digest: str) -> None:
        """See :meth:`ObjectStore.set_aside`."""
        with self._lock:
            if check_digest(digest) in self._blobs:
                self._rotten[digest] = self._blobs.pop(digest)

    def presign(self, digest: str, seconds: int) -> str | None:  # noqa: ARG002 - memory has no URL
        """See :meth:`ObjectStore.presign`."""
        return None

    def _content(self, digest: str) -> bytes:
        try:
            return self._blobs[check_digest(digest)]
        except KeyError:
            raise absence_of(digest, is_set_aside=digest in self._rotten) from None


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
                self._make_parents(target)
                path.replace(target)
                _rotten(target).unlink(missing_ok=True)
                _sync_folder(target.parent)
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

    def presign(self, digest: str, seconds: int) -> str | None:  # noqa: ARG002 - a folder has no URL
        """See :meth:`ObjectStore.presign`."""
        return None

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

    def _make_parents(self, target: Path) -> None:
        for folder in (self._root / "sha256", target.parent.parent, target.parent):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                _sync_folder(folder.parent)

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
