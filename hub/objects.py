"""Where bytes live: the ``ObjectStore`` port, a store in memory, and verified reading.

A blob is named by its sha256, written once and never changed, so a store needs no locks and no conditional writes:
two writers of one name write the same bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, Broken, DigestMismatch, TooLarge

CHUNK_BYTES = 1 << 20
VERIFIED_FIRST_BYTES = 64 << 20
"""A blob up to this size is read and verified before its first byte is given away, so that rot can still be told by a status."""
HELD_BYTES = 2 << 20
"""A blob up to this size is read from the store once, and held while it is verified and used."""
_MENDING = "uploading the right bytes again mends it"


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

    def presign(self, digest: str, seconds: int, file_name: str | None = None) -> str | None:
        """Return a URL that anyone may read the blob from for so long, saved under a name; None where the store has no such thing."""
        ...

    def staging(self) -> Staging | None:
        """Return where clients can send bytes to the store themselves, or None where the store has no such thing."""
        ...


class Staging(Protocol):
    """Uploads that clients send to the store's own server, in parts, by names that the hub gives; raises as a store does.

    What lies here is unverified and has no digest, so nobody can read it before it is adopted.
    """

    def begin(self, name: str) -> str:
        """Begin an upload and return the store's own name for it."""
        ...

    def address(self, name: str, upload: str, number: int, seconds: int) -> str:
        """Return a URL that whoever has it may put part ``number``, from 1 on, to, for so long."""
        ...

    def parts(self, name: str, upload: str) -> dict[int, int] | None:
        """Return the sizes in bytes of the parts that have come, by number; None where the upload is over or was never begun."""
        ...

    def complete(self, name: str, upload: str, sizes: Mapping[int, int]) -> bool:
        """Put the parts together, whose ``sizes`` in bytes go by number; from now on the addresses are worth nothing. Harmless to repeat.

        Returns False where other parts have come than these, and puts nothing together then.
        """
        ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a completed upload; None where there is none."""
        ...

    def adopt(self, name: str, digest: str) -> str:
        """Read a completed upload, copy it to the blob of ``digest`` if that is what it is, and return the digest that it has."""
        ...

    def discard(self, name: str) -> None:
        """Forget an upload, completed or not; harmless to repeat."""
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


def stream_verified(store: ObjectStore, digest: str, size: int | None = None) -> Iterator[bytes]:
    """Yield a blob's bytes, holding back the last chunk until all are verified, so that a corrupt body never completes.

    Raises :class:`BlobNotFound` and, up to :data:`VERIFIED_FIRST_BYTES`, :class:`DigestMismatch` at the first step; the latter for
    a larger blob in place of its last chunk. Rot is set aside, so whoever asks again hears of it at once, and an upload mends it.
    ``size``: as the store has told it, where it was asked before.
    """
    known = (store.has(digest) or 0) if size is None else size
    if known <= HELD_BYTES:
        with suppress(TooLarge):  # it is longer by now, so another upload has put it there
            yield from _whole(read_verified(store, digest, HELD_BYTES))
            return
    if known <= VERIFIED_FIRST_BYTES:
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


def _whole(content: bytes) -> Iterator[bytes]:
    if content:
        yield content


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

    def presign(self, digest: str, seconds: int, file_name: str | None = None) -> str | None:  # noqa: ARG002 - memory has no URL
        """See :meth:`ObjectStore.presign`."""
        return None

    def staging(self) -> None:
        """See :meth:`ObjectStore.staging`."""

    def _content(self, digest: str) -> bytes:
        try:
            return self._blobs[check_digest(digest)]
        except KeyError:
            raise absence_of(digest, is_set_aside=digest in self._rotten) from None
