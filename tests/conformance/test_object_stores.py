"""What every object store promises; the same suite over memory, a folder and a real S3 server.

State is set up and looked at behind the store's back, by ``Backend``, so that no method vouches for itself.
"""

from __future__ import annotations

import io
import random
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hub.objects import CHUNK_BYTES, read_verified, stream_verified
from tests.conformance.stores import ABSENT, LASTING, MIB, Backend, Pattern, put
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import BlobNotFound, DigestMismatch, InvalidReference, TooLarge

CONTENTS = [b"", b"a", b"hello" * 1000, random.Random(1).randbytes(CHUNK_BYTES), random.Random(2).randbytes(2 * CHUNK_BYTES + 17)]


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_is_put_is_what_lies_there(backend: Backend, content: bytes) -> None:
    digest = put(backend, content)
    assert backend.read_raw(digest) == content
    assert len(backend.list_raw()) == 1


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_lies_there_is_what_is_read(backend: Backend, content: bytes) -> None:
    digest = digest_of(content)
    backend.write_raw(digest, content)
    chunks = list(backend.store.get(digest))
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert b"".join(stream_verified(backend.store, digest)) == content
    assert read_verified(backend.store, digest, len(content)) == content
    assert backend.store.has(digest) == len(content)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 1), (0, 10), (3, 4), (9, 1), (9, 100), (10, 1), (10, 0), (500, 7), (0, 10**12)])
def test_a_range_is_a_slice(backend: Backend, start: int, length: int) -> None:
    content = b"0123456789"
    backend.write_raw(digest_of(content), content)
    assert backend.store.range(digest_of(content), start, length) == content[start : start + length]


def test_a_range_of_an_empty_blob_is_empty(backend: Backend) -> None:
    backend.write_raw(digest_of(b""), b"")
    assert backend.store.range(digest_of(b""), 0, 5) == b""


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, -5)])
def test_a_negative_range_is_a_mistake_of_ours(backend: Backend, start: int, length: int) -> None:
    digest = put(backend, b"0123456789")
    with pytest.raises(ValueError, match="range"):
        backend.store.range(digest, start, length)


def test_an_absent_blob_is_not_found(backend: Backend) -> None:
    assert backend.store.has(ABSENT) is None
    with pytest.raises(BlobNotFound):
        next(backend.store.get(ABSENT))
    with pytest.raises(BlobNotFound):
        backend.store.range(ABSENT, 0, 1)
    with pytest.raises(BlobNotFound):
        backend.store.range(ABSENT, 0, 0)
    with pytest.raises(BlobNotFound):
        read_verified(backend.store, ABSENT, 10)
    with pytest.raises(BlobNotFound):
        next(stream_verified(backend.store, ABSENT))


def test_delete_forgets_and_may_be_repeated(backend: Backend) -> None:
    digest, other = put(backend, b"goes"), put(backend, b"stays")
    for _ in range(2):
        backend.store.delete(digest)
    assert backend.store.has(digest) is None
    assert backend.read_raw(digest) is None
    assert backend.read_raw(other) == b"stays"
    assert put(backend, b"goes") == digest
    assert backend.read_raw(digest) == b"goes"


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:" + "g" * 64,
        "sha256:" + "A" * 64,
        "md5:" + "0" * 64,
        "sha256:../../../etc/passwd",
        ABSENT + "\n",
        ABSENT + "0",
    ],
)
def test_a_malformed_digest_never_reaches_the_store(backend: Backend, digest: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: backend.store.put(digest, io.BytesIO(b"x")),
        lambda: list(backend.store.get(digest)),
        lambda: backend.store.range(digest, 0, 1),
        lambda: backend.store.has(digest),
        lambda: backend.store.delete(digest),
        lambda: backend.store.set_aside(digest),
    ]
    for call in calls:
        with pytest.raises(InvalidReference):
            call()
    assert backend.list_raw() == []


def test_putting_again_changes_nothing(backend: Backend) -> None:
    digest = put(backend, b"once")
    before = backend.list_raw()
    assert put(backend, b"once") == digest
    assert backend.list_raw() == before
    assert backend.read_raw(digest) == b"once"


@pytest.mark.parametrize("size", [0, 5, 3 * MIB, 20 * MIB], ids=["empty", "small", "chunks", "parts"])
def test_wrong_bytes_leave_nothing(backend: Backend, size: int) -> None:
    with pytest.raises(DigestMismatch):
        backend.store.put(ABSENT, Pattern(size))
    assert backend.list_raw() == []
    assert backend.store.has(ABSENT) is None


@pytest.mark.parametrize("announced", [0, 4, 6, 10**9])
def test_a_wrong_size_leaves_nothing(backend: Backend, announced: int) -> None:
    with pytest.raises(DigestMismatch, match="size"):
        backend.store.put(digest_of(b"12345"), io.BytesIO(b"12345"), announced)
    assert backend.list_raw() == []


def test_a_right_size_is_accepted(backend: Backend) -> None:
    assert backend.store.put(digest_of(b"12345"), io.BytesIO(b"12345"), 5) == 5


def test_wrong_bytes_do_not_harm_what_is_there(backend: Backend) -> None:
    digest = put(backend, b"right")
    with pytest.raises(DigestMismatch):
        backend.store.put(digest, io.BytesIO(b"wrong"))
    assert backend.read_raw(digest) == b"right"


def test_a_source_may_come_in_crumbs(backend: Backend) -> None:
    class Crumbs(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            return super().read(min(7, length) if length and length > 0 else 7)

    content = random.Random(3).randbytes(10_000)
    backend.store.put(digest_of(content), Crumbs(content))
    assert backend.read_raw(digest_of(content)) == content


def test_many_writers_of_one_blob_all_succeed(backend: Backend) -> None:
    content = random.Random(4).randbytes(3 * MIB)
    digest, start = digest_of(content), threading.Barrier(8)

    def write(number: int) -> int:
        start.wait()
        return backend.store.put(digest, io.BytesIO(content))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(write, range(8))) == {len(content)}
    assert backend.read_raw(digest) == content
    assert len(backend.list_raw()) == 1


def test_readers_during_writes_see_all_or_nothing(backend: Backend) -> None:
    content = random.Random(5).randbytes(2 * MIB)
    digest, is_done = digest_of(content), threading.Event()

    def rewrite() -> None:
        for _ in range(10):
            backend.store.put(digest, io.BytesIO(content))
        is_done.set()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(rewrite)
        while not is_done.is_set() and not writing.done():
            assert backend.store.has(digest) in (None, len(content))
            if backend.store.has(digest) is not None:
                assert read_verified(backend.store, digest, len(content)) == content
        writing.result()


def test_reading_at_once_is_bounded(backend: Backend) -> None:
    digest = put(backend, b"12345")
    with pytest.raises(TooLarge):
        read_verified(backend.store, digest, 4)


@LASTING
def test_a_large_blob_passes_through_flat(backend: Backend) -> None:
    size = 96 * MIB
    digest = Pattern.digest(size)
    tracemalloc.start()
    try:
        assert backend.store.put(digest, Pattern(size)) == size
        assert sum(len(chunk) for chunk in stream_verified(backend.store, digest)) == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < backend.peak_bytes


def test_a_reader_may_stop_early(backend: Backend) -> None:
    digest = put(backend, random.Random(8).randbytes(3 * MIB))
    for _ in range(40):
        chunks = backend.store.get(digest)
        assert len(next(chunks)) <= CHUNK_BYTES
        chunks.close()  # type: ignore[attr-defined]
    assert backend.store.has(digest) == 3 * MIB
